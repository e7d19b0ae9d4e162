"""Any system's answers to a data set, as a file: JSON lines, or COCO's results.

    {"ref_id": 7, "sent_id": 21, "mask": {"size": [480, 640], "counts": "..."}, "no_target": 0.1}

The ids are the data set's own. docs/reference/evaluation.md has the format in full. The masks of a
JSONL file stay in the file until they are asked for, so that its length does not matter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ris.data.datasets.mask_files import read_mask
from ris.data.datasets.outlines import decode_any_rle
from ris.data.datasets.polygons import coco_masks, unusable
from ris.engines.errors import RisError
from ris.evaluation.protocols.truths import OWN
from ris.runtime.json_lines import parse_json

Mask: TypeAlias = NDArray[np.bool_]
"""bool [H, W]."""

_BROKEN = (
    KeyError,
    TypeError,
    ValueError,
    IndexError,
    AttributeError,
    OverflowError,
    RisError,
)
"""What reading a mask of another form raises."""

Key: TypeAlias = tuple[int | None, int, str | None]
"""(reference id, sentence id, text); None for what the file does not give."""


@dataclass(frozen=True)
class Prediction:
    """One answer."""

    masks: tuple[Mask, ...]
    """The mask, bool [h, w], at one size or at several; pixels on which the model is undecided are
    background."""

    refused: bool
    """Whether the model says that nothing is meant."""

    own: Mask | None = None
    """The mask of the image's size as the model's own code makes it; None where the file names none
    "own"."""


class Predictions:
    """A file of answers, found by the data set's ids.

    `doubled` has the keys that occur more than once; the first of them counts.
    """

    def __init__(self, path: Path) -> None:
        """Reads the ids.

        Raises:
            RisError: Where the file cannot be read, is of no known form or has an answer without
                ids; it names the line.
        """
        self.path = path
        self._places: dict[Key, Any] = {}
        self._other_texts: dict[tuple[int | None, int], Key] = {}
        self._no_target: dict[Key, float | None] = {}
        counted: Counter[Key] = Counter()
        for place, row, where in _rows(path):
            key = _key(row, where)
            counted[key] += 1
            if key not in self._places:
                self._places[key], self._no_target[key] = place, _no_target(row)
            self._other_texts.setdefault(key[:2], key)
        if not counted:
            raise RisError(f"{path} has no answers")
        self.doubled = tuple(key for key, times in counted.items() if times > 1)
        self.keys = frozenset(counted)

    def find(self, reference_id: int, sentence_id: int, text: str | None = None) -> Key | None:
        """The key of an answer to a sentence, None where there is none.

        An answer to this very text is preferred; then one that names no text, then any.
        """
        for reference in (reference_id, None):
            for key in ((reference, sentence_id, text), (reference, sentence_id, None)):
                if key in self._places:
                    return key
            if other := self._other_texts.get((reference, sentence_id)):
                return other
        return None

    def no_target(self, key: Key) -> float | None:
        """The probability of an answer that nothing is meant; None where it says nothing of that.

        1 and 0 where it has a decision alone.
        """
        return self._no_target[key]

    def read(self, key: Key, size: tuple[int, int]) -> Prediction:
        """An answer.

        Args:
            key: One of `keys`.
            size: The image's (height, width), for masks that do not state their own.

        Raises:
            RisError: Where its mask cannot be read.
        """
        place = self._places[key]
        row = place
        if isinstance(place, int):
            with self.path.open("rb") as file:
                file.seek(place)
                row = parse_json(file.readline())
        where = f"{self.path}, the answer to sentence {key[1]}"
        try:
            masks = dict(_masks(row, size, self.path.parent))
            own = masks.get(OWN)
            others = tuple(mask for name, mask in masks.items() if name != OWN)
            return Prediction(others or tuple(masks.values()), _refused(row), own)
        except _BROKEN as error:
            said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise RisError(f"{where} cannot be read: {said}") from None


def _rows(path: Path) -> Iterator[tuple[Any, dict[str, Any], str]]:
    """Each answer's place (an offset, or the row itself), its fields, and where it stands."""
    if path.suffix.lower() == ".json":
        yield from _coco_rows(path)
        return
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, 1):
                if not line.isspace():
                    where = f"{path}, line {number}"
                    yield offset, _object(line, where), where
                offset += len(line)
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from None


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise RisError(f"{where} is {error}") from None
    if not isinstance(found, dict):
        raise RisError(f"{where} is no JSON object")
    return found


def _coco_rows(path: Path) -> Iterator[tuple[Any, dict[str, Any], str]]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise RisError(f"{path} cannot be read: {error}") from None
    rows = found.get("annotations") if isinstance(found, dict) else found
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise RisError(f"{path} is not COCO's form of results: a list of objects")
    for number, row in enumerate(rows):
        yield row, row, f"{path}, entry {number}"


def _key(row: dict[str, Any], where: str) -> Key:
    reference, sentence, text = row.get("ref_id"), row.get("sent_id"), row.get("text")
    if not isinstance(sentence, int) or not isinstance(reference, int | None):
        raise RisError(f"{where}: it needs sent_id, and ref_id if it has one, as whole numbers")
    return reference, sentence, text if isinstance(text, str) else None


def _masks(row: dict[str, Any], size: tuple[int, int], folder: Path) -> Iterator[tuple[str, Mask]]:
    """The answer's mask at every size that it has, by name; "" where it has one alone."""
    given = row["mask"] if "mask" in row else row["segmentation"]
    ties = row.get("tie") or {}
    if isinstance(given, dict) and "counts" not in given:
        if not given:
            raise ValueError("a mask at no size")
        for name, code in given.items():
            mask = _mask(code, size, folder)
            yield name, mask & ~_mask(ties[name], size, folder) if name in ties else mask
    else:
        mask = _mask(given, size, folder)
        yield "", mask & ~_mask(ties, size, folder) if ties else mask


def _mask(given: Any, size: tuple[int, int], folder: Path) -> Mask:
    """A run-length code, polygons, or the name of a mask file; None is an empty mask."""
    if given is None:
        return np.zeros(size, np.bool_)
    if isinstance(given, str):
        return read_mask(folder / given)
    if isinstance(given, dict):
        if isinstance(given.get("counts"), str):
            found: Mask = coco_masks().decode(given).view(np.bool_)
            return found
        return decode_any_rle(given)
    given = [polygon for polygon in given if polygon]  # pycocotools reads past an empty one's end
    if not given:
        return np.zeros(size, np.bool_)
    short = next((polygon for polygon in given if len(polygon) < 6 or len(polygon) % 2), None)
    if short is not None:
        raise ValueError(f"a polygon of {len(short)} numbers")
    if (said := unusable(given)) is not None:
        raise ValueError(said)
    coco = coco_masks()
    merged: Mask = coco.decode(coco.merge(coco.frPyObjects(given, *size))).view(np.bool_)
    return merged


def _refused(row: dict[str, Any]) -> bool:
    """Two logits [target, no target], compared after a sigmoid in float32; or `no_target`."""
    if "nt_logits" in row:
        target, none = (np.float32(logit) for logit in row["nt_logits"])
        return bool(_sigmoid(none) > _sigmoid(target))
    given = row.get("no_target", False)
    return given if isinstance(given, bool) else float(given) > 0.5


def _no_target(row: dict[str, Any]) -> float | None:
    """The probability that nothing is meant, above 0.5 where `_refused` is; None without one."""
    try:
        if "nt_logits" in row:
            target, none = (float(logit) for logit in row["nt_logits"])
            found = float(_sigmoid(np.float32(none - target)))
        else:
            found = float(row["no_target"])
    except _BROKEN:  # without one, or in another form: `read` says what is wrong with it
        return None
    return found if np.isfinite(found) else None


def _sigmoid(value: np.float32) -> np.float32:
    """In float32, where two large logits may have the same probability."""
    with np.errstate(over="ignore"):
        return np.float32(1) / (np.float32(1) + np.exp(-value))
