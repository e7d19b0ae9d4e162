"""The model's configuration, read off the keys and shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.carried import read_named
from ris.reference.checkpoint.encoders import ShapeReader, Shapes, read_sam, usual_heads
from ris.reference.evfsam.config import (
    FIRST_POSITION,
    PRESETS,
    Beit3Config,
    EvfsamConfig,
    Version,
)
from ris.reference.evfsam.hiera_sizes import HieraSizes
from ris.reference.evfsam.keys import (
    BEIT3,
    LAYERS,
    PROJECTOR,
    SAM2_DECODER,
    SAM_DECODER,
    SAM_ENCODER,
    TRUNK,
)

_DEPTHS = {768: 12, 1024: 24}  # layers of the published BEiT-3s by width


def derive_config(shapes: Shapes, heads: Mapping[str, int]) -> EvfsamConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say (the number of tokens, heads of the mask decoder) comes from the preset
    of the version whose BEiT-3 is as wide, else from the version's first. Parts without any key get
    the sizes of that preset, and are found missing later. heads: not used. Raises CheckpointError
    where the heads of BEiT-3 or SAM's encoder cannot be told, and for a Hiera of other sizes than
    the presets'.
    """
    read = ShapeReader(shapes)
    of_sam2 = read.has(TRUNK) or read.has(SAM2_DECODER)
    base = _base(read, "2" if of_sam2 else "1")
    decoder = SAM2_DECODER if of_sam2 else SAM_DECODER
    hidden = "mlp.layers.0.weight" if of_sam2 else "mlp.lin1.weight"
    width = read.size(f"{PROJECTOR}2.weight", 0, base.prompt_width)
    config = replace(
        base,
        sam=base.sam if of_sam2 else read_sam(read, SAM_ENCODER, base.sam),
        hiera=_hiera(read, base.hiera) if of_sam2 else base.hiera,
        beit3=_beit3(read, base.beit3),
        prompt_width=read.size(f"{decoder}iou_token.weight", 1, width),
        decoder_mlp_width=read.size(
            f"{decoder}transformer.layers.0.{hidden}", 0, base.decoder_mlp_width
        ),
    )
    return replace(config, preset=preset_name(config))


def _base(read: ShapeReader, version: Version) -> EvfsamConfig:
    """The preset of the version whose BEiT-3 is as wide, else the version's first."""
    presets = [one for one in PRESETS.values() if one.version == version]
    width = read.size(f"{BEIT3}text_embed.weight", 1, 0)
    return next((one for one in presets if one.beit3.width == width), presets[0])


def _beit3(read: ShapeReader, usual: Beit3Config) -> Beit3Config:
    """The sizes of BEiT-3; it has at least as many layers as the published one of its width."""
    width = read.size(f"{BEIT3}text_embed.weight", 1, usual.width)
    same = width == usual.width
    patch = read.size(f"{BEIT3}vision_embed.proj.weight", 2, usual.patch_size)
    rows = FIRST_POSITION + usual.image_positions
    rows = read.size(f"{BEIT3}encoder.embed_positions.A.weight", 0, rows)
    patches = max(rows - FIRST_POSITION - 1, 0)  # the class token has a position, too
    return Beit3Config(
        image_size=round(patches**0.5) * patch,
        patch_size=patch,
        width=width,
        layers=max(read.blocks(LAYERS), usual.layers if same else _DEPTHS.get(width, 1)),
        heads=usual.heads if same else usual_heads(width, "BEiT-3"),
        mlp_width=read.size(f"{LAYERS}0.ffn.A.fc1.weight", 0, usual.mlp_width),
        vocab_size=read.size(f"{BEIT3}text_embed.weight", 0, usual.vocab_size),
        positions=read.size(f"{BEIT3}encoder.embed_positions.B.weight", 0, usual.positions),
    )


def _hiera(read: ShapeReader, usual: HieraSizes) -> HieraSizes:
    """The sizes of the Hiera that is as wide, of the usual one or of a preset.

    Its heads, windows and input size are nowhere in the weights.
    """
    width = read.size(f"{TRUNK}pos_embed", 1, usual.width)
    known = (usual, *(one.hiera for one in PRESETS.values()))
    found = next((one for one in known if one.width == width), None)
    if found is None or read.blocks(f"{TRUNK}blocks.") > sum(found.depths):
        raise CheckpointError(
            f"its SAM 2 is a Hiera {width} wide with {read.blocks(f'{TRUNK}blocks.')} blocks, whose"
            " heads and windows cannot be told from the weights; this version runs the published"
            " model, on Hiera-L; the checkpoint has to carry other sizes (its entry ris_config)"
        )
    return found


def preset_name(config: EvfsamConfig) -> str:
    """The preset with these sizes, or "custom"."""
    sizes = replace(config, preset="")
    alike = (name for name, preset in PRESETS.items() if replace(preset, preset="") == sizes)
    return next(alike, "custom")


def check_given_config(data: Any, source: object) -> EvfsamConfig:
    """The configuration that a checkpoint or a manifest carries, under the name of its sizes.

    Sizes of no preset keep a name of their own. Raises CheckpointError where it is none.
    """
    return read_named(EvfsamConfig, data, source, PRESETS, preset_name)
