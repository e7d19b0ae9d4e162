"""The model's configuration, read off the keys and shapes of its weights (docs/guide/checkpoint.md,
What is read off).

A checkpoint that carries its own configuration (`ris_config`) needs none of this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ris.engines.errors import CheckpointError
from ris.reference.config import PRESETS, BertSpec, ClipConfig, ModelConfig, SamConfig

Shapes = Mapping[str, tuple[int, ...]]

_SAM, _VISUAL, _CLIP = (
    "sam.image_encoder.",
    "clip_dense.clip_model.visual.",
    "clip_dense.clip_model.",
)
_BERT, _PIXEL = "text_encoder.", "clip_pixel_decoder.transformer.encoder.layers."
_LEVELS = 3

# depth of the published models by width: a file with fewer blocks lacks some, it is no smaller
# model
_SAM_DEPTHS = {768: 12, 1024: 24, 1280: 32}
_SAM_GLOBAL = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 32: (7, 15, 23, 31)}
_CLIP_DEPTHS = {768: 12, 1024: 24}
_BERT_DEPTHS = {768: 12, 1024: 24}
SAM_NAMES = {(768, 12): "ViT-B", (1024, 24): "ViT-L", (1280, 32): "ViT-H"}


@dataclass(frozen=True)
class _Reader:
    """Shapes with defaults: `size(key, axis, default)`, and the number of blocks below a prefix."""

    shapes: Shapes

    def size(self, key: str, axis: int, default: int) -> int:
        shape = self.shapes.get(key, ())
        return shape[axis] if axis < len(shape) else default

    def blocks(self, prefix: str) -> int:
        found = [
            int(m[1]) for key in self.shapes if (m := re.match(re.escape(prefix) + r"(\d+)\.", key))
        ]
        return max(found, default=-1) + 1

    def any(self, prefix: str) -> bool:
        return any(key.startswith(prefix) for key in self.shapes)


def derive_config(shapes: Shapes, heads: Mapping[str, int] | None = None) -> ModelConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say (heads, the number of tokens) comes from the preset with the same
    widths, else from the published models' rule of 64 channels a head, or from `heads` ("clip",
    "clip_text", "bert"), of a config.json. Parts without any key get the sizes of that preset, and
    are found missing later. Raises CheckpointError where heads cannot be told.
    """
    read = _Reader(shapes)
    base = _base(read)
    width = read.size(_SAM + "neck.0.weight", 0, read.size("lang_mlp.weight", 0, base.prompt_width))
    attention = read.size(_PIXEL + "0.self_attn.attention_weights.weight", 0, 0)
    config = replace(
        _variant(read, base),
        sam=_sam(read, base),
        clip=_clip(read, base, heads or {}),
        bert=_bert(read, base, heads or {}),
        prompt_width=width,
        pyramid_width=read.size("backbone_clip.simfp_3.0.weight", 0, base.pyramid_width),
        deformable_layers=max(
            read.blocks(_PIXEL), base.deformable_layers if base.prompt_width == width else 1
        ),
        deformable_points=attention // (base.heads * _LEVELS) or base.deformable_points,
        ffn_width=read.size(_PIXEL + "0.linear1.weight", 0, base.ffn_width),
        dfam_queries=read.size("decoder.query_feat.weight", 0, base.dfam_queries),
        decoder_mlp_width=read.size(
            "sam.mask_decoder.transformer.layers.0.mlp.lin1.weight", 0, base.decoder_mlp_width
        ),
        categories=read.size("text_embeddings", 0, base.categories),
    )
    return replace(config, preset=preset_name(config))


def preset_name(config: ModelConfig) -> str:
    """The preset that this configuration is a variant of, or "custom"."""
    for name, preset in PRESETS.items():
        alike = replace(
            preset,
            preset=config.preset,
            query=config.query,
            no_target=config.no_target,
            dense_grid=config.dense_grid,
            dense_interpolation=config.dense_interpolation,
            sparse_branch=config.sparse_branch,
        )
        if alike == config:
            return name
    return "custom"


def check_given_config(data: Any, source: object) -> ModelConfig:
    """The configuration that a checkpoint carries. Raises CheckpointError where it is not one."""
    try:
        if not isinstance(data, dict):
            raise TypeError(f"a {type(data).__name__}, not an object")
        config = ModelConfig.from_dict(data)
        for name, kind in get_type_hints(ModelConfig).items():
            if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
                raise ValueError(
                    f"{name} is {getattr(config, name)!r}, not one of {', '.join(get_args(kind))}"
                )
        return config
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its ris_config is not a model configuration ({error}); write the checkpoint"
            " again with this version, or leave ris_config out"
        ) from None


def _base(read: _Reader) -> ModelConfig:
    """The preset whose widths agree with more than half of those that are there; the paper's where
    none does.
    """

    def agreement(config: ModelConfig) -> int:
        return sum(read.size(*place, -1) == value for place, value in _widths(config).items())

    best = max(PRESETS.values(), key=agreement)
    present = sum(read.size(*place, -1) >= 0 for place in _widths(best))
    return best if 2 * agreement(best) > present else PRESETS["vitb-vitl336"]


def _widths(config: ModelConfig) -> dict[tuple[str, int], int]:
    """The widths that tell presets apart, by the key and axis that show them."""
    return {
        (_SAM + "pos_embed", 3): config.sam.width,
        (_VISUAL + "class_embedding", 0): config.clip.width,
        (_BERT + "embeddings.word_embeddings.weight", 1): config.bert.width,
        ("lang_mlp.weight", 0): config.prompt_width,
        ("backbone_clip.simfp_3.0.weight", 0): config.pyramid_width,
        ("decoder.query_feat.weight", 0): config.dfam_queries,
    }


def _variant(read: _Reader, base: ModelConfig) -> ModelConfig:
    """The base in the variant that the keys show (docs/reference/models/dfam.md 1 and 19)."""
    config = replace(base, query="cls", no_target="mlp", sparse_branch="feed_forward")
    if not read.any("decoder.nt_embed."):
        config = config.with_category_query()
    elif not read.any("decoder.nt_embed.layers.1."):
        config = replace(config, no_target="linear")
    if read.any("txt2txt.ca.") and not read.any("txt2txt.fcs."):
        config = replace(config, sparse_branch="additive")
    if read.any("clip_pixel_decoder.") and not read.any("clip_pixel_decoder.adapter_1."):
        return replace(config, dense_grid="clip", dense_interpolation="bilinear")
    return replace(config, dense_grid="doubled", dense_interpolation="bicubic")


def _sam(read: _Reader, base: ModelConfig) -> SamConfig:
    usual = base.sam
    width = read.size(
        _SAM + "pos_embed", 3, read.size(_SAM + "patch_embed.proj.weight", 0, usual.width)
    )
    patch = read.size(_SAM + "patch_embed.proj.weight", 2, usual.patch_size)
    grid = read.size(_SAM + "pos_embed", 1, usual.grid)
    same = width == usual.width
    depth = max(read.blocks(_SAM + "blocks."), usual.depth if same else _SAM_DEPTHS.get(width, 1))
    tables = {i: read.size(f"{_SAM}blocks.{i}.attn.rel_pos_h", 0, 0) for i in range(depth)}
    everywhere = tuple(i for i, length in tables.items() if length == 2 * grid - 1)
    windows = {(length + 1) // 2 for i, length in tables.items() if length and i not in everywhere}
    published = usual.global_blocks if same and depth == usual.depth else _SAM_GLOBAL.get(depth, ())
    per_head = next(
        (read.size(f"{_SAM}blocks.{i}.attn.rel_pos_h", 1, 0) for i, n in tables.items() if n), 0
    )
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=(
            width // per_head
            if per_head
            else usual.heads
            if same
            else _heads(width, "SAM's image encoder")
        ),
        window=min(windows, default=usual.window),
        # a block whose table is missing is what the published model of this depth has there
        global_blocks=tuple(sorted({*everywhere, *(i for i in published if not tables.get(i))})),
    )


def _clip(read: _Reader, base: ModelConfig, heads: Mapping[str, int]) -> ClipConfig:
    usual = base.clip
    width = read.size(
        _VISUAL + "class_embedding", 0, read.size(_VISUAL + "conv1.weight", 0, usual.width)
    )
    patch = read.size(_VISUAL + "conv1.weight", 2, usual.patch_size)
    positions = read.size(_VISUAL + "positional_embedding", 0, usual.grid**2 + 1)
    text_width = read.size(_CLIP + "token_embedding.weight", 1, usual.text_width)
    same, same_text = width == usual.width, text_width == usual.text_width
    text_layers = read.blocks(_CLIP + "transformer.resblocks.")
    return ClipConfig(
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=max(
            read.blocks(_VISUAL + "transformer.resblocks."),
            usual.layers if same else _CLIP_DEPTHS.get(width, 1),
        ),
        heads=heads.get("clip") or (usual.heads if same else _heads(width, "CLIP's image tower")),
        embed_dim=_embed_dim(read, usual.embed_dim),
        text_width=text_width,
        text_layers=max(text_layers, usual.text_layers if same_text else 1),
        text_heads=heads.get("clip_text")
        or (usual.text_heads if same_text else _heads(text_width, "CLIP's text")),
        text_vocab_size=read.size(_CLIP + "token_embedding.weight", 0, usual.text_vocab_size),
    )


def _embed_dim(read: _Reader, default: int) -> int:
    """The width of CLIP's text vectors: what the trained part takes, else what CLIP gives."""
    for key in ("clip_mlpl.weight", "text_embeddings", _VISUAL + "proj", _CLIP + "text_projection"):
        if found := read.size(key, 1, 0):
            return found
    return default


def _bert(read: _Reader, base: ModelConfig, heads: Mapping[str, int]) -> BertSpec:
    usual = base.bert
    width = read.size(_BERT + "embeddings.word_embeddings.weight", 1, usual.width)
    same = width == usual.width
    return BertSpec(
        vocab_size=read.size(_BERT + "embeddings.word_embeddings.weight", 0, usual.vocab_size),
        width=width,
        layers=max(
            read.blocks(_BERT + "encoder.layer."),
            usual.layers if same else _BERT_DEPTHS.get(width, 1),
        ),
        heads=heads.get("bert") or (usual.heads if same else _heads(width, "BERT")),
        mlp_width=read.size(
            _BERT + "encoder.layer.0.intermediate.dense.weight", 0, usual.mlp_width
        ),
        positions=read.size(_BERT + "embeddings.position_embeddings.weight", 0, usual.positions),
    )


def _heads(width: int, what: str) -> int:
    if width % 64:
        raise CheckpointError(
            f"{what} is {width} wide: the number of attention heads cannot be told from the"
            " weights; the checkpoint has to carry it (its entry ris_config)"
        )
    return width // 64


def describe_encoder(prefix: str, shapes: Shapes) -> str:
    """An image encoder in words, "SAM ViT-L (1024 wide, 24 blocks)", from the keys below its
    prefix.
    """
    read = _Reader(shapes)
    if prefix == _SAM:
        found = read.size(_SAM + "pos_embed", 3, 0), read.blocks(_SAM + "blocks.")
        return f"SAM {SAM_NAMES.get(found, 'ViT')} ({found[0]} wide, {found[1]} blocks)"
    width, layers = (
        read.size(_VISUAL + "class_embedding", 0, 0),
        read.blocks(_VISUAL + "transformer.resblocks."),
    )
    patch, positions = (
        read.size(_VISUAL + "conv1.weight", 2, 0),
        read.size(_VISUAL + "positional_embedding", 0, 1),
    )
    return f"CLIP ({width} wide, {layers} blocks, {round((positions - 1) ** 0.5) * patch} pixels)"
