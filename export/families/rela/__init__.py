"""`rela` for the exporter: its graphs, the host's part, its rules, what it is checked with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ris.export.families.design import FamilyDesign, Questions
from ris.export.families.rela.stages import answer, host, stages
from ris.export.sample import EXPRESSIONS, sample_image
from ris.reference.rela.config import RelaConfig
from ris.reference.rela.model import RelaModel


def _words(config: RelaConfig) -> str:
    """The configuration in three lines: the factor on the words, both encoders, the decoder."""
    factor = {
        "zero": "as the authors' evaluation runs it (lang_weight 0)",
        "stored": "with the checkpoint's lang_weight",
    }
    swin, bert = config.swin, config.bert
    depths = ", ".join(map(str, swin.depths))
    swin_size = f"Swin {config.image_size} px, {swin.width} wide, {depths} blocks"
    bert_size = f"BERT {bert.width} wide, {bert.layers} layers, {bert.vocab_size} words"
    return (
        f"{config.preset}, {factor[config.lang_weight]}\n"
        f"  {swin_size}, windows of {swin.window}; {bert_size}\n"
        f"  {config.regions} regions, {config.region_layers} layers, {config.width} channels"
    )


def _repeated(model: RelaModel) -> Iterable[nn.Module]:
    """The blocks of Swin, BERT, pixel decoder and region decoder."""
    for stage in model.backbone.stages():
        yield from stage.blocks
    yield from model.bert.encoder.layer
    yield from model.pixel_decoder.transformer.encoder.layers
    regions = model.region_decoder
    for layers in (regions.RIA_layers, regions.RLA_vision, regions.transformer_ffn_layers):
        yield from layers


def _memory(config: RelaConfig) -> int:
    """An allowance: three expressions, each with eight maps of the first stage in float32.

    With the weights it is about the measured peak of an export (docs/measurements/checkpoints.md).
    """
    return 3 * 8 * 4 * config.mask_size**2 * config.swin.width


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
