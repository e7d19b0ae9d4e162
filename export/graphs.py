"""The five graphs in the form that exports well, without anything that the masks do not need.

Each module holds submodules of a `RISModel` and computes what that model computes
(docs/reference/models/dfam.md 17 says what can be left out). `export.onnx_writer` traces the
modules; `export.bundle_writer` compares each graph with the reference, so that a mistake here is
found.

Axes: `images` B and `expressions` N are independent. `image_index` int32 [N] says which image an
expression belongs to. So one call serves any pairing, and what depends on the image alone is
computed B times, not N.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d as SamLayerNorm2d
from segment_anything.modeling.image_encoder import Block, get_rel_pos
from torch import Tensor, nn

from ris.engines import TensorSpec
from ris.reference.config import ModelConfig
from ris.reference.model import RISModel
from ris.reference.pixel_decoder import Sampling
from ris.runtime.bundle import STAGES


class GraphSignature(NamedTuple):
    """What goes into a graph and what comes out."""

    inputs: tuple[TensorSpec, ...]
    """The inputs, in the order of the module's arguments."""

    outputs: tuple[TensorSpec, ...]
    """The outputs, in the order in which the module returns them."""


def signature(stage: str, config: ModelConfig) -> GraphSignature:
    """The inputs and outputs of `stage` (docs/reference/design.md, The five graphs).

    Raises ValueError for an unknown stage.
    """
    width, sam, clip = config.prompt_width, config.sam, config.clip
    image_embeddings = _per_image("image_embeddings", width, sam.grid, sam.grid)
    clip_tokens = _per_image("clip_tokens", clip.grid**2, clip.width)
    text_features = _per_expression("text_features", config.max_tokens, width)
    sparse_prompt = _per_expression("sparse_prompt", 1, width)
    image_index = TensorSpec("image_index", "int32", ("expressions",))

    if stage == "sam_image_encoder":
        image = _per_image("image", 3, sam.image_size, sam.image_size)
        return GraphSignature((image,), (image_embeddings,))

    if stage == "clip_image_encoder":
        image = _per_image("image", 3, clip.image_size, clip.image_size)
        return GraphSignature((image,), (clip_tokens,))

    if stage == "text_encoder":
        input_ids = TensorSpec("input_ids", "int32", ("expressions", config.max_tokens))
        return GraphSignature((input_ids,), (text_features,))

    if stage == "fusion":
        grid = config.dense_prompt_grid
        text_mask = _per_expression("text_mask", config.max_tokens)
        inputs = [clip_tokens, text_features, text_mask, image_index]
        outputs = [_per_expression("dense_prompt", width, grid, grid), sparse_prompt]
        if config.no_target != "none":
            inputs.append(image_embeddings)
            outputs.append(_per_expression("no_target_logits", 2))
        if config.query == "category":
            inputs.append(_per_expression("category_feature", clip.embed_dim))
        return GraphSignature(tuple(inputs), tuple(outputs))

    if stage == "mask_decoder":
        dense_prompt = _per_expression("dense_prompt", width, sam.grid, sam.grid)
        logits = _per_expression("mask_logits", 1, config.mask_size, config.mask_size)
        return GraphSignature(
            (image_embeddings, dense_prompt, sparse_prompt, image_index), (logits,)
        )

    raise ValueError(f"no stage called {stage!r}; there are {', '.join(STAGES)}")


def _per_image(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("images", *shape))


def _per_expression(name: str, *shape: int) -> TensorSpec:
    return TensorSpec(name, "float32", ("expressions", *shape))


def build(stage: str, model: RISModel, sampling: Sampling = "native") -> nn.Module:
    """The module to trace for `stage`, which shares the model's weights.

    `sampling` concerns the fusion alone.
    """
    if stage == "fusion":
        return Fusion(model, sampling).eval()
    modules = {
        "sam_image_encoder": SamImageEncoder,
        "clip_image_encoder": ClipImageEncoder,
        "text_encoder": TextEncoder,
        "mask_decoder": MaskDecoder,
    }
    return modules[stage](model).eval()


class ChannelsLastNorm(nn.Module):
    """SAM's LayerNorm2d as a LayerNorm of tokens.

    It becomes one LayerNormalization node, which engines accumulate in FP32.
    """

    def __init__(self, norm: SamLayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # as in `ris.reference.layers.LayerNorm2d`
        normed = F.layer_norm(tokens, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.transpose(1, 2).unflatten(2, x.shape[2:])


def _channels_last(layers: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(
        *(ChannelsLastNorm(m) if isinstance(m, SamLayerNorm2d) else m for m in layers)
    )


_LARGE = 1024
"""A window of more tokens than this computes its attention in groups of heads."""

_HEADS_AT_ONCE = 2


class _SamAttention(nn.Module):
    """SAM's attention over an H x W window with decomposed relative positions.

    [M, H*W, C] -> [M, H*W, C], before `proj`, which `_SamBlock` applies.
    """

    def __init__(self, block: Block, side: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = block.attn.qkv, block.attn.proj, block.attn.num_heads
        # tables [S, d, S]: for a query at row i, the term of every key row k
        rows = get_rel_pos(side, side, block.attn.rel_pos_h).transpose(1, 2)
        columns = get_rel_pos(side, side, block.attn.rel_pos_w).transpose(1, 2)
        self.rows = nn.Buffer(rows.contiguous())
        self.columns = nn.Buffer(columns.contiguous())
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        side, heads, width = self.side, self.heads, x.shape[-1]
        qkv = self.qkv(x).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # [M, heads, H*W, d]
        parts = (q, k, v, *self._positions(q))
        if side * side > _LARGE:
            # 4096 x 4096 logits of all heads at once would take gigabytes
            groups = zip(*(part.split(_HEADS_AT_ONCE, 1) for part in parts), strict=True)
            attended = torch.cat([self._attend(*group) for group in groups], 1)
        else:
            attended = self._attend(*parts)
        return attended.transpose(1, 2).flatten(2)

    def _positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of key rows [M, heads, H, W, H] and of key columns [M, heads, H, W, W].

        There is one product for each row of queries and one for each column, over all heads.
        """
        grid = q.unflatten(2, (self.side, self.side))  # [M, heads, H, W, d]
        shape = (-1, self.heads, self.side)
        by_row = grid.permute(2, 0, 1, 3, 4).flatten(1, 3) @ self.rows
        by_column = grid.permute(3, 0, 1, 2, 4).flatten(1, 3) @ self.columns
        return (
            by_row.unflatten(1, shape).permute(1, 2, 0, 3, 4),
            by_column.unflatten(1, shape).permute(1, 2, 3, 0, 4),
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """q, k, v [M, some heads, H*W, d] -> the attended values, same shape."""
        side, depth = self.side, q.shape[-1]
        logits = (
            ((q * depth**-0.5) @ k.transpose(2, 3))
            .unflatten(3, (side, side))
            .unflatten(2, (side, side))
        )
        logits = logits + by_row[..., None] + by_column[..., None, :]
        return logits.flatten(4, 5).flatten(2, 3).softmax(-1) @ v


class _SamBlock(nn.Module):
    """One block of SAM's image encoder, with window or global attention; keeps [B, s*s, C]."""

    def __init__(self, block: Block, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.window = block.window_size
        self.grid = grid
        self.attn = _SamAttention(block, self.window or grid)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn.proj(self._windowed(normed) if self.window else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        """Attention within windows of the padded map; keeps [B, s*s, C]."""
        window, grid, width = self.window, self.grid, x.shape[-1]
        count = math.ceil(grid / window)
        padding = count * window - grid
        x = x.unflatten(1, (grid, grid))
        # padded positions take part as keys and values
        x = F.pad(x, (0, 0, 0, padding, 0, padding))
        x = x.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        x = self.attn(x.reshape(-1, window * window, width))
        x = x.reshape(-1, count, count, window, window, width).transpose(2, 3)
        # the padding is cut off before the projection
        return x.flatten(3, 4).flatten(1, 2)[:, :grid, :grid].flatten(1, 2)


class SamImageEncoder(nn.Module):
    """`image` [B, 3, S, S] -> `image_embeddings` [B, C, s, s] (docs/reference/models/dfam.md 3)."""

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        encoder, self.grid = model.sam.image_encoder, model.config.sam.grid
        self.patches, positions = encoder.patch_embed.proj, encoder.pos_embed
        assert positions is not None
        self.positions = nn.Buffer(positions.detach().flatten(1, 2))
        self.blocks = nn.ModuleList(_SamBlock(block, self.grid) for block in encoder.blocks)
        self.neck = _channels_last(encoder.neck)

    def forward(self, image: Tensor) -> Tensor:
        # tokens [B, s*s, C] throughout: sums of maps [B, s, s, C] would be reordered by OpenVINO
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class _ClipBlock(nn.Module):
    """One residual block of CLIP.

    The first `skip` tokens are keys and values only: in the last block, nothing reads what comes
    out at the class token.
    """

    def __init__(self, block: Any, skip: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = block.ln_1, block.ln_2
        self.c_fc, self.c_proj = block.mlp.c_fc, block.mlp.c_proj
        self.attn: Any = block.attn
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        heads, width = self.attn.num_heads, self.attn.embed_dim
        depth = width // heads
        normed = self.ln_1(x)
        qkv = F.linear(normed, self.attn.in_proj_weight, self.attn.in_proj_bias)
        q, k, v = qkv.unflatten(2, (3, heads, depth)).permute(2, 0, 3, 1, 4)
        if self.skip:
            q, x = q[:, :, self.skip :], x[:, self.skip :]
        weights = ((q * depth**-0.5) @ k.transpose(2, 3)).softmax(-1)
        x = x + self.attn.out_proj((weights @ v).transpose(1, 2).flatten(2))
        hidden = self.c_fc(self.ln_2(x))
        return x + self.c_proj(hidden * torch.sigmoid(1.702 * hidden))


class ClipImageEncoder(nn.Module):
    """`image` [B, 3, c, c] -> `clip_tokens` [B, g*g, width] (docs/reference/models/dfam.md 4)."""

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        visual: Any = model.clip_dense.clip_model.visual
        self.conv1, self.ln_pre = visual.conv1, visual.ln_pre
        class_token = visual.class_embedding + visual.positional_embedding[0]
        self.class_token = nn.Buffer(class_token[None, None])
        self.positions = nn.Buffer(visual.positional_embedding[1:].clone())
        blocks = list(visual.transformer.resblocks)
        self.blocks = nn.ModuleList(_ClipBlock(b, skip=1 if b is blocks[-1] else 0) for b in blocks)

    def forward(self, image: Tensor) -> Tensor:
        patches = self.conv1(image).flatten(2).transpose(1, 2) + self.positions
        x = self.ln_pre(torch.cat([self.class_token.expand(patches.shape[0], -1, -1), patches], 1))
        for block in self.blocks:
            x = block(x)
        return x


class TextEncoder(nn.Module):
    """`input_ids` [N, T] -> `text_features` [N, T, C] (docs/reference/models/dfam.md 5).

    The identifiers are int32; 0 is padding. The logits of padding get -1e4, which FP16 can hold,
    and whose exponential is zero as that of minus infinity is.
    """

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        bert, tokens = model.text_encoder, model.config.max_tokens
        embeddings = bert.embeddings
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        positions = embeddings.position_embeddings.weight[:tokens]
        kind = embeddings.token_type_embeddings.weight[0]  # all words are of the first kind
        self.positions = nn.Buffer((positions + kind).clone())
        self.layers = bert.encoder.layer
        self.heads = model.config.bert.heads
        self.lang_mlp = model.lang_mlp

    def _attend(self, layer: Any, x: Tensor, bias: Tensor) -> Tensor:
        own = layer.attention.self
        depth = x.shape[-1] // self.heads
        q, k, v = (
            f(x).unflatten(2, (self.heads, depth)).transpose(1, 2)
            for f in (own.query, own.key, own.value)
        )
        weights = ((q * depth**-0.5) @ k.transpose(2, 3) + bias).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def forward(self, input_ids: Tensor) -> Tensor:
        ids = input_ids.long()
        bias = torch.where(ids != 0, 0.0, -1e4)[:, None, None]
        x = self.norm(self.words(ids) + self.positions)
        for layer in self.layers:
            attended = layer.attention.output.dense(self._attend(layer, x, bias))
            x = layer.attention.output.LayerNorm(x + attended)
            hidden = F.gelu(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(x + layer.output.dense(hidden))
        return self.lang_mlp(x)


class Fusion(nn.Module):
    """CLIP tokens and words -> dense prompt, sparse prompt, no-target logits.

    See docs/reference/models/dfam.md 6-9, 13 and 14.
    """

    def __init__(self, model: RISModel, sampling: Sampling) -> None:
        super().__init__()
        self.pwam = model.adaptor_clip.fusion
        self.pyramid = model.backbone_clip
        self.pixel_decoder = model.clip_pixel_decoder
        self.pixel_decoder.set_sampling(sampling)
        self.sparse = model.txt2txt
        self.by_category = model.config.query == "category"
        self.project_category = model.clip_mlpl if self.by_category else None
        self.has_no_target = model.config.no_target != "none"
        if self.has_no_target:
            self.sam_pyramid = model.backbone_sam
            self.dfam = model.decoder

    def forward(
        self,
        clip_tokens: Tensor,
        text_features: Tensor,
        text_mask: Tensor,
        image_index: Tensor,
        image_embeddings: Tensor | None = None,
        category_feature: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The prompts of N expressions about B images.

        Args:
            clip_tokens: CLIP's tokens [B, g*g, width].
            text_features: The words [N, T, C].
            text_mask: 1 for a word, 0 for padding [N, T].
            image_index: The image of each expression, int32 [N].
            image_embeddings: SAM's embeddings [B, C, s, s]. None: the model has no no-target head.
            category_feature: CLIP's feature of a category [N, E]. None: the model asks with [CLS].

        Returns:
            `dense_prompt` [N, C, h, h], `sparse_prompt` [N, 1, C], and `no_target_logits` [N, 2]
            where the model has them.
        """
        index = image_index.long()
        values, queries = (x.index_select(0, index) for x in self.pwam.project_image(clip_tokens))
        fused = self.pwam.fuse(values, queries, text_features, text_mask)
        dense_prompt, maps = self.pixel_decoder(*self.pyramid(fused), finest_only=True)
        if self.project_category is not None:
            query = self.project_category(category_feature)[:, None]
        else:
            query = text_features[:, :1]
        outputs = [dense_prompt, self.sparse(query, text_features)]
        if self.has_no_target:
            assert image_embeddings is not None
            pyramid = self.sam_pyramid(image_embeddings)[::-1]
            levels = [level.index_select(0, index) for level in pyramid]
            own_image = image_embeddings.index_select(0, index)
            outputs.append(self.dfam.decide(levels, maps[-1], own_image))
        return tuple(outputs)


class MaskDecoder(nn.Module):
    """SAM's mask decoder with one sparse token, and of its masks the one of mask token 0.

    See docs/reference/models/dfam.md 10 and 11.
    """

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        decoder = model.sam.mask_decoder
        self.transformer = decoder.transformer
        self.upscale = _channels_last(decoder.output_upscaling)
        self.hypernetwork = decoder.output_hypernetworks_mlps[0]
        self.tokens = nn.Buffer(
            torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])[None]
        )
        self.positions = nn.Buffer(model.sam.prompt_encoder.get_dense_pe())
        self.size = model.config.mask_size

    def forward(
        self,
        image_embeddings: Tensor,
        dense_prompt: Tensor,
        sparse_prompt: Tensor,
        image_index: Tensor,
    ) -> Tensor:
        """The masks of N expressions about B images, as logits [N, 1, m, m].

        Args:
            image_embeddings: SAM's embeddings [B, C, s, s].
            dense_prompt: The dense prompt at their size [N, C, s, s].
            sparse_prompt: The sparse prompt [N, 1, C].
            image_index: The image of each expression, int32 [N].
        """
        source = image_embeddings.index_select(0, image_index.long()) + dense_prompt
        tokens = torch.cat([self.tokens.expand(sparse_prompt.shape[0], -1, -1), sparse_prompt], 1)
        tokens, image_tokens = self.transformer(source, self.positions, tokens)
        upscaled = self.upscale(image_tokens.transpose(1, 2).unflatten(2, source.shape[2:]))
        hyper = self.hypernetwork(tokens[:, 1:2])  # mask token 0 stands behind the IoU token
        return (hyper @ upscaled.flatten(2)).unflatten(2, (self.size, self.size))
