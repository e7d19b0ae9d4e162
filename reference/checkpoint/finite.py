"""Weights that are no numbers, found before anything is made of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed
from ris.reference.checkpoint.entries import Entry, give_back

_SHOWN = 3  # how many tensors a message names


def require_finite(entries: Mapping[str, Entry], names: Iterable[str]) -> None:
    """Reads tensors and refuses NaN, infinities, and what float32 cannot hold.

    The files' pages are given back.

    Args:
        entries: The tensors of the files.
        names: Which of them to read.

    Raises:
        CheckpointError: It names the first few such tensors, and how many values each has.
    """
    broken = {name: count for name in names if (count := _not_finite(entries[name]))}
    if not broken:
        return
    shown = [f"{echoed(name)} ({count})" for name, count in list(broken.items())[:_SHOWN]]
    more = f", and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
    file = entries[next(iter(broken))].file
    raise CheckpointError(
        f"{file}: values that are NaN or infinite in {len(broken)}"
        f" tensor{'s' * (len(broken) > 1)}: {', '.join(shown)}{more}; the training broke down, give"
        " an earlier checkpoint"
    )


def _not_finite(entry: Entry) -> int:
    """How many values of a tensor are not finite in float32; those of computed ones are."""
    if entry.computed or not entry.dtype.is_floating_point:
        return 0
    count = 0
    for piece in entry.pieces:
        tensor = piece()
        if not tensor.numel():
            continue
        ends = torch.stack(torch.aminmax(tensor)).to(torch.float32)  # NaN comes through
        if not all(map(math.isfinite, ends.tolist())):
            count += int((~torch.isfinite(tensor.to(torch.float32))).sum())
        if entry.mapped:
            give_back(tensor)
    return count
