"""What the CPU can do, as far as it decides how graphs run."""

from __future__ import annotations

import functools
from pathlib import Path


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the CPU has, as Linux names it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    line = next((line for line in text.splitlines() if line.startswith(("flags", "Features"))), "")
    return frozenset(line.partition(":")[2].split())


def has_vnni() -> bool:
    """Whether an x86 CPU is known to sum products of INT8 in 32 bits. Without these instructions
    they are summed in pairs of 16 bits, which 2·127·127 overflows (docs/guide/int8.md, Without
    VNNI).
    """
    return not cpu_features().isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})
