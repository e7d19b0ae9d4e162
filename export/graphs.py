"""The five graphs in the form that exports well: the reference model's own weights, rearranged,
nothing dead.

Each module holds submodules of a `RISModel` and computes what that model computes
(docs/reference/models/dfam.md 17 says what can be left out). `export.onnx_writer` traces them;
`export.bundle_writer` compares each with the reference itself, so a slip here cannot stay unseen.

Axes: `images` B and `expressions` N are independent. `image_index` int32 [N] says which image an
expression belongs to, so one call serves any pairing and everything that depends on the image alone
is computed B times, not N.
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
    """What goes into a graph and what comes out, in order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def signature(stage: str, config: ModelConfig) -> GraphSignature:
    """The inputs and outputs of `stage` for this configuration (docs/reference/design.md, The five
    graphs).
    """
    width, sam, clip = config.prompt_width, config.sam, config.clip
    index = TensorSpec("image_index", "int32", ("expressions",))
    image_embeddings = TensorSpec(
        "image_embeddings", "float32", ("images", width, sam.grid, sam.grid)
    )
    clip_tokens = TensorSpec("clip_tokens", "float32", ("images", clip.grid**2, clip.width))
    text_features = TensorSpec(
        "text_features", "float32", ("expressions", config.max_tokens, width)
    )
    sparse = TensorSpec("sparse_prompt", "float32", ("expressions", 1, width))
    grid = config.dense_prompt_grid
    if stage == "sam_image_encoder":
        image = TensorSpec("image", "float32", ("images", 3, sam.image_size, sam.image_size))
        return GraphSignature((image,), (image_embeddings,))
    if stage == "clip_image_encoder":
        image = TensorSpec("image", "float32", ("images", 3, clip.image_size, clip.image_size))
        return GraphSignature((image,), (clip_tokens,))
    if stage == "text_encoder":
        return GraphSignature(
            (TensorSpec("input_ids", "int32", ("expressions", config.max_tokens)),),
            (text_features,),
        )
    if stage == "fusion":
        inputs = [
            clip_tokens,
            text_features,
            TensorSpec("text_mask", "float32", ("expressions", config.max_tokens)),
            index,
        ]
        outputs = [
            TensorSpec("dense_prompt", "float32", ("expressions", width, grid, grid)),
            sparse,
        ]
        if config.no_target != "none":
            inputs.append(image_embeddings)
            outputs.append(TensorSpec("no_target_logits", "float32", ("expressions", 2)))
        if config.query == "category":
            inputs.append(
                TensorSpec("category_feature", "float32", ("expressions", clip.embed_dim))
            )
        return GraphSignature(tuple(inputs), tuple(outputs))
    if stage == "mask_decoder":
        dense = TensorSpec("dense_prompt", "float32", ("expressions", width, sam.grid, sam.grid))
        logits = TensorSpec(
            "mask_logits", "float32", ("expressions", 1, config.mask_size, config.mask_size)
        )
        return GraphSignature((image_embeddings, dense, sparse, index), (logits,))
    raise ValueError(f"no stage called {stage!r}; there are {', '.join(STAGES)}")


def build(stage: str, model: RISModel, sampling: Sampling = "native") -> nn.Module:
    """The module to trace for `stage`. It shares the model's weights."""
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
    """SAM's LayerNorm2d as a LayerNorm of tokens: one LayerNormalization node, accumulated in
    FP32.
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


_LARGE = 1024  # tokens, from where on attention is split by heads
_HEADS_AT_ONCE = 2


class _SamAttention(nn.Module):
    """SAM's attention over an H x W window with decomposed relative positions; [M, H*W, C] -> [M,
    H*W, C], which `proj` is still to be applied to."""

    def __init__(self, block: Block, side: int) -> None:
        super().__init__()
        self.qkv, self.proj, self.heads = block.attn.qkv, block.attn.proj, block.attn.num_heads
        # tables [S, d, S]: for a query at row i, the term of every key row k
        self.rows = nn.Buffer(
            get_rel_pos(side, side, block.attn.rel_pos_h).transpose(1, 2).contiguous()
        )
        self.columns = nn.Buffer(
            get_rel_pos(side, side, block.attn.rel_pos_w).transpose(1, 2).contiguous()
        )
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        side, heads, width = self.side, self.heads, x.shape[-1]
        qkv = self.qkv(x).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # [M, heads, H*W, d]
        parts = (q, k, v, *self._positions(q))
        if (
            side * side > _LARGE
        ):  # in groups of heads: 4096 x 4096 logits of all heads at once would take gigabytes
            groups = zip(*(part.split(_HEADS_AT_ONCE, 1) for part in parts), strict=True)
            attended = torch.cat([self._attend(*group) for group in groups], 1)
        else:
            attended = self._attend(*parts)
        return attended.transpose(1, 2).flatten(2)

    def _positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of key rows [M, heads, H, W, H] and key columns [M, heads, H, W, W]: a product
        for each row of queries and one for each column, of all heads."""
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
    def __init__(self, block: Block, grid: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.window = block.window_size
        self.grid = grid
        self.attn = _SamAttention(block, self.window or grid)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, s*s, C]."""
        normed = self.norm1(x)
        x = x + self.attn.proj(self._windowed(normed) if self.window else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        window, grid, width = self.window, self.grid, x.shape[-1]
        count = math.ceil(grid / window)
        padding = count * window - grid
        x = x.unflatten(1, (grid, grid))
        x = F.pad(
            x, (0, 0, 0, padding, 0, padding)
        )  # padded positions take part as keys and values
        x = x.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        x = self.attn(x.reshape(-1, window * window, width))
        x = x.reshape(-1, count, count, window, window, width).transpose(2, 3)
        return (
            x.flatten(3, 4).flatten(1, 2)[:, :grid, :grid].flatten(1, 2)
        )  # the padding is not projected


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
        # tokens [B, s*s, C] all the way: OpenVINO reorders sums of maps [B, s, s, C]
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))


class _ClipBlock(nn.Module):
    """One residual block of CLIP; `skip` leading tokens are keys only (the class token of the last
    block).
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
        self.class_token = nn.Buffer(
            (visual.class_embedding + visual.positional_embedding[0])[None, None]
        )
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
    """`input_ids` int32 [N, T], 0 is padding -> `text_features` [N, T, C]
    (docs/reference/models/dfam.md 5).

    Masked keys get -1e4, which FP16 can hold and whose exponential is zero as well.
    """

    def __init__(self, model: RISModel) -> None:
        super().__init__()
        bert, tokens = model.text_encoder, model.config.max_tokens
        embeddings = bert.embeddings
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        position = (
            embeddings.position_embeddings.weight[:tokens]
            + embeddings.token_type_embeddings.weight[0]
        )
        self.positions = nn.Buffer(position.clone())
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
    """CLIP tokens and words -> dense prompt, sparse prompt, no-target logits
    (docs/reference/models/dfam.md 6-9, 13, 14).
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
            levels = [
                level.index_select(0, index) for level in self.sam_pyramid(image_embeddings)[::-1]
            ]
            outputs.append(
                self.dfam.decide(levels, maps[-1], image_embeddings.index_select(0, index))
            )
        return tuple(outputs)


class MaskDecoder(nn.Module):
    """SAM's decoder with one sparse token, mask token 0 only (docs/reference/models/dfam.md 10 and
    11).
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
        source = image_embeddings.index_select(0, image_index.long()) + dense_prompt
        tokens = torch.cat([self.tokens.expand(sparse_prompt.shape[0], -1, -1), sparse_prompt], 1)
        tokens, image_tokens = self.transformer(source, self.positions, tokens)
        upscaled = self.upscale(image_tokens.transpose(1, 2).unflatten(2, source.shape[2:]))
        hyper = self.hypernetwork(
            tokens[:, 1:2]
        )  # position 1 is mask token 0, behind the IoU token
        return (hyper @ upscaled.flatten(2)).unflatten(2, (self.size, self.size))
