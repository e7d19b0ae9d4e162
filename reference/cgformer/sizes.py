"""The model's configuration, read off the keys and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ris.engines.errors import CheckpointError
from ris.reference.cgformer.config import PRESETS, CgformerConfig
from ris.reference.cgformer.keys import BACKBONE, BERT, DECODER
from ris.reference.checkpoint.carried import read_named
from ris.reference.checkpoint.encoders import ShapeReader, Shapes, read_bert, read_swin

_COARSEST = f"{DECODER}layers.0.positional_embedding"
_READERS = [f"{DECODER}layers.{level}.loadtoken." for level in (1, 2)]


def derive_config(shapes: Shapes, heads: Mapping[str, int]) -> CgformerConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say (the number of tokens, heads of PWAM) comes from the preset whose
    backbone is as wide, else from the first. Parts without any key get the sizes of that preset,
    and are found missing later. Raises CheckpointError for tokens that read the words in another
    way, and where BERT's heads cannot be told.
    """
    read = ShapeReader(shapes)
    for reader in _READERS:
        if read.has(reader) and not read.has(f"{reader}mlp."):
            raise CheckpointError(
                f"it is a CGFormer whose word readers have no MLP ({reader}mlp.*): both tokens read"
                " the words there, which this version does not run; give a checkpoint of the"
                " published configuration, config/config.yaml"
            )
    width = read.size(f"{BACKBONE}patch_embed.proj.weight", 0, 0)
    first = next(iter(PRESETS.values()))
    base = next((one for one in PRESETS.values() if one.swin.width == width), first)
    swin = read_swin(read, BACKBONE, base.swin)
    config = replace(
        base,
        image_size=_image_size(read, swin.patch_size) or base.image_size,
        swin=swin,
        bert=read_bert(read, BERT, base.bert, heads),
        width=read.size(f"{DECODER}tokens.weight", 1, base.width),
        mlp_width=read.size(f"{DECODER}cgattention1.mlp.fc1.weight", 0, base.mlp_width),
    )
    return replace(config, preset=preset_name(config))


def _image_size(read: ShapeReader, patch_size: int) -> int:
    """The input's side in pixels, of the coarsest map's places; 0 where it cannot be told.

    That map's grid is a quarter of the grid of patches.
    """
    return round(read.size(_COARSEST, 0, 0) ** 0.5) * 4 * patch_size


def preset_name(config: CgformerConfig) -> str:
    """The preset with these sizes, or "custom"."""
    sizes = replace(config, preset="", assignment="expected")
    alike = (name for name, preset in PRESETS.items() if replace(preset, preset="") == sizes)
    return next(alike, "custom")


def check_given_config(data: Any, source: object) -> CgformerConfig:
    """The configuration that a checkpoint or a manifest carries, under the name of its sizes.

    Sizes of no preset keep a name of their own. Raises CheckpointError where it is none.
    """
    return read_named(CgformerConfig, data, source, PRESETS, preset_name)
