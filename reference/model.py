"""The whole model (docs/reference/models/dfam.md 1): SAM, CLIP and BERT from their libraries, our
modules between them.

Attribute names are the checkpoint's key names, so `load_state_dict` takes an official state dict as
it is (`reference.checkpoint` says which keys it may lack).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from ris.reference.config import ClipConfig, ModelConfig
from ris.reference.dfam import DFAM, DfamOutputs
from ris.reference.pixel_decoder import PixelDecoder
from ris.reference.pwam import PWAMAdaptor
from ris.reference.pyramid import ClipPyramid, SamPyramid
from ris.reference.sparse_branch import SparseBranch


@dataclass
class ReferenceOutputs:
    """Every stage of one forward pass, float32. g is CLIP's grid, s SAM's, C the prompt width, T
    the token count.

    image_embeddings [B, C, s, s]; clip_tokens [B, g*g, width]; bert_states [B, T, bert width];
    text_features [B, T, C]; fused [B, C, g, g]; clip_pyramid p2, p3, p4; pixel_maps coarse to fine;
    dense_prompt [B, C, d, d] on its own grid; dense_embedding [B, C, s, s]; sparse_query and
    sparse_prompt [B, 1, C]; mask_logits [B, 1, 4s, 4s]; sam_pyramid and dfam where the model has
    the no-target head.
    """

    image_embeddings: Tensor
    clip_tokens: Tensor
    bert_states: Tensor
    text_features: Tensor
    fused: Tensor
    clip_pyramid: tuple[Tensor, Tensor, Tensor]
    pixel_maps: list[Tensor]
    dense_prompt: Tensor
    dense_embedding: Tensor
    sparse_query: Tensor
    sparse_prompt: Tensor
    mask_logits: Tensor
    sam_pyramid: tuple[Tensor, Tensor, Tensor] | None = None
    dfam: DfamOutputs | None = None

    @property
    def no_target_logits(self) -> Tensor | None:
        """[B, 2]; class 1 means "no target"."""
        return None if self.dfam is None else self.dfam.no_target_logits


def build_sam(config: ModelConfig) -> Sam:
    """Meta's SAM of this configuration's sizes, from the segment_anything package."""
    sam, width = config.sam, config.prompt_width
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=sam.image_size,
            patch_size=sam.patch_size,
            embed_dim=sam.width,
            depth=sam.depth,
            num_heads=sam.heads,
            mlp_ratio=4,
            out_chans=width,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=sam.window,
            global_attn_indexes=sam.global_blocks,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=(sam.grid, sam.grid),
            input_image_size=(sam.image_size, sam.image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=width,
                num_heads=config.heads,
                mlp_dim=config.decoder_mlp_width,
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )


def build_clip(config: ClipConfig) -> CLIP:
    """OpenAI's CLIP (QuickGELU) of this configuration's sizes, both towers, from open_clip."""
    return CLIP(
        embed_dim=config.embed_dim,
        vision_cfg=CLIPVisionCfg(
            layers=config.layers,
            width=config.width,
            head_width=config.width // config.heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
        ),
        text_cfg=CLIPTextCfg(
            vocab_size=config.text_vocab_size,
            width=config.text_width,
            heads=config.text_heads,
            layers=config.text_layers,
        ),
        quick_gelu=True,
    )


def build_bert(config: ModelConfig) -> BertModel:
    """BERT without pooler, eager attention, no dropout, from transformers."""
    bert = config.bert
    return BertModel(
        BertConfig(
            vocab_size=bert.vocab_size,
            hidden_size=bert.width,
            num_hidden_layers=bert.layers,
            num_attention_heads=bert.heads,
            intermediate_size=bert.mlp_width,
            max_position_embeddings=bert.positions,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            attn_implementation="eager",
        ),
        add_pooling_layer=False,
    )


class _ClipVisual(nn.Module):
    """CLIP's visual tower alone, under the names of the whole CLIP."""

    def __init__(self, clip: CLIP) -> None:
        super().__init__()
        self.visual = clip.visual


class _ClipDense(nn.Module):
    def __init__(self, clip_model: nn.Module) -> None:
        super().__init__()
        self.clip_model = clip_model


class RISModel(nn.Module):
    """The reference model. `clip_text_tower` also builds CLIP's text tower, which inference never
    runs.
    """

    def __init__(self, config: ModelConfig, *, clip_text_tower: bool = False) -> None:
        super().__init__()
        self.config = config
        width = config.prompt_width
        self.sam = build_sam(config)
        clip = build_clip(config.clip)
        self.clip_dense = _ClipDense(clip if clip_text_tower else _ClipVisual(clip))
        self.text_encoder = build_bert(config)
        self.lang_mlp = nn.Linear(config.bert.width, width)
        self.clip_mlpl = nn.Linear(config.clip.embed_dim, width)
        self.adaptor_clip = PWAMAdaptor(config.clip.width, width)
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
        self.register_buffer(
            "text_embeddings", torch.zeros(config.categories, config.clip.embed_dim)
        )
        self.text_embeddings: Tensor

    # --- the stages ---

    def encode_sam(self, image: Tensor) -> Tensor:
        """image [B, 3, S, S], normalised -> image embeddings [B, C, s, s]
        (docs/reference/models/dfam.md 3).
        """
        return self.sam.image_encoder(image)

    def encode_clip(self, clip_image: Tensor) -> Tensor:
        """clip_image [B, 3, c, c], normalised -> the last block's patch tokens [B, g*g, width]
        (docs/reference/models/dfam.md 4).
        """
        visual: Any = self.clip_dense.clip_model.visual
        patches = visual.conv1(clip_image).flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([class_token, patches], 1) + visual.positional_embedding
        return visual.transformer(visual.ln_pre(tokens))[:, 1:]

    def encode_words(self, input_ids: Tensor) -> tuple[Tensor, Tensor]:
        """input_ids [B, T], 0 is padding -> (BERT states [B, T, width], text features [B, T, C])
        (docs/reference/models/dfam.md 5).
        """
        states = self.text_encoder(
            input_ids, attention_mask=(input_ids != 0).long()
        ).last_hidden_state
        return states, self.lang_mlp(states)

    def dense_embedding(self, dense_prompt: Tensor) -> Tensor:
        """The dense prompt resized to SAM's grid; it replaces `no_mask_embed`
        (docs/reference/models/dfam.md 10).
        """
        size = (self.config.sam.grid,) * 2
        return F.interpolate(
            dense_prompt, size=size, mode=self.config.dense_interpolation, align_corners=False
        )

    def sparse_query(self, text_features: Tensor, category: Tensor | None) -> Tensor:
        """[B, 1, C]: the projected category row or the projected [CLS] state
        (docs/reference/models/dfam.md 9).
        """
        if self.config.query == "cls":
            return text_features[:, :1]
        if category is None:
            raise ValueError("the category variant needs a category index for every expression")
        return self.clip_mlpl(self.text_embeddings[category])[:, None]

    def decode_masks(
        self, image_embeddings: Tensor, dense_embedding: Tensor, sparse_prompt: Tensor
    ) -> Tensor:
        """-> mask logits [B, 1, 4s, 4s], single-mask output (docs/reference/models/dfam.md 11)."""
        positions = self.sam.prompt_encoder.get_dense_pe()
        masks = [
            self.sam.mask_decoder(
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
        """One expression an image: image [B, 3, S, S], clip_image [B, 3, c, c], input_ids [B, T]
        int64, category [B].

        Raises ValueError where the category variant gets no category.
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
        """What `forward` does once the image is encoded: [B, ...] image features and as many
        expressions.
        """
        bert_states, text_features = self.encode_words(input_ids)
        mask = (input_ids != 0).to(text_features)
        fused = self.adaptor_clip.fusion(clip_tokens, text_features, mask)
        pyramid = self.backbone_clip(fused)
        dense_prompt, pixel_maps = self.clip_pixel_decoder(*pyramid)
        dense_embedding = self.dense_embedding(dense_prompt)
        query = self.sparse_query(text_features, category)
        sparse_prompt = self.txt2txt(query, text_features)
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
            mask_logits=self.decode_masks(image_embeddings, dense_embedding, sparse_prompt),
        )
        if self.config.no_target != "none":
            outputs.sam_pyramid = self.backbone_sam(image_embeddings)
            outputs.dfam = self.decoder(outputs.sam_pyramid[::-1], pixel_maps, image_embeddings)
        return outputs


@contextlib.contextmanager
def _no_initialisation() -> Iterator[None]:
    """Modules built inside live on the meta device: no memory, no random numbers."""
    with torch.device("meta"):
        yield


def empty_model(config: ModelConfig, *, clip_text_tower: bool = False) -> RISModel:
    """A model without weights, on the meta device, in eval mode, to be filled with
    `load_state_dict(assign=True)`.

    Buffers that no checkpoint carries are made for real here.
    """
    with _no_initialisation():
        model = RISModel(config, clip_text_tower=clip_text_tower)
    embeddings = model.text_encoder.embeddings
    embeddings.position_ids = torch.arange(config.bert.positions)[None]
    embeddings.token_type_ids = torch.zeros(1, config.bert.positions, dtype=torch.long)
    model.sam.pixel_mean = torch.zeros(3, 1, 1)
    model.sam.pixel_std = torch.ones(3, 1, 1)
    if clip_text_tower:
        clip: Any = model.clip_dense.clip_model
        clip.attn_mask = torch.full((clip.context_length,) * 2, float("-inf")).triu(1)
    return model.eval()
