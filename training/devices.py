"""What a run computes on: the device, its precision, and the other processes of the run.

Accelerate knows the processes (`torchrun` starts them), wraps the model for them, and scales the
loss where float16 needs it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs

from ris.engines.errors import RisError
from ris.engines.processor import cpu_features

Precision = Literal["no", "fp16", "bf16"]
"""What autocast computes in; "no" is FP32 throughout."""


def is_main() -> bool:
    """Whether this is the run's main process, by what started it (`torchrun`)."""
    return os.environ.get("RANK", "0") == "0"


def precision_of(device: str) -> Precision:
    """The fastest precision for which `device` has instructions.

    A CPU without those for bfloat16 emulates it, at a fifth of FP32's speed. GPUs before Ampere
    (V100, T4) emulate it too, and have float16.
    """
    if torch.device(device).type == "cpu":
        instructions = {"avx512_bf16", "amx_bf16", "bf16"}
        return "no" if instructions.isdisjoint(cpu_features()) else "bf16"
    return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"


@contextlib.contextmanager
def repeatable(device: torch.device) -> Iterator[None]:
    """For the block a CPU computes the same bits each time; the process is left as it was.

    Threads add up gradients of what is indexed in any order otherwise, and a run that goes on would
    not get the bits of one that was not stopped.
    """
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled()
    only_warns = torch.is_deterministic_algorithms_warn_only_enabled()
    fills = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=only_warns)
        settings.fill_uninitialized_memory = fills


def require_device(device: str) -> None:
    """Raises RisError where PyTorch does not see the device here."""
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise RisError(f"--device {device}: there is no such device; give cpu or cuda") from None
    if asked.type == "cpu":
        return
    if not torch.cuda.is_available():
        raise RisError(f"--device {device}: PyTorch sees no CUDA device here")
    if (asked.index or 0) >= (count := torch.cuda.device_count()):
        raise RisError(f"--device {device}: PyTorch sees {count} CUDA devices here, from 0 on")


def make_accelerator(device: str, *, mixed: bool) -> Accelerator:
    """The device of this process, and what joins it with the run's others.

    Args:
        device: "cpu", or a CUDA device; where several processes run, each takes its own.
        mixed: Whether to compute in the device's fastest precision in place of FP32.

    Raises:
        RisError: Where there is no such device, or this process has trained on another one or in
            another precision.
    """
    require_device(device)
    chosen = torch.device(device)
    if chosen.type != "cpu" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    # what a step leaves unused (the lessons' decoder) differs from step to step
    wrapping = DistributedDataParallelKwargs(find_unused_parameters=True)
    try:
        return Accelerator(
            cpu=chosen.type == "cpu",
            mixed_precision=precision_of(device) if mixed else "no",
            kwargs_handlers=[wrapping],
        )
    except ValueError as error:
        raise RisError(
            f"--device {device} in another process, please: Accelerate keeps the first device and"
            " precision of a process"
        ) from error
