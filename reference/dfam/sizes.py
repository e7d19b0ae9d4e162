"""The model's configuration, read off the keys and shapes of its weights.

docs/reference/checkpoints.md, What is read off, has the rules. A checkpoint that carries its own
configuration (`ris_config`) needs none of this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ris.reference.checkpoint.carried import read_named
from ris.reference.checkpoint.encoders import ShapeReader, Shapes, read_bert, read_clip, read_sam
from ris.reference.dfam.config import PRESETS, ModelConfig
from ris.reference.dfam.keys import BERT, CLIP, CLIP_VISUAL, SAM_DECODER, SAM_ENCODER, TABLE
from ris.reference.layers.encoder_sizes import ClipConfig

_PIXEL = "clip_pixel_decoder.transformer.encoder.layers."
_LEVELS = 3  # of the pixel decoder

# what makes a variant of a preset; everything else is its sizes
_VARIANT = ("preset", "query", "no_target", "dense_grid", "dense_interpolation", "sparse_branch")


def derive_config(shapes: Shapes, heads: Mapping[str, int] | None = None) -> ModelConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say (heads, the number of tokens) comes from the preset with the same
    widths, else from the published models' rule of 64 channels a head, or from `heads` ("clip",
    "clip_text", "bert"), of a config.json. Parts without any key get the sizes of that preset, and
    are found missing later. Raises CheckpointError where heads cannot be told.
    """
    read = ShapeReader(shapes)
    base = _base(read)
    text_width = read.size("lang_mlp.weight", 0, base.prompt_width)
    width = read.size(SAM_ENCODER + "neck.0.weight", 0, text_width)
    least = base.deformable_layers if base.prompt_width == width else 1
    # of one layer: a weight for each head, level and point
    weights = read.size(_PIXEL + "0.self_attn.attention_weights.weight", 0, 0)
    decoder_mlp = f"{SAM_DECODER}transformer.layers.0.mlp.lin1.weight"
    config = replace(
        _variant(read, base),
        sam=read_sam(read, SAM_ENCODER, base.sam),
        clip=_clip(read, base.clip, heads or {}),
        bert=read_bert(read, BERT, base.bert, heads or {}),
        prompt_width=width,
        pyramid_width=read.size("backbone_clip.simfp_3.0.weight", 0, base.pyramid_width),
        deformable_layers=max(read.blocks(_PIXEL), least),
        deformable_points=weights // (base.heads * _LEVELS) or base.deformable_points,
        ffn_width=read.size(_PIXEL + "0.linear1.weight", 0, base.ffn_width),
        dfam_queries=read.size("decoder.query_feat.weight", 0, base.dfam_queries),
        decoder_mlp_width=read.size(decoder_mlp, 0, base.decoder_mlp_width),
        categories=read.size(TABLE, 0, base.categories),
    )
    return replace(config, preset=preset_name(config))


def preset_name(config: ModelConfig) -> str:
    """The preset that this configuration is a variant of, or "custom"."""
    variant = {name: getattr(config, name) for name in _VARIANT}
    alike = (name for name, preset in PRESETS.items() if replace(preset, **variant) == config)
    return next(alike, "custom")


def check_given_config(data: Any, source: object) -> ModelConfig:
    """The configuration that a checkpoint or a manifest carries, under the name of its sizes.

    Sizes of no preset keep a name of their own. Raises CheckpointError where it is none.
    """
    return read_named(ModelConfig, data, source, PRESETS, preset_name)


def _base(read: ShapeReader) -> ModelConfig:
    """The preset whose widths agree with more than half of those that are there.

    The paper's where none does.
    """

    def agreement(config: ModelConfig) -> int:
        return sum(read.size(*place, -1) == value for place, value in _widths(config).items())

    best = max(PRESETS.values(), key=agreement)
    present = sum(read.size(*place, -1) >= 0 for place in _widths(best))
    return best if 2 * agreement(best) > present else PRESETS["vitb-vitl336"]


def _widths(config: ModelConfig) -> dict[tuple[str, int], int]:
    """The widths that tell presets apart, by the key and axis that show them."""
    return {
        (SAM_ENCODER + "pos_embed", 3): config.sam.width,
        (CLIP_VISUAL + "class_embedding", 0): config.clip.width,
        (BERT + "embeddings.word_embeddings.weight", 1): config.bert.width,
        ("lang_mlp.weight", 0): config.prompt_width,
        ("backbone_clip.simfp_3.0.weight", 0): config.pyramid_width,
        ("decoder.query_feat.weight", 0): config.dfam_queries,
    }


def _variant(read: ShapeReader, base: ModelConfig) -> ModelConfig:
    """The base in the variant that the keys show (docs/reference/models/dfam.md 1 and 19)."""
    config = replace(base, query="cls", no_target="mlp", sparse_branch="feed_forward")
    if not read.has("decoder.nt_embed."):
        config = config.with_category_query()
    elif not read.has("decoder.nt_embed.layers.1."):
        config = replace(config, no_target="linear")
    if read.has("txt2txt.ca.") and not read.has("txt2txt.fcs."):
        config = replace(config, sparse_branch="additive")
    if read.has("clip_pixel_decoder.") and not read.has("clip_pixel_decoder.adapter_1."):
        return replace(config, dense_grid="clip", dense_interpolation="bilinear")
    return replace(config, dense_grid="doubled", dense_interpolation="bicubic")


def _clip(read: ShapeReader, usual: ClipConfig, heads: Mapping[str, int]) -> ClipConfig:
    """CLIP's two towers; the width of its text vectors is what the trained part takes."""
    found = read_clip(read, CLIP, usual, heads)
    taken = read.size("clip_mlpl.weight", 1, 0) or read.size(TABLE, 1, 0)
    return replace(found, embed_dim=taken or found.embed_dim)
