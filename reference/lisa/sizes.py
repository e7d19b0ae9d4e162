"""The model's configuration, read off the keys and shapes of its weights.

What they do not say is in the files beside them (`ris.reference.lisa.settings`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.carried import read_named
from ris.reference.checkpoint.encoders import ShapeReader, Shapes, read_clip, read_sam
from ris.reference.layers.encoder_sizes import ClipConfig
from ris.reference.lisa.config import PRESETS, AddedTokens, LisaConfig, LlamaSpec
from ris.reference.lisa.keys import CLIP, LAYERS, PROMPT, SAM, SAM_DECODER, SAM_ENCODER, TABLE

GIVE = "give LISA-7B-v1 or LISA-13B-llama2-v1"
"""What to do with a file of another model."""

_HEAD_WIDTH = 128  # of every LLaMA that LISA was built on


def derive_config(shapes: Shapes, heads: Mapping[str, int]) -> LisaConfig:
    """The configuration of the weights with these shapes, under the whole model's key names.

    What the keys do not say comes from the preset whose language model is as wide, else from the
    first. Parts without any key get the sizes of that preset, and are found missing later. Raises
    CheckpointError for LISA v0, for a language model without LISA's parts, and for a CLIP of
    another picture size.
    """
    read = ShapeReader(shapes)
    _require_lisa(read)
    width = read.size(f"{TABLE}weight", 1, 0)
    first = next(iter(PRESETS.values()))
    base = next((one for one in PRESETS.values() if one.llama.width == width), first)
    mlp = f"{SAM_DECODER}transformer.layers.0.mlp.lin1.weight"
    config = replace(
        base,
        llama=_llama(read, base.llama),
        clip=_clip(read, base.clip, heads),
        sam=read_sam(read, SAM_ENCODER, base.sam),
        prompt_width=read.size(f"{PROMPT}2.weight", 0, base.prompt_width),
        decoder_mlp_width=read.size(mlp, 0, base.decoder_mlp_width),
    )
    return named(config)


def _require_lisa(read: ShapeReader) -> None:
    """Raises CheckpointError for weights that lack what makes a LISA of version 1."""
    if read.has(PROMPT):
        return
    if read.has(SAM):
        raise CheckpointError(
            f"it has SAM but no {PROMPT}*, as LISA v0 has it, whose code this version does not run;"
            f" {GIVE}"
        )
    raise CheckpointError(
        f"it is a language model without LISA's parts ({SAM}*, {PROMPT}*); {GIVE}"
    )


def _llama(read: ShapeReader, usual: LlamaSpec) -> LlamaSpec:
    """The sizes of the language model; one as wide as a published one is as deep."""
    width = read.size(f"{TABLE}weight", 1, usual.width)
    same = width == usual.width
    if not same and width % _HEAD_WIDTH:
        raise CheckpointError(
            f"the language model is {width} wide: the number of attention heads cannot be told from"
            " the weights; the checkpoint has to carry it (its entry ris_config)"
        )
    return replace(
        usual,
        vocab_size=read.size(f"{TABLE}weight", 0, usual.vocab_size),
        width=width,
        layers=max(read.blocks(LAYERS), usual.layers if same else 1),
        heads=usual.heads if same else width // _HEAD_WIDTH,
        mlp_width=read.size(f"{LAYERS}0.mlp.gate_proj.weight", 0, usual.mlp_width),
    )


def _clip(read: ShapeReader, usual: ClipConfig, heads: Mapping[str, int]) -> ClipConfig:
    """CLIP's sizes. Its picture's size is no weight of LISA's: the one it was trained with."""
    found = read_clip(read, CLIP, usual, heads)
    if found.image_size != usual.image_size:
        raise CheckpointError(
            f"it was trained with a CLIP of {usual.image_size} pixels, the one that was given takes"
            f" {found.image_size}; give openai/clip-vit-large-patch14 (ViT-L-14.pt)"
        )
    return found


def named(config: LisaConfig) -> LisaConfig:
    """The configuration under the name of its sizes."""
    return replace(config, preset=preset_name(config))


def preset_name(config: LisaConfig) -> str:
    """The preset with these sizes, or "custom"; ids of tokens and a template are no sizes."""

    def sizes(one: LisaConfig) -> LisaConfig:
        return replace(one, preset="", template="llava_v1", tokens=AddedTokens())

    alike = (name for name, preset in PRESETS.items() if sizes(preset) == sizes(config))
    return next(alike, "custom")


def check_given_config(data: Any, source: object) -> LisaConfig:
    """The configuration that a checkpoint or a manifest carries, under the name of its sizes.

    Sizes of no preset keep a name of their own. Raises CheckpointError where it is none.
    """
    return read_named(LisaConfig, data, source, PRESETS, preset_name)
