"""The whole model: SAM, CLIP and BERT from their libraries, our modules between them.

Section numbers are those of docs/reference/models/dfam.md; 1 is the overview. Attribute names are
the checkpoint's key names, so `load_state_dict` takes an official state dict as it is
(`ris.reference.checkpoint` says which keys it may lack).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP
from segment_anything.modeling import MaskDecoder
from torch import Tensor, nn
from transformers import BertModel

from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.pixel_decoder import PixelDecoder
from ris.reference.dfam.pyramid import ClipPyramid, SamPyramid
from ris.reference.dfam.queries import DFAM, DfamOutputs
from ris.reference.dfam.sparse_branch import SparseBranch
from ris.reference.layers.encoders import (
    build_bert,
    build_clip,
    build_sam,
    causal_mask,
    fill_buffers,
    run_bert,
)
from ris.reference.layers.pixel_words import PWAM


@dataclass
class ReferenceOutputs:
    """Every stage of one forward pass, float32, in the order of computation.

    g is the side of CLIP's grid, s that of SAM's, d that of the dense prompt; C is the prompt
    width, T the number of tokens.
    """

    image_embeddings: Tensor
    """SAM's image embeddings, [B, C, s, s]."""

    clip_tokens: Tensor
    """CLIP's patch tokens, [B, g*g, CLIP's width]."""

    bert_states: Tensor
    """[B, T, BERT's width]."""

    text_features: Tensor
    """The projected BERT states, [B, T, C]."""

    fused: Tensor
    """CLIP's map mixed with the words by PWAM, [B, C, g, g]."""

    clip_pyramid: tuple[Tensor, Tensor, Tensor]
    """p2, p3, p4 of `ClipPyramid`."""

    pixel_maps: list[Tensor]
    """The pixel decoder's encoder maps, coarse to fine."""

    dense_prompt: Tensor
    """The pixel decoder's mask features on their own grid, [B, C, d, d]."""

    dense_embedding: Tensor
    """The dense prompt on SAM's grid, [B, C, s, s]."""

    sparse_query: Tensor
    """What the sparse branch asks with, [B, 1, C]."""

    sparse_prompt: Tensor
    """SAM's one sparse token, [B, 1, C]."""

    mask_logits: Tensor
    """Low-resolution mask logits, [B, 1, 4s, 4s]."""

    sam_pyramid: tuple[Tensor, Tensor, Tensor] | None = None
    """p4, p5, p6 of `SamPyramid`; None where the model has no no-target head."""

    dfam: DfamOutputs | None = None
    """None where the model has no no-target head."""

    @property
    def no_target_logits(self) -> Tensor | None:
        """[B, 2], class 1 means "no target"; None where the model has no such head."""
        return None if self.dfam is None else self.dfam.no_target_logits


class _ClipVisual(nn.Module):
    """CLIP's visual tower alone, under the names of the whole CLIP."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.visual = clip.visual


class _ClipDense(nn.Module):
    """Holds CLIP under the checkpoint's name, `clip_dense.clip_model`."""

    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.clip_model = clip_model


class _PwamAdaptor(nn.Module):
    """Holds the PWAM under the checkpoint's name, `adaptor_clip.fusion`."""

    def __init__(self, image_width: int, width: int) -> None:
        super().__init__()
        self.fusion = PWAM(image_width, width)


class RISModel(nn.Module):
    """The reference model.

    `clip_text_tower` also builds CLIP's text tower, which inference never runs.
    """

    text_embeddings: Tensor
    """The category table, [categories, embed_dim] (section 15)."""

    def __init__(self, config: ModelConfig, *, clip_text_tower: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.prompt_width
        self.sam = build_sam(config.sam, width, config.heads, config.decoder_mlp_width)
        clip = build_clip(config.clip)
        self.clip_dense = _ClipDense(clip if clip_text_tower else _ClipVisual(clip))
        self.text_encoder = build_bert(config.bert)
        self.lang_mlp = nn.Linear(config.bert.width, width)
        self.clip_mlpl = nn.Linear(config.clip.embed_dim, width)
        self.adaptor_clip = _PwamAdaptor(config.clip.width, width)
        self.backbone_clip = ClipPyramid(width, config.pyramid_width)
        self.clip_pixel_decoder = PixelDecoder(
            config.pyramid_width,
            width,
            config.heads,
            config.deformable_layers,
            config.deformable_points,
            config.ffn_width,
            clip_grid_only=config.dense_grid == "clip",
        )
        self.txt2txt = SparseBranch(width, config.heads, config.ffn_width, config.sparse_branch)
        self.backbone_sam = SamPyramid(width)
        self.decoder = DFAM(
            width,
            config.heads,
            config.ffn_width,
            config.dfam_queries,
            config.clip.embed_dim,
            config.no_target,
        )
        table = torch.zeros(config.categories, config.clip.embed_dim)
        self.register_buffer("text_embeddings", table)

    # --- parts by what they are, not by their keys in a checkpoint ---

    @property
    def bert(self) -> BertModel:
        """BERT."""
        return self.text_encoder

    @property
    def pwam(self) -> PWAM:
        """The pixel-word attention."""
        return self.adaptor_clip.fusion

    @property
    def sam_decoder(self) -> MaskDecoder:
        """SAM's mask decoder."""
        return self.sam.mask_decoder

    # --- the stages ---

    def encode_sam(self, image: Tensor) -> Tensor:
        """image [B, 3, S, S], normalised -> image embeddings [B, C, s, s] (section 3)."""
        return self.sam.image_encoder(image)

    def encode_clip(self, clip_image: Tensor) -> Tensor:
        """The last block's patch tokens (section 4).

        clip_image [B, 3, c, c], normalised -> [B, g*g, width].
        """
        visual: Any = self.clip_dense.clip_model.visual
        patches = visual.conv1(clip_image).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], 1) + visual.positional_embedding
        return visual.transformer(visual.ln_pre(tokens))[:, 1:]

    def encode_words(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """The words' features (section 5).

        input_ids [B, T], 0 is padding -> (BERT states [B, T, width], text features [B, T, C]).
        """
        states = run_bert(self.bert, input_ids)
        return states, self.lang_mlp(states)

    def dense_embedding(self, dense_prompt: Tensor) -> Tensor:
        """The dense prompt on SAM's grid; it replaces `no_mask_embed` (section 10)."""
        size = (self.config.sam.grid,) * 2
        return F.interpolate(
            dense_prompt, size=size, mode=self.config.dense_interpolation, align_corners=False
        )

    def sparse_query(self, text_features: Tensor, category: Tensor | None) -> Tensor:
        """The projected category row or the projected [CLS] state, [B, 1, C] (section 9).

        category: as of `ask`. Raises ValueError where the category variant gets none.
        """
        if self.config.query == "cls":
            return text_features[:, :1]
        if category is None:
            raise ValueError("the category variant needs a category index for every expression")
        row = category if category.is_floating_point() else self.text_embeddings[category]
        return self.clip_mlpl(row)[:, None]

    def decode_masks(
        self, image_embeddings: Tensor, dense_embedding: Tensor, sparse_prompt: Tensor
    ) -> Tensor:
        """SAM's mask decoder with single-mask output (section 11), image by image.

        Embeddings [B, C, s, s], sparse prompt [B, 1, C] -> mask logits [B, 1, 4s, 4s].
        """
        positions = self.sam.prompt_encoder.get_dense_pe()
        masks = [
            self.sam_decoder(
                image_embeddings=image_embeddings[i : i + 1],
                image_pe=positions,
                sparse_prompt_embeddings=sparse_prompt[i : i + 1],
                dense_prompt_embeddings=dense_embedding[i : i + 1],
                multimask_output=False,
            )[0]
            for i in range(len(image_embeddings))
        ]
        return torch.cat(masks)

    def forward(
        self, image: Tensor, clip_image: Tensor, input_ids: Tensor, category: Tensor | None = None
    ) -> ReferenceOutputs:
        """The whole model, one expression an image.

        Args:
            image: SAM's input, [B, 3, S, S], normalised.
            clip_image: CLIP's input, [B, 3, c, c], normalised.
            input_ids: The expressions' tokens, int64 [B, T], 0 is padding.
            category: Rows of the category table, int64 [B]; None for the [CLS] variant.

        Raises:
            ValueError: Where the category variant gets no category.
        """
        image_embeddings = self.encode_sam(image)
        clip_tokens = self.encode_clip(clip_image)
        return self.ask(image_embeddings, clip_tokens, input_ids, category)

    def ask(
        self,
        image_embeddings: Tensor,
        clip_tokens: Tensor,
        input_ids: Tensor,
        category: Tensor | None = None,
    ) -> ReferenceOutputs:
        """What `forward` does once the image is encoded.

        Args:
            image_embeddings: Of `encode_sam`, [B, C, s, s].
            clip_tokens: Of `encode_clip`, [B, g*g, width].
            input_ids: The expressions' tokens, int64 [B, T], 0 is padding.
            category: Rows of the category table, by index int64 [B] or as they are, float32 [B, E];
                None for the [CLS] variant.

        Raises:
            ValueError: Where the category variant gets no category.
        """
        bert_states, text_features = self.encode_words(input_ids)
        fused = self.pwam(clip_tokens, text_features, (input_ids != 0).to(text_features))
        pyramid = self.backbone_clip(fused)
        dense_prompt, pixel_maps = self.clip_pixel_decoder(*pyramid)
        dense_embedding = self.dense_embedding(dense_prompt)

        query = self.sparse_query(text_features, category)
        sparse_prompt = self.txt2txt(query, text_features)
        mask_logits = self.decode_masks(image_embeddings, dense_embedding, sparse_prompt)
        outputs = ReferenceOutputs(
            image_embeddings=image_embeddings,
            clip_tokens=clip_tokens,
            bert_states=bert_states,
            text_features=text_features,
            fused=fused,
            clip_pyramid=pyramid,
            pixel_maps=pixel_maps,
            dense_prompt=dense_prompt,
            dense_embedding=dense_embedding,
            sparse_query=query,
            sparse_prompt=sparse_prompt,
            mask_logits=mask_logits,
        )
        if self.config.no_target != "none":
            outputs.sam_pyramid = self.backbone_sam(image_embeddings)
            outputs.dfam = self.decoder(outputs.sam_pyramid[::-1], pixel_maps, image_embeddings)
        return outputs


def empty_model(config: ModelConfig, *, clip_text_tower: bool = False) -> RISModel:
    """A model without weights, in eval mode, to be filled with `load_state_dict(assign=True)`.

    It is on the meta device, but for the buffers that no checkpoint carries, which are real.
    """
    with torch.device("meta"):
        model = RISModel(config, clip_text_tower=clip_text_tower)
    fill_buffers(model.bert)
    model.sam.pixel_mean = torch.zeros(3, 1, 1)
    model.sam.pixel_std = torch.ones(3, 1, 1)
    if clip_text_tower:
        clip: Any = model.clip_dense.clip_model
        clip.attn_mask = causal_mask(clip.context_length)
    return model.eval()
