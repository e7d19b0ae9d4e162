"""`cgformer` for the exporter: its graphs, the host's part, rules, what it is checked with."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ris.export.families.cgformer.stages import answer, host, stages
from ris.export.families.design import FamilyDesign, Questions
from ris.export.sample import EXPRESSIONS, sample_image
from ris.reference.cgformer.config import CgformerConfig
from ris.reference.cgformer.model import CgformerModel


def _words(config: CgformerConfig) -> str:
    """The configuration in three lines: how places are shared, both encoders, the decoder."""
    assignment = {
        "expected": "places shared between the tokens (assignment expected)",
        "sampled": "places drawn, as in the authors' code (assignment sampled)",
    }
    swin, bert = config.swin, config.bert
    depths = ", ".join(map(str, swin.depths))
    swin_size = f"Swin {config.image_size} px, {swin.width} wide, {depths} blocks"
    bert_size = f"BERT {bert.width} wide, {bert.layers} layers, {bert.vocab_size} words"
    return (
        f"{config.preset}, {assignment[config.assignment]}\n"
        f"  {swin_size}, windows of {swin.window}; {bert_size}\n"
        f"  two tokens, {config.width} channels"
    )


def _repeated(model: CgformerModel) -> Iterable[nn.Module]:
    """The blocks of Swin and BERT, the fused maps and the convolutions of the mask head."""
    for stage in model.backbone.stages():
        yield from stage.blocks
    yield from model.bert.encoder.layer
    yield from model.decoder.fuses
    yield from (model.decoder.mask_head.vis[i] for i in (1, 3))


def _memory(config: CgformerConfig) -> int:
    """What one expression needs in the mask head, which the reference asks one at a time.

    The map of the mask's size, what its convolution reads, and a copy.
    """
    return 3 * 4 * config.width * config.image_size**2


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
