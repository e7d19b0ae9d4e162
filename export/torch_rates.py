"""PyTorch's matrix products for the benchmark's floor (`ris.runtime.bench.rates`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ris.engines.processor import has_vnni


def products(
    left: np.ndarray, right: np.ndarray, threads: int | None
) -> dict[str, Callable[[], Any]]:
    """A call for each precision, which multiplies left [M, K] by the transpose of right [N, K].

    Each call has been run once; precisions that this machine does not compute in are left out.
    threads: None for PyTorch's own choice.
    """
    if threads is not None:
        torch.set_num_threads(threads)

    a, b = torch.from_numpy(left), torch.from_numpy(right).T.contiguous()
    half_a, half_b = a.bfloat16(), b.bfloat16()
    byte_a, byte_b = (a * 127).to(torch.int8), (b * 127).to(torch.int8)
    calls: dict[str, Callable[[], Any]] = {
        "fp32": lambda: a @ b,
        "bf16": lambda: half_a @ half_b,
        "int8": lambda: torch._int_mm(byte_a, byte_b),
    }
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        del calls["bf16"]  # emulated there, which says nothing about the machine
    if not has_vnni():
        del calls["int8"]  # plain loops there, a hundred times as slow as FP32

    with torch.inference_mode():
        for name in list(calls):
            try:
                calls[name]()
            except RuntimeError:
                del calls[name]
    return calls
