"""Pickles from strangers: lists, dicts, strings and numbers come out, anything else is refused
before it is built.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError

# what the published files need beyond the built-in containers: NumPy scalars, pickled as (dtype,
# bytes)
_NUMPY_DTYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1"}


class _Dtype:
    def __init__(self, code: str, *rest: object) -> None:
        if code not in _NUMPY_DTYPES:
            raise pickle.UnpicklingError(f"numpy dtype {code!r}")
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(dtype: object, data: object) -> int | float | bool:
    import numpy

    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | str):
        raise pickle.UnpicklingError("a numpy scalar of an unknown form")
    raw = data if isinstance(data, bytes) else data.encode("latin1")
    found: int | float | bool = numpy.frombuffer(raw, "<" + dtype.code, 1)[0].item()
    return found


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # Python 2's name of it
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): (
        lambda text, encoding="latin1": str(text).encode(
            encoding if encoding == "latin1" else "utf-8"
        )
    ),
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
    """What the pickle `path` holds: nested lists, tuples, dicts, sets, strings, bytes, numbers,
    None.

    Nothing of the file is ever run. Raises RisError for a file that holds anything else or is no
    pickle.
    """
    try:
        with path.open("rb") as file:
            # the published files were written by Python 2: their byte strings are Latin-1 text
            return _PlainUnpickler(file, encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise RisError(
            f"{path} is refused: a data set's pickle holds plain values only, and {error}"
        ) from error
    except (
        EOFError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise RisError(
            f"{path} is no readable pickle ({type(error).__name__}); download it again"
        ) from error
