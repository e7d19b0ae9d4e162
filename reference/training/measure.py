"""How well a model does on a source of samples: the figures of the field, by kind of expression."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris.reference.model import RISModel
from ris.reference.preprocess import resize_logits
from ris.reference.training.data import Source, batches
from ris.reference.training.forward import ask, encode


@dataclass
class Figures:
    """Sums over expressions. Per targeted one: intersection, union, IoU; per untargeted one: whether it was refused.

    miou, precision (at IoU > 0.5) and oiou are over targeted expressions and the masks themselves, whatever the
    no-target head says. giou and ciou follow gRefCOCO: a refused expression has an empty mask, an untargeted one
    scores 1 where it was refused. n_acc: refused among the untargeted; t_acc: not refused among the targeted.
    """

    ious: list[float] = field(default_factory=list)
    overlaps: list[tuple[int, int]] = field(default_factory=list)
    refused: list[bool] = field(default_factory=list)
    present: list[bool] = field(default_factory=list)

    def add(self, mask: NDArray[np.bool_], truth: NDArray[np.bool_], refused: bool) -> None:
        intersection, union = int((mask & truth).sum()), int((mask | truth).sum())
        self.present.append(bool(truth.any()))
        self.refused.append(refused)
        self.ious.append(intersection / union if union else 1.0)
        self.overlaps.append((intersection, union))

    def summary(self) -> dict[str, float]:
        """The figures by name, shares between 0 and 1; those without samples are left out."""
        present, refused = np.asarray(self.present), np.asarray(self.refused)
        ious, overlaps = np.asarray(self.ious), np.asarray(self.overlaps)
        found: dict[str, float] = {"samples": float(len(present))}
        if present.any():
            found["miou"] = float(ious[present].mean())
            found["precision_0.5"] = float((ious[present] > 0.5).mean())
            found["oiou"] = float(overlaps[present, 0].sum() / overlaps[present, 1].sum())
            found["t_acc"] = float(1 - refused[present].mean())
        if (~present).any():
            found["n_acc"] = float(refused[~present].mean())
        scores = np.where(present, np.where(refused, 0.0, ious), refused.astype(float))
        found["giou"] = float(scores.mean())
        return found


@torch.no_grad()
def measure(
    model: RISModel,
    source: Source,
    tokenizer: Tokenizer,
    steps: int,
    *,
    bf16: bool = False,
    workers: int = 1,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, dict[str, float]]:
    """Runs `steps` batches; figures by kind of expression and, under "all", over everything."""
    figures: dict[str, Figures] = defaultdict(Figures)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    for number, batch in enumerate(batches(source, model.config, tokenizer, 0, steps, workers=workers)):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            embeddings, tokens = encode(model, batch.image, batch.clip_image, trained=False)
            out = ask(model, embeddings, tokens, batch.input_ids, batch.targets.image_index, batch.category)
        size = batch.raw.masks.shape[-1]
        masks = (resize_logits(out.mask_logits.float(), size, size)[:, 0] > 0).cpu().numpy()
        logits = out.no_target_logits
        refused = np.zeros(len(masks), bool) if logits is None else (logits[:, 1] >= logits[:, 0]).cpu().numpy()
        for mask, truth, absent, kind in zip(masks, batch.raw.masks, refused, batch.raw.expression_kinds, strict=True):
            for name in ("all", kind):
                figures[name].add(mask, truth, bool(absent))
        report(number + 1)
    model.train(was_training)
    return {name: figures[name].summary() for name in ("all", *sorted(set(figures) - {"all"}))}
