"""The model's configuration, read off the keys and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.carried import read_named
from ris.reference.checkpoint.encoders import ShapeReader, Shapes, read_bert, read_swin
from ris.reference.rela.config import PRESETS, RelaConfig
from ris.reference.rela.keys import BACKBONE, BERT, PIXELS, REGIONS
from ris.reference.rela.regions import LEVELS

_PATCHES = f"{BACKBONE}patch_embed.proj.weight"
_PIXEL_LAYERS = f"{PIXELS}transformer.encoder.layers."
_RESNET = f"{BACKBONE}stem.conv1."


def derive_config(shapes: Shapes, heads: Mapping[str, int]) -> RelaConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say (the image's side, the number of tokens, heads of the decoders) comes
    from the preset whose backbone is as wide, else from the first. Parts without any key get the
    sizes of that preset, and are found missing later. Raises CheckpointError for a ResNet, and
    where BERT's heads cannot be told.
    """
    read = ShapeReader(shapes)
    if read.has(_RESNET):
        raise CheckpointError(
            "it is a ReLA with a ResNet-50, which this version does not run; give the checkpoint of"
            " a Swin (gres_swin_base.pth, gres_swin_tiny.pth)"
        )
    width = read.size(_PATCHES, 0, 0)
    first = next(iter(PRESETS.values()))
    base = next((one for one in PRESETS.values() if one.swin.width == width), first)
    # of one layer: a weight for each head, level and point
    weights = read.size(f"{_PIXEL_LAYERS}0.self_attn.attention_weights.weight", 0, 0)
    same = width == base.swin.width
    config = replace(
        base,
        swin=read_swin(read, BACKBONE, base.swin),
        bert=read_bert(read, BERT, base.bert, heads),
        width=read.size(f"{PIXELS}mask_features.weight", 0, base.width),
        deformable_layers=max(read.blocks(_PIXEL_LAYERS), base.deformable_layers if same else 1),
        deformable_points=weights // (base.heads * LEVELS) or base.deformable_points,
        ffn_width=read.size(f"{_PIXEL_LAYERS}0.linear1.weight", 0, base.ffn_width),
        regions=read.size(f"{REGIONS}query_feat.weight", 0, base.regions),
        region_layers=max(read.blocks(f"{REGIONS}RIA_layers."), base.region_layers if same else 1),
        region_ffn_width=read.size(
            f"{REGIONS}transformer_ffn_layers.0.linear1.weight", 0, base.region_ffn_width
        ),
    )
    return replace(config, preset=preset_name(config))


def preset_name(config: RelaConfig) -> str:
    """The preset with these sizes, or "custom"."""
    sizes = replace(config, preset="", lang_weight="zero")
    alike = (name for name, preset in PRESETS.items() if replace(preset, preset="") == sizes)
    return next(alike, "custom")


def check_given_config(data: Any, source: object) -> RelaConfig:
    """The configuration that a checkpoint or a manifest carries, under the name of its sizes.

    Sizes of no preset keep a name of their own. Raises CheckpointError where it is none.
    """
    return read_named(RelaConfig, data, source, PRESETS, preset_name)
