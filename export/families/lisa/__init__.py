"""`lisa` for the exporter: its graphs, the host's part, rules, what it is checked with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ris.export.families.design import FamilyDesign, Questions
from ris.export.families.lisa.stages import answer, host, stages
from ris.export.sample import EXPRESSIONS, sample_image
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.model import LisaModel


def _words(config: LisaConfig) -> str:
    """The configuration in three lines: the language model, the encoders, the question."""
    llama, sam, clip = config.llama, config.sam, config.clip
    return (
        f"{config.preset}: LLaMA {llama.width} wide, {llama.layers} layers, {llama.vocab_size}"
        " tokens\n"
        f"  SAM {sam.image_size} px, {sam.width} wide, {sam.depth} blocks; CLIP"
        f" {clip.image_size} px, {clip.width} wide, {config.clip_layers} layers\n"
        f"  template {config.template}, {config.prefix_length} positions in front of the question"
    )


def _repeated(model: LisaModel) -> Iterable[nn.Module]:
    """The blocks of SAM's image encoder and of CLIP, and LLaMA's layers."""
    yield from model.sam.image_encoder.blocks
    yield from model.clip.visual.transformer.resblocks
    yield from model.layers


def _memory(config: LisaConfig) -> int:
    """The attention maps of SAM's global blocks, and the keys and values of five rows.

    The reference pass has those of one picture and a row for each question.
    """
    maps = 3 * config.sam.heads * config.sam.grid**4 * 4
    kept = 2 * config.llama.layers * config.prefix_length * config.llama.width * 4
    return maps + 5 * kept


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
