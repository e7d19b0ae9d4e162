"""How well a model does on a source of samples: the figures of the field, by kind of expression."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import torch
from tokenizers import Tokenizer

from ris.evaluation.metrics import Tally
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
) -> dict[str, dict[str, float]]:
    """Runs `steps` batches; figures by kind of expression and, under "all", over everything."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    for batch in batches(source, model.config, tokenizer, 0, steps, workers=workers):
        batch = batch.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            embeddings, tokens = encode(model, batch.image, batch.clip_image, trained=False)
            out = ask(
                model,
                embeddings,
                tokens,
                batch.input_ids,
                batch.targets.image_index,
                batch.category,
            )
        size = batch.raw.masks.shape[-1]
        masks = (resize_logits(out.mask_logits.float(), size, size)[:, 0] > 0).cpu().numpy()
        logits = out.no_target_logits
        refused = (
            np.zeros(len(masks), bool)
            if logits is None
            else (logits[:, 1] >= logits[:, 0]).cpu().numpy()
        )
        raw = batch.raw
        rows = zip(masks, raw.masks, refused, raw.present, raw.expression_kinds, strict=True)
        for mask, truth, absent, present, kind in rows:
            for name in ("all", kind):
                tallies[name].add(mask, truth, bool(absent), bool(present))
    model.train(was_training)
    return {
        name: tallies[name].figures().score("scenes")
        for name in ("all", *sorted(set(tallies) - {"all"}))
    }
