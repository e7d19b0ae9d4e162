"""SAM, CLIP and BERT of given sizes, from their libraries.

Sections 3, 4, 5, 10 and 11 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from functools import partial

import torch
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

from ris.reference.layers.encoder_sizes import BertSpec, ClipConfig, SamConfig


def build_sam(sam: SamConfig, width: int, heads: int, decoder_mlp_width: int) -> Sam:
    """Meta's SAM, from the segment_anything package.

    Args:
        sam: Sizes of its image encoder.
        width: Channels of its embeddings and prompts.
        heads: Attention heads of its mask decoder.
        decoder_mlp_width: Hidden channels of the feed-forward layers of its mask decoder.
    """
    return Sam(
        ImageEncoderViT(
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
        PromptEncoder(
            embed_dim=width,
            image_embedding_size=(sam.grid, sam.grid),
            input_image_size=(sam.image_size, sam.image_size),
            mask_in_chans=16,
        ),
        MaskDecoder(
            transformer_dim=width,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=width,
                num_heads=heads,
                mlp_dim=decoder_mlp_width,
            ),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=width,
        ),
    )


def build_clip(config: ClipConfig) -> CLIP:
    """OpenAI's CLIP (QuickGELU) of these sizes, both towers, from open_clip."""
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


def empty_clip(config: ClipConfig) -> CLIP:
    """`build_clip` on the meta device: shapes, no memory and no random numbers."""
    with torch.device("meta"):
        return build_clip(config)


def causal_mask(length: int) -> Tensor:
    """The attention mask of CLIP's text tower, [length, length], which no checkpoint carries."""
    return torch.full((length, length), float("-inf")).triu(1)


def fill_buffers(bert: BertModel) -> None:
    """Puts real buffers, which no checkpoint carries, into a BERT on the meta device."""
    positions = bert.config.max_position_embeddings
    bert.embeddings.position_ids = torch.arange(positions)[None]
    bert.embeddings.token_type_ids = torch.zeros(1, positions, dtype=torch.long)


def run_bert(bert: BertModel, input_ids: Tensor) -> Tensor:
    """input_ids [N, T], 0 is padding -> BERT's states [N, T, width]."""
    real = (input_ids != 0).long()
    return bert(input_ids, attention_mask=real).last_hidden_state


def build_bert(bert: BertSpec) -> BertModel:
    """BERT of these sizes without pooler, eager attention, no dropout, from transformers."""
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
