"""The file of `ris-calibrate weights`: levels and scales of a model's matrices, as safetensors.

Of each matrix [K, N], as a graph reads it, under its parameter's name: `NAME.levels` int8 [K, N],
`NAME.scales` float32 [K / g, N], `NAME.sha256` of its FP32 values, `NAME.errors`, two numbers, and
`NAME.check`, a hash of all that. The metadata say which weights it was made of. An export finds a
matrix by its name, and takes its levels where the values have that hash.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ris import __version__
from ris.calibration.weights.groups import Rounded, WeightFormat, largest_level, round_in_groups
from ris.engines.errors import RisError
from ris.engines.text import quoted
from ris.reference.families import FAMILIES
from ris.reference.family import Config
from ris.runtime.manifest_source import Source

VERSION = "2"
"""The version of the file's form."""

_KIND = "ris-rounded-weights"
Form = tuple[str, str, tuple[int, ...]]
"""A tensor's name, type ("I8", "F32" or "U8") and shape."""

_AGAIN = "copy it again, or run ris-calibrate weights again"
_BYTES = {"I8": 1, "F32": 4, "U8": 1}  # of a number


class Errors(NamedTuple):
    """What rounding a matrix changed in its products with the calibration's inputs.

    Each is a root mean square, divided by that of the products.
    """

    nearest: float
    """With each weight at the nearest level."""

    chosen: float
    """With GPTQ's levels; that of the nearest where those are better, and are in the file."""


@dataclass(frozen=True)
class About:
    """What a file says of itself."""

    family: str
    """The model's family."""

    config: Config
    """Its configuration."""

    source: Source
    """Where its weights come from."""

    formats: Mapping[str, WeightFormat]
    """What the matrices of each stage are stored in."""

    inputs: str = ""
    """The fingerprint of what it was calibrated with."""

    def weights(self) -> dict[str, Any]:
        """What tells these weights from others, as JSON has it."""
        model = self.config.to_dict()
        for choice in FAMILIES[self.family].choices:  # what nobody reads off the weights
            model.pop(choice.field, None)
        source = self.source
        parts = sorted((one.component, one.sha256) for one in source.components)
        about = {
            "family": self.family,
            "model": model,
            "seed": source.seed,
            "checkpoint": source.checkpoint_sha256,
            "components": parts,
        }
        plain: dict[str, Any] = json.loads(json.dumps(about))
        return plain

    def metadata(self) -> dict[str, str]:
        """As the file has it."""
        return {
            "kind": _KIND,
            "version": VERSION,
            "writer": f"ris-runtime {__version__}",
            "formats": json.dumps(dict(self.formats), sort_keys=True),
            "weights": json.dumps(self.weights(), sort_keys=True),
            "inputs": self.inputs,
            "rounding": "gptq",
        }


def length_of(tensor: Form) -> int:
    """The bytes of a tensor."""
    _, kind, shape = tensor
    return _BYTES[kind] * math.prod(shape)


def header(about: Mapping[str, str], tensors: Sequence[Form]) -> NDArray[np.uint8]:
    """What a safetensors file begins with: a length of 8 bytes, and JSON.

    Args:
        about: The metadata.
        tensors: What follows, in order.
    """
    told: dict[str, Any] = {"__metadata__": dict(about)}
    offset = 0
    for tensor in tensors:
        (name, kind, shape), end = tensor, offset + length_of(tensor)
        told[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(told).encode()
    text += b" " * (-len(text) % 8)
    return np.frombuffer(len(text).to_bytes(8, "little") + text, np.uint8)


class Record(NamedTuple):
    """What the file has of a matrix, its check aside, in order."""

    levels: NDArray[np.int8]
    """Its levels [K, N]."""

    scales: NDArray[np.float32]
    """Their scales [K / g, N]."""

    digest: NDArray[np.uint8]
    """The sha256 of its FP32 values."""

    errors: NDArray[np.float32]
    """What rounding changed, as `Errors`."""

    def check(self, about: Mapping[str, str], name: str) -> NDArray[np.uint8]:
        """The sha256 of it, of the matrix's name and of what the file says of itself (`about`)."""
        found = hashlib.sha256(json.dumps([name, dict(about)], sort_keys=True).encode())
        for part in self:
            found.update(_bytes_of(part).data)
        return np.frombuffer(found.digest(), np.uint8)

    def whole(self, about: Mapping[str, str], name: str) -> NDArray[np.uint8]:
        """The bytes that lie in the file, with the check at their end."""
        return np.concatenate([_bytes_of(part) for part in (*self, self.check(about, name))])


def forms_of(name: str, rows: int, columns: int, group: int) -> tuple[Form, ...]:
    """The tensors of a matrix, as they lie in the file.

    Args:
        name: Its name in the model.
        rows: The length K of its sums.
        columns: The number N of its results.
        group: How many rows share a scale.
    """
    return (
        (f"{name}.levels", "I8", (rows, columns)),
        (f"{name}.scales", "F32", (rows // group, columns)),
        (f"{name}.sha256", "U8", (32,)),
        (f"{name}.errors", "F32", (2,)),
        (f"{name}.check", "U8", (32,)),
    )


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def digest_of(matrix: NDArray[np.float32], format: WeightFormat) -> bytes:
    """The sha256 of a matrix [K, N], of its shape and of what it is to be stored in."""
    found = hashlib.sha256(repr((format, *matrix.shape)).encode())
    found.update(_bytes_of(matrix).data)
    return found.digest()


class RoundedFile:
    """An opened file. It rounds matrices as it says, and others to the nearest level.

    What it says of a matrix is compared with its check before it is used.

    Raises RisError where there is another file.
    """

    path: Path
    """The file."""

    formats: dict[str, WeightFormat]
    """What the matrices of each stage were rounded to."""

    taken: set[str]
    """The names of the matrices that were rounded as the file says."""

    missed: set[str]
    """Of those that it does not have; a hash where the name is not known."""

    def __init__(self, path: Path) -> None:
        self.path, self.taken, self.missed = path, set(), set()
        self._whole: set[str] = set()
        try:
            self._file: Any = safe_open(path, "numpy")
            self._about = about = self._file.metadata() or {}
            if about.get("kind") != _KIND:
                raise self._wrong("is no file of ris-calibrate weights")
            if about.get("version") != VERSION:
                raise self._wrong(
                    f"is of version {quoted(str(about.get('version')))} of its form, and this"
                    f" ris-runtime reads {VERSION}; run ris-calibrate weights again"
                )
            self._weights = json.loads(about["weights"])
            self.formats = json.loads(about["formats"])
            if not isinstance(self.formats, dict):
                raise ValueError("formats")
            self._require_tensors()
        except (OSError, SafetensorError, KeyError, ValueError, RecursionError) as error:
            said = f" ({error.strerror})" if isinstance(error, OSError) and error.strerror else ""
            raise self._wrong(f"is no whole file of ris-calibrate weights{said}") from None

    def require(self, about: About) -> None:
        """Raises RisError where it was made of other weights, or for other formats, or is damaged.

        All of it is read, so that an export that takes hours knows it before it begins.

        about: The model, and the formats that are asked for.
        """
        if self._weights != about.weights():
            raise self._wrong(
                "was made of other weights than these; run ris-calibrate weights on the same"
                " checkpoint"
            )
        for stage, format in about.formats.items():
            found = self.formats.get(stage)
            if found is None:
                raise self._wrong(
                    f"has no matrices of {stage}; run ris-calibrate weights with --weight-format"
                    f" {stage}={format}"
                )
            if found != format:
                raise self._wrong(
                    f"has the matrices of {stage} in {quoted(str(found))}, and {format} is asked"
                    f" for; run ris-calibrate weights with --weight-format {stage}={format}"
                )
        for name in self._names:
            self._require_whole(name)

    def require_taken(self) -> str:
        """How many of the matrices that were rounded it had, in words.

        Raises RisError where it had none: the bundle would be what it is without the file.
        """
        if not self.taken:
            raise self._wrong(
                "has none of the matrices of these graphs; run ris-calibrate weights again, with"
                " the packages that are installed now, or leave --weights-from out"
            )
        return f"{len(self.taken)} of {len(self.taken | self.missed)} matrices as {self.path} says"

    def errors(self) -> dict[str, Errors]:
        """What rounding changed, by the matrices' names; NaN where no inputs were seen."""
        return {
            name: Errors(*map(float, self._file.get_tensor(f"{name}.errors")))
            for name in self._names
        }

    def __call__(
        self, matrix: NDArray[np.float32], format: WeightFormat, group: int, place: str
    ) -> Rounded:
        """The matrix as the file has it; to the nearest level where it does not have it.

        Args:
            matrix: As of `nearest_levels`.
            format: As of `nearest_levels`.
            group: As of `nearest_levels`.
            place: Its name in the model. Where that is not known ("") it is found by its values, if
                one matrix of the file has them.
        """
        digest = digest_of(matrix, format)
        names = self._by_digest.get(digest, [])
        if not place and len(names) == 1:
            [place] = names
        if place not in names:
            self.missed.add(place or digest.hex())
            return round_in_groups(matrix, format, group)
        self._require_whole(place)
        self.taken.add(place)
        levels, scales, *_ = self._record(place)
        is_sound = (
            levels.shape == matrix.shape
            and scales.shape == (len(matrix) // group, matrix.shape[1])
            and np.abs(levels.astype(np.int16)).max() <= largest_level(format)
            and scales.max() <= np.finfo(np.float32).max / largest_level(format)
            and scales.min() > 0
        )
        if not is_sound:
            raise self._wrong(f"has levels at {place} that {format} does not; {_AGAIN}")
        return Rounded(format, levels, scales)

    def _record(self, name: str) -> Record:
        """What the file has of a matrix."""
        parts = ("levels", "scales", "sha256", "errors")
        return Record(*(self._file.get_tensor(f"{name}.{part}") for part in parts))

    def _require_whole(self, name: str) -> None:
        """Raises RisError where what the file has of a matrix is not what was written."""
        if name in self._whole:
            return
        check = self._record(name).check(self._about, name)
        if not np.array_equal(check, self._file.get_tensor(f"{name}.check")):
            raise self._wrong(f"is damaged at {name}: its hash differs; {_AGAIN}")
        self._whole.add(name)

    def _require_tensors(self) -> None:
        """Raises ValueError where something of a matrix is not there or of another form.

        So it does where there is anything else.
        """
        for name in self._names:
            rows, columns = self._form(f"{name}.levels", "I8")
            groups, width = self._form(f"{name}.scales", "F32")
            fits = width == columns and groups > 0 and rows % groups == 0
            hashes = [self._form(f"{name}.{part}", "U8") for part in ("sha256", "check")]
            if not fits or hashes != [[32], [32]] or self._form(f"{name}.errors", "F32") != [2]:
                raise ValueError(name)
        if len(self._file.offset_keys()) != len(self._names) * len(forms_of("", 0, 0, 1)):
            raise ValueError("tensors of no matrix")

    def _form(self, name: str, kind: str) -> list[int]:
        """The shape of a tensor. Raises ValueError where it is of another type."""
        part = self._file.get_slice(name)
        if part.get_dtype() != kind:
            raise ValueError(name)
        return list(part.get_shape())

    @cached_property
    def _names(self) -> list[str]:
        end = ".levels"
        return [name.removesuffix(end) for name in self._file.offset_keys() if name.endswith(end)]

    @cached_property
    def _by_digest(self) -> dict[bytes, list[str]]:
        """The names of the matrices that have the same FP32 values, by their hash."""
        found: dict[bytes, list[str]] = {}
        for name in self._names:
            digest = self._file.get_tensor(f"{name}.sha256").tobytes()
            found.setdefault(digest, []).append(name)
        return found

    def _wrong(self, what: str) -> RisError:
        return RisError(f"{self.path} {what}")
