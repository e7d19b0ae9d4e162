"""NumPy's arrays among the tensors of a pickle, read without NumPy's own unpickling.

detectron2 writes them, as weights and in what lies beside the weights. NumPy trusts what a pickle
says about an array's memory; the stand-ins here keep what it says, and look at it before they make
an array of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_LEVELS = 3  # of mappings: a state dict is two below the checkpoint at most

_NUMBERS = ("b1", "u1", "i1", "i2", "i4", "i8", "f2", "f4", "f8")


class PickledType:
    """What stands for `numpy.dtype`."""

    def __init__(self, code: object, *ignored: object) -> None:
        self.code, self.order = code, "="

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "="


class PickledArray:
    """What stands for `numpy.ndarray`."""

    def __init__(self, *ignored: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def tensor(self) -> Tensor | None:
        """The array as a tensor of its own memory; None where it is no array of numbers."""
        try:
            _, shape, kind, by_columns, content = self.state
            if not isinstance(kind, PickledType) or kind.code not in _NUMBERS:
                return None
            values = np.frombuffer(content, f"{kind.order}{kind.code}")
            array = values.reshape(shape, order="F" if by_columns else "C")
        except (TypeError, ValueError):
            return None
        if array.shape != shape:
            return None  # reshape takes -1 for "the rest"
        return torch.from_numpy(np.array(array, array.dtype.newbyteorder("="), order="C"))


def _array(kind: object, *ignored: object) -> PickledArray:
    """What stands for NumPy's `_reconstruct`; the content follows."""
    return PickledArray()


def _number(*ignored: object) -> None:
    """What stands for NumPy's `scalar`: no weight is one."""


STAND_INS: list[Any] = [
    (PickledType, "numpy.dtype"),
    (PickledArray, "numpy.ndarray"),
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("_core", "core")  # as NumPy 2 has it, and NumPy before
        for function, name in ((_array, "_reconstruct"), (_number, "scalar"))
    ),
]
"""For `torch.serialization.safe_globals`."""


def has_arrays(data: Any, levels: int = _LEVELS) -> bool:
    """Whether there is an array in a mapping, that many levels down.

    An array is in memory, also where the file's tensors are mapped.
    """
    if isinstance(data, Mapping) and levels:
        return any(has_arrays(value, levels - 1) for value in data.values())
    return isinstance(data, PickledArray)


def as_tensors(data: Any, levels: int = _LEVELS) -> Any:
    """Mappings with tensors in place of arrays, that many levels down; anything else as it is."""
    if isinstance(data, Mapping) and levels:
        return {name: as_tensors(value, levels - 1) for name, value in data.items()}
    return data.tensor() if isinstance(data, PickledArray) else data
