"""Pickles from strangers: only lists, dicts, strings, numbers and the like come out.

Anything else is refused before it is built.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError

# The published files need NumPy scalars beside the built-in containers; they are pickled as
# (dtype, bytes).
_NUMPY_DTYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1"}

# What the unpickler raises for a file that is torn or no pickle at all.
_DAMAGED = (
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    MemoryError,
    OverflowError,
)


class _Dtype:
    """Stands in for `numpy.dtype`: keeps the code of a plain number and refuses all others."""

    def __init__(self, code: str, *rest: object) -> None:
        if code not in _NUMPY_DTYPES:
            raise pickle.UnpicklingError(f"numpy dtype {code!r}")
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(dtype: object, data: object) -> int | float | bool:
    """Stands in for NumPy's constructor of scalars."""
    import numpy

    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | str):
        raise pickle.UnpicklingError("a numpy scalar of an unknown form")
    raw = data if isinstance(data, bytes) else data.encode("latin1")
    found: int | float | bool = numpy.frombuffer(raw, "<" + dtype.code, 1)[0].item()
    return found


def _encode(text: object, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which the protocols 0 to 2 write bytes."""
    return str(text).encode("latin1" if encoding == "latin1" else "utf-8")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # Python 2's name of it
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def load_plain_pickle(path: Path) -> Any:
    """What the pickle `path` holds; nothing of the file is ever run.

    Returns:
        Nested lists, tuples, dicts, sets, strings, bytes, numbers and None.

    Raises:
        RisError: For a file that holds anything else or is no pickle.
    """
    try:
        with path.open("rb") as file:
            # the published files were written by Python 2: their byte strings are Latin-1 text
            return _PlainUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise RisError(
            f"{path} is refused: a data set's pickle holds plain values only, and {error}"
        ) from error
    except _DAMAGED as error:
        raise RisError(
            f"{path} is no readable pickle ({type(error).__name__}); download it again"
        ) from error
