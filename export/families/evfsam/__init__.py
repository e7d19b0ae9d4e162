"""`evfsam` for the exporter: its graphs, the host's part, rules, what it is checked with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ris.export.families.design import FamilyDesign, Questions
from ris.export.families.evfsam.stages import answer, host, stages
from ris.export.sample import EXPRESSIONS, sample_image
from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.evfsam.model import EvfsamModel


def _words(config: EvfsamConfig) -> str:
    """The configuration in three lines: what takes the prompt, the encoders, the prompt."""
    if config.version == "1":
        sam = config.sam
        kind = "mask token 0 of SAM"
        size = f"SAM {sam.image_size} px, {sam.width} wide, {sam.depth} blocks"
    else:
        hiera = config.hiera
        kind = "the best of three masks of SAM 2"
        depths = ", ".join(map(str, hiera.depths))
        size = f"Hiera {hiera.image_size} px, {hiera.width} wide, {depths} blocks"

    beit3 = config.beit3
    beit3_size = (
        f"BEiT-3 {beit3.image_size} px, {beit3.width} wide, {beit3.layers} layers,"
        f" {beit3.vocab_size} words"
    )
    return (
        f"{config.preset}, version {config.version}: {kind}\n"
        f"  {size}; {beit3_size}\n"
        f"  one prompt vector, {config.prompt_width} channels"
    )


def _repeated(model: EvfsamModel) -> Iterable[nn.Module]:
    """The blocks of SAM's image encoder and the layers of BEiT-3."""
    if model.config.version == "1":
        yield from model.sam.image_encoder.blocks
    else:
        yield from model.sam2.image_encoder.trunk.blocks
    yield from model.beit3.encoder.layers


def _memory(config: EvfsamConfig) -> int:
    """The attention maps of SAM's global blocks, or what the MLP of Hiera's first stage keeps."""
    if config.version == "1":
        return 3 * config.sam.heads * config.sam.grid**4 * 4
    hidden = 4 * config.hiera.width
    return 3 * hidden * config.hiera.sides()[0] ** 2 * 4


DESIGN = FamilyDesign(
    stages=stages,
    host=host,
    answer=answer,
    questions=lambda config, trained: Questions(sample_image(), EXPRESSIONS),
    words=_words,
    repeated=_repeated,
    memory=_memory,
)
"""The family's row in `ris.export.families.DESIGNS`."""
