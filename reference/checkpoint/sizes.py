"""The model's configuration, read off the keys and shapes of its weights.

docs/reference/checkpoints.md, What is read off, has the rules. A checkpoint that carries its own
configuration (`ris_config`) needs none of this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted, reason_of
from ris.reference.checkpoint.names import BERT, CLIP, CLIP_VISUAL, SAM_ENCODER, TABLE
from ris.reference.config import PRESETS, BertSpec, ClipConfig, ModelConfig, SamConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by the whole model's key names."""

_PIXEL = "clip_pixel_decoder.transformer.encoder.layers."
_LEVELS = 3  # of the pixel decoder

# what makes a variant of a preset; everything else is its sizes
_VARIANT = ("preset", "query", "no_target", "dense_grid", "dense_interpolation", "sparse_branch")


class _PublishedSam(NamedTuple):
    """A SAM image encoder that Meta has published."""

    name: str
    """The encoder in words."""

    width: int
    """Channels of the transformer."""

    depth: int
    """Number of blocks."""

    global_blocks: tuple[int, ...]
    """Indices of the blocks that attend to the whole image."""


_PUBLISHED_SAMS = (
    _PublishedSam("ViT-B", 768, 12, (2, 5, 8, 11)),
    _PublishedSam("ViT-L", 1024, 24, (5, 11, 17, 23)),
    _PublishedSam("ViT-H", 1280, 32, (7, 15, 23, 31)),
)
# depth of the published models by width: a file with fewer blocks lacks some, it is no smaller
# model
_SAM_DEPTHS = {sam.width: sam.depth for sam in _PUBLISHED_SAMS}
_SAM_GLOBAL = {sam.depth: sam.global_blocks for sam in _PUBLISHED_SAMS}
_CLIP_DEPTHS = {768: 12, 1024: 24}
_BERT_DEPTHS = {768: 12, 1024: 24}

_MOST_BLOCKS = 256
_LARGEST_SIZE = 1 << 20
_COUNTS_OF_BLOCKS = ("depth", "layers", "text_layers", "deformable_layers", "global_blocks")


@dataclass(frozen=True)
class _Reader:
    """Questions to the shapes, with defaults for keys that are not there."""

    shapes: Shapes
    """What the weights have."""

    def size(self, key: str, axis: int, default: int) -> int:
        """A tensor's size along an axis."""
        shape = self.shapes.get(key, ())
        return shape[axis] if axis < len(shape) else default

    def blocks(self, prefix: str) -> int:
        """How many numbered blocks there are below a prefix, gaps counted.

        Raises CheckpointError for more than a model can have.
        """
        number = re.compile(re.escape(prefix) + r"(\d{1,9})\.")
        found = [int(match[1]) for key in self.shapes if (match := number.match(key))]
        count = max(found, default=-1) + 1
        if count > _MOST_BLOCKS:
            raise CheckpointError(
                f"the weights have a block {prefix}{count - 1}, no model has more than"
                f" {_MOST_BLOCKS}; expected the weights of one model"
            )
        return count

    def has(self, prefix: str) -> bool:
        """Whether there is any key below a prefix."""
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
    text_width = read.size("lang_mlp.weight", 0, base.prompt_width)
    width = read.size(SAM_ENCODER + "neck.0.weight", 0, text_width)
    least = base.deformable_layers if base.prompt_width == width else 1
    # of one layer: a weight for each head, level and point
    weights = read.size(_PIXEL + "0.self_attn.attention_weights.weight", 0, 0)
    decoder_mlp = "sam.mask_decoder.transformer.layers.0.mlp.lin1.weight"
    config = replace(
        _variant(read, base),
        sam=_sam(read, base.sam),
        clip=_clip(read, base.clip, heads or {}),
        bert=_bert(read, base.bert, heads or {}),
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
    """The configuration that a checkpoint carries. Raises CheckpointError where it is not one."""
    try:
        if not isinstance(data, dict):
            raise TypeError(f"a {type(data).__name__}, not an object")
        config = ModelConfig.from_dict(data)
        for name, kind in get_type_hints(ModelConfig).items():
            if get_origin(kind) is Literal and getattr(config, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                found = quoted(getattr(config, name))
                raise ValueError(f"{name} is {found}, not one of {choices}")
        for part in (config, config.sam, config.clip, config.bert):
            _check_sizes(part)
        return config
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its ris_config is not a model configuration ({reason_of(error)}); write the"
            " checkpoint again with this version, or leave ris_config out"
        ) from None


def _check_sizes(part: Any) -> None:
    """Raises TypeError for a size of another kind, ValueError for one that no model has."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if kind is str and not isinstance(value, str):
            raise TypeError(f"{name} is {quoted(value)}, not text")
        sizes = (value,) if kind is int else value if name == "global_blocks" else ()
        if not isinstance(sizes, tuple) or any(type(size) is not int for size in sizes):
            raise TypeError(f"{name} is {quoted(value)}, not a whole number")
        most = _MOST_BLOCKS if name in _COUNTS_OF_BLOCKS else _LARGEST_SIZE
        if not all(0 <= size <= most for size in sizes):
            raise ValueError(f"{name} is {quoted(value)}, not from 0 to {most}")


def _base(read: _Reader) -> ModelConfig:
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


def _variant(read: _Reader, base: ModelConfig) -> ModelConfig:
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


def _sam(read: _Reader, usual: SamConfig) -> SamConfig:
    """SAM's image encoder; `usual` is the base's."""
    patches = SAM_ENCODER + "patch_embed.proj.weight"
    positions = SAM_ENCODER + "pos_embed"
    width = read.size(positions, 3, read.size(patches, 0, usual.width))
    patch = read.size(patches, 2, usual.patch_size)
    grid = read.size(positions, 1, usual.grid)
    same = width == usual.width
    least = usual.depth if same else _SAM_DEPTHS.get(width, 1)
    depth = max(read.blocks(SAM_ENCODER + "blocks."), least)

    # a block's table of relative positions, of length 2n - 1, shows how far it attends: n patches
    keys = [f"{SAM_ENCODER}blocks.{i}.attn.rel_pos_h" for i in range(depth)]
    lengths = [read.size(key, 0, 0) for key in keys]
    everywhere = {i for i, length in enumerate(lengths) if length == 2 * grid - 1}
    windows = {(n + 1) // 2 for i, n in enumerate(lengths) if n and i not in everywhere}
    # a block whose table is missing is what the published model of this depth has there
    as_usual = same and depth == usual.depth
    published = usual.global_blocks if as_usual else _SAM_GLOBAL.get(depth, ())
    lost = {i for i in published if not lengths[i]}

    per_head = next(
        (read.size(key, 1, 0) for key, length in zip(keys, lengths, strict=True) if length), 0
    )
    if per_head:
        heads = width // per_head
    else:
        heads = usual.heads if same else _heads(width, "SAM's image encoder")
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=heads,
        window=min(windows, default=usual.window),
        global_blocks=tuple(sorted(everywhere | lost)),
    )


def _clip(read: _Reader, usual: ClipConfig, heads: Mapping[str, int]) -> ClipConfig:
    """CLIP's two towers; `usual` is the base's, `heads` those of a config.json."""
    patches = CLIP_VISUAL + "conv1.weight"
    tokens = CLIP + "token_embedding.weight"
    width = read.size(CLIP_VISUAL + "class_embedding", 0, read.size(patches, 0, usual.width))
    patch = read.size(patches, 2, usual.patch_size)
    positions = read.size(CLIP_VISUAL + "positional_embedding", 0, usual.grid**2 + 1)
    text_width = read.size(tokens, 1, usual.text_width)

    same, same_text = width == usual.width, text_width == usual.text_width
    layers = read.blocks(CLIP_VISUAL + "transformer.resblocks.")
    text_layers = read.blocks(CLIP + "transformer.resblocks.")
    own = heads.get("clip") or (usual.heads if same else _heads(width, "CLIP's image tower"))
    text = heads.get("clip_text") or (
        usual.text_heads if same_text else _heads(text_width, "CLIP's text")
    )
    return ClipConfig(
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=max(layers, usual.layers if same else _CLIP_DEPTHS.get(width, 1)),
        heads=own,
        embed_dim=_embed_dim(read, usual.embed_dim),
        text_width=text_width,
        text_layers=max(text_layers, usual.text_layers if same_text else 1),
        text_heads=text,
        text_vocab_size=read.size(tokens, 0, usual.text_vocab_size),
    )


def _embed_dim(read: _Reader, default: int) -> int:
    """The width of CLIP's text vectors: what the trained part takes, else what CLIP gives."""
    trained = ("clip_mlpl.weight", TABLE)
    for key in (*trained, CLIP_VISUAL + "proj", CLIP + "text_projection"):
        if found := read.size(key, 1, 0):
            return found
    return default


def _bert(read: _Reader, usual: BertSpec, heads: Mapping[str, int]) -> BertSpec:
    """BERT; `usual` is the base's, `heads` those of a config.json."""
    words = BERT + "embeddings.word_embeddings.weight"
    hidden = BERT + "encoder.layer.0.intermediate.dense.weight"
    positions = BERT + "embeddings.position_embeddings.weight"
    width = read.size(words, 1, usual.width)
    same = width == usual.width
    least = usual.layers if same else _BERT_DEPTHS.get(width, 1)
    return BertSpec(
        vocab_size=read.size(words, 0, usual.vocab_size),
        width=width,
        layers=max(read.blocks(BERT + "encoder.layer."), least),
        heads=heads.get("bert") or (usual.heads if same else _heads(width, "BERT")),
        mlp_width=read.size(hidden, 0, usual.mlp_width),
        positions=read.size(positions, 0, usual.positions),
    )


def _heads(width: int, what: str) -> int:
    """The attention heads of the published models of this width: 64 channels a head."""
    if width % 64:
        raise CheckpointError(
            f"{what} is {width} wide: the number of attention heads cannot be told from the"
            " weights; the checkpoint has to carry it (its entry ris_config)"
        )
    return width // 64


def describe_encoder(prefix: str, shapes: Shapes) -> str:
    """An image encoder in words, "SAM ViT-L (1024 wide, 24 blocks)".

    prefix is SAM's or CLIP's, and all that is read of the shapes is below it.
    """
    read = _Reader(shapes)
    if prefix == SAM_ENCODER:
        width = read.size(SAM_ENCODER + "pos_embed", 3, 0)
        blocks = read.blocks(SAM_ENCODER + "blocks.")
        names = {(sam.width, sam.depth): sam.name for sam in _PUBLISHED_SAMS}
        return f"SAM {names.get((width, blocks), 'ViT')} ({width} wide, {blocks} blocks)"

    width = read.size(CLIP_VISUAL + "class_embedding", 0, 0)
    blocks = read.blocks(CLIP_VISUAL + "transformer.resblocks.")
    patch = read.size(CLIP_VISUAL + "conv1.weight", 2, 0)
    positions = read.size(CLIP_VISUAL + "positional_embedding", 0, 1)
    pixels = round((positions - 1) ** 0.5) * patch
    return f"CLIP ({width} wide, {blocks} blocks, {pixels} pixels)"
