"""The sizes of SAM, CLIP, BERT and Swin, read off the keys and shapes of their weights.

Every family that holds one of them reads it here, below its own prefix.
docs/reference/checkpoints.md, What is read off, has the rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ris.engines.errors import CheckpointError
from ris.reference.layers.encoder_sizes import BertSpec, ClipConfig, SamConfig, SwinConfig

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of tensors by the whole model's key names."""

MOST_BLOCKS = 256
"""The most numbered blocks that a model may have."""


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


@dataclass(frozen=True)
class ShapeReader:
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
        if count > MOST_BLOCKS:
            raise CheckpointError(
                f"the weights have a block {prefix}{count - 1}, no model has more than"
                f" {MOST_BLOCKS}; expected the weights of one model"
            )
        return count

    def has(self, prefix: str) -> bool:
        """Whether there is any key below a prefix."""
        return any(key.startswith(prefix) for key in self.shapes)


def read_sam(read: ShapeReader, prefix: str, usual: SamConfig) -> SamConfig:
    """The sizes of SAM's image encoder.

    Args:
        read: The shapes.
        prefix: What the encoder's keys begin with.
        usual: The sizes of the parts without any key.

    Raises:
        CheckpointError: Where heads cannot be told.
    """
    patches = prefix + "patch_embed.proj.weight"
    positions = prefix + "pos_embed"
    width = read.size(positions, 3, read.size(patches, 0, usual.width))
    patch = read.size(patches, 2, usual.patch_size)
    grid = read.size(positions, 1, usual.grid)
    same = width == usual.width
    least = usual.depth if same else _SAM_DEPTHS.get(width, 1)
    depth = max(read.blocks(prefix + "blocks."), least)

    # a block's table of relative positions, of length 2n - 1, shows how far it attends: n patches
    keys = [f"{prefix}blocks.{i}.attn.rel_pos_h" for i in range(depth)]
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
        heads = usual.heads if same else usual_heads(width, "SAM's image encoder")
    return SamConfig(
        image_size=grid * patch,
        patch_size=patch,
        width=width,
        depth=depth,
        heads=heads,
        window=min(windows, default=usual.window),
        global_blocks=tuple(sorted(everywhere | lost)),
    )


def read_clip(
    read: ShapeReader, prefix: str, usual: ClipConfig, heads: Mapping[str, int]
) -> ClipConfig:
    """The sizes of CLIP's two towers.

    Args:
        read: The shapes.
        prefix: What the keys of both towers begin with.
        usual: The sizes of the parts without any key.
        heads: The attention heads that a config.json tells, of "clip" and "clip_text".

    Raises:
        CheckpointError: Where heads cannot be told.
    """
    visual = f"{prefix}visual."
    patches = f"{visual}conv1.weight"
    tokens = f"{prefix}token_embedding.weight"
    width = read.size(visual + "class_embedding", 0, read.size(patches, 0, usual.width))
    patch = read.size(patches, 2, usual.patch_size)
    positions = read.size(visual + "positional_embedding", 0, usual.grid**2 + 1)
    text_width = read.size(tokens, 1, usual.text_width)

    same, same_text = width == usual.width, text_width == usual.text_width
    layers = read.blocks(visual + "transformer.resblocks.")
    text_layers = read.blocks(prefix + "transformer.resblocks.")
    own = heads.get("clip") or (usual.heads if same else usual_heads(width, "CLIP's image tower"))
    text = heads.get("clip_text") or (
        usual.text_heads if same_text else usual_heads(text_width, "CLIP's text")
    )
    return ClipConfig(
        image_size=round((positions - 1) ** 0.5) * patch,
        patch_size=patch,
        width=width,
        layers=max(layers, usual.layers if same else _CLIP_DEPTHS.get(width, 1)),
        heads=own,
        embed_dim=read.size(visual + "proj", 1, 0)
        or read.size(prefix + "text_projection", 1, usual.embed_dim),
        text_width=text_width,
        text_layers=max(text_layers, usual.text_layers if same_text else 1),
        text_heads=text,
        text_vocab_size=read.size(tokens, 0, usual.text_vocab_size),
    )


def read_bert(
    read: ShapeReader, prefix: str, usual: BertSpec, heads: Mapping[str, int]
) -> BertSpec:
    """The sizes of BERT.

    Args:
        read: The shapes.
        prefix: What its keys begin with.
        usual: The sizes of the parts without any key.
        heads: The attention heads that a config.json tells, of "bert".

    Raises:
        CheckpointError: Where heads cannot be told.
    """
    words = prefix + "embeddings.word_embeddings.weight"
    hidden = prefix + "encoder.layer.0.intermediate.dense.weight"
    positions = prefix + "embeddings.position_embeddings.weight"
    width = read.size(words, 1, usual.width)
    same = width == usual.width
    least = usual.layers if same else _BERT_DEPTHS.get(width, 1)
    return BertSpec(
        vocab_size=read.size(words, 0, usual.vocab_size),
        width=width,
        layers=max(read.blocks(prefix + "encoder.layer."), least),
        heads=heads.get("bert") or (usual.heads if same else usual_heads(width, "BERT")),
        mlp_width=read.size(hidden, 0, usual.mlp_width),
        positions=read.size(positions, 0, usual.positions),
    )


def read_swin(read: ShapeReader, prefix: str, usual: SwinConfig) -> SwinConfig:
    """The sizes of a Swin; a stage has at least as many blocks as `usual` where that is as wide.

    Args:
        read: The shapes.
        prefix: What its keys begin with.
        usual: The sizes of the parts without any key.
    """
    patches = f"{prefix}patch_embed.proj.weight"
    width = read.size(patches, 0, usual.width)
    least = usual.depths if width == usual.width else (1,) * len(usual.depths)
    depths, heads, rows = [], [], 0
    for stage, fewest in enumerate(least):
        blocks = f"{prefix}layers.{stage}.blocks."
        depths.append(max(read.blocks(blocks), fewest))
        table = f"{blocks}0.attn.relative_position_bias_table"
        heads.append(read.size(table, 1, usual.heads[stage]))
        rows = rows or read.size(table, 0, 0)
    # a table has a row for each of (2w - 1)**2 offsets
    window = (round(rows**0.5) + 1) // 2 if rows else usual.window
    patch = read.size(patches, 2, usual.patch_size)
    return SwinConfig(patch, width, tuple(depths), tuple(heads), window)


def usual_heads(width: int, what: str) -> int:
    """The attention heads of the published models of this width: 64 channels a head."""
    if width % 64:
        raise CheckpointError(
            f"{what} is {width} wide: the number of attention heads cannot be told from the"
            " weights; the checkpoint has to carry it (its entry ris_config)"
        )
    return width // 64


def describe_sam(shapes: Shapes, prefix: str) -> str:
    """SAM's image encoder in words, "SAM ViT-L (1024 wide, 24 blocks)".

    prefix: what its keys begin with.
    """
    read = ShapeReader(shapes)
    width = read.size(prefix + "pos_embed", 3, 0)
    blocks = read.blocks(prefix + "blocks.")
    names = {(sam.width, sam.depth): sam.name for sam in _PUBLISHED_SAMS}
    return f"SAM {names.get((width, blocks), 'ViT')} ({width} wide, {blocks} blocks)"


def describe_clip(shapes: Shapes, prefix: str) -> str:
    """CLIP's image tower in words, "CLIP (1024 wide, 24 blocks, 336 pixels)".

    prefix: what its keys begin with.
    """
    read = ShapeReader(shapes)
    width = read.size(prefix + "class_embedding", 0, 0)
    blocks = read.blocks(prefix + "transformer.resblocks.")
    patch = read.size(prefix + "conv1.weight", 2, 0)
    positions = read.size(prefix + "positional_embedding", 0, 1)
    pixels = round((positions - 1) ** 0.5) * patch
    return f"CLIP ({width} wide, {blocks} blocks, {pixels} pixels)"
