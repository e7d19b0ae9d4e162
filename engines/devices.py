"""Names of devices: "cpu", "cuda", and "cuda:1" for the second GPU."""

from __future__ import annotations

import re

from ris.engines.errors import EngineError

CUDA = "cuda"
"""An NVIDIA GPU; the first, or the one whose number follows a colon."""

_NUMBERED = re.compile(rf"{CUDA}:(\d{{1,4}})")


def kind_of(device: str) -> str:
    """The device without its number: "cuda" of "cuda:1", every other name as it is."""
    return CUDA if _NUMBERED.fullmatch(device) else device


def index_of(device: str) -> int:
    """The number of the GPU: 1 of "cuda:1", 0 of a name without a number."""
    found = _NUMBERED.fullmatch(device)
    return int(found[1]) if found else 0


def require_device(device: str, kinds: tuple[str, ...]) -> None:
    """Raises EngineError for a device that is none of `kinds`.

    Numbers count from 0 as CUDA's own do, so CUDA_VISIBLE_DEVICES changes what they mean.
    """
    if kind_of(device) in kinds:
        return
    numbered = f", and {CUDA}:N for the GPU of that number" if CUDA in kinds else ""
    raise EngineError(f"there is no device {device!r}; there are {', '.join(kinds)}{numbered}")
