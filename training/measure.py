"""How well a model does on a source of samples: the field's figures, by kind of expression."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from ris.engines.errors import Skipped, refuse
from ris.evaluation.metrics import SCENES, Tally
from ris.reference.model import RISModel
from ris.reference.preprocess import resize_logits
from ris.training.data import Source, batches
from ris.training.forward import ask, encode


@torch.no_grad()
def measure(
    model: RISModel,
    source: Source,
    tokenizer: Tokenizer,
    steps: int,
    *,
    bf16: bool = False,
    workers: int = 1,
    skipped: Skipped = refuse,
) -> dict[str, dict[str, float]]:
    """Counts the model's answers to the source's first `steps` batches.

    Args:
        model: The model; it is left in training mode if it was.
        source: Where the samples come from.
        tokenizer: The tokenizer of the expressions.
        steps: How many batches are asked.
        bf16: Whether to compute in bfloat16 autocast.
        workers: Processes that make batches.
        skipped: Gets a sentence for each sample that cannot be used.

    Returns:
        Figures by name, by kind of expression and, under "all", over everything.
    """
    tallies: dict[str, Tally] = defaultdict(Tally)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device

    for batch in batches(source, model.config, tokenizer, 0, steps, workers=workers):
        for sentence in batch.raw.left_out:
            skipped(sentence)
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            encoded = encode(model, batch.image, batch.clip_image, trained=False)
            index = batch.targets.image_index
            out = ask(model, *encoded, batch.input_ids, index, batch.category)

        raw = batch.raw
        size = raw.masks.shape[-1]
        masks = (resize_logits(out.mask_logits.float(), size, size)[:, 0] > 0).cpu().numpy()
        refused = _refused(out.no_target_logits, len(masks))
        rows = zip(masks, raw.masks, refused, raw.present, raw.expression_kinds, strict=True)
        for mask, truth, absent, present, kind in rows:
            for name in ("all", kind):
                tallies[name].add(mask, truth, bool(absent), bool(present))

    model.train(was_training)
    names = ("all", *sorted(set(tallies) - {"all"}))
    return {name: SCENES.score(tallies[name].figures()) for name in names}


def _refused(logits: Tensor | None, count: int) -> NDArray[np.bool_]:
    """Which expressions the no-target head refuses: bool [count]; none where there is no head."""
    if logits is None:
        return np.zeros(count, bool)
    refused: NDArray[np.bool_] = (logits[:, 1] > logits[:, 0]).cpu().numpy()
    return refused
