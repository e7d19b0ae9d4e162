"""How an answer is written: run lengths, polygons, a PNG file, as bytes of JSON."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ris.engines.errors import ExpressionError
from ris.engines.text import shown
from ris.runtime import Segmentation
from ris.runtime.formats.places import plain
from ris.runtime.outlines import Polygon
from ris.serving.limits import LimitError

FORMS = ("rle", "polygons", "coco", "png")
"""How a mask may be written."""

RLE, POLYGONS, COCO, PNG = FORMS


@dataclass(frozen=True)
class Written:
    """An answer as it is sent."""

    body: bytes
    """A JSON object."""

    is_no_target: bool
    """Whether the mask is empty since nothing is meant."""


class Writer:
    """Writes the answers of one request, up to a size. One thread at a time uses it."""

    def __init__(self, forms: Collection[str], tolerance: float, most: int) -> None:
        """forms: of `FORMS`; tolerance: of polygons, in pixels; most: bytes of all answers."""
        self._forms, self._tolerance, self._most = forms, tolerance, most
        self._size = 0

    def __call__(self, answer: Segmentation) -> Written:
        """The answer as JSON.

        Raises:
            LimitError: Where the answers become too long.
        """
        fields: dict[str, Any] = {
            "expression": shown(answer.expression),
            "category": answer.category,
            "category_guessed_from": answer.category_word,
            "score": _number(answer.score),
            "no_target": _number(answer.no_target),
            "is_no_target": answer.is_no_target,
            "box": answer.box,
            "area": int(np.count_nonzero(answer.mask)),
            "seed": answer.draws.seed,
            "notes": [shown(note) for note in answer.notes],
        }
        if answer.form is not None:
            fields["form"] = answer.form
        body = json.dumps(fields, ensure_ascii=False).encode()
        parts = [body[:-1]]
        for form in FORMS:
            if form in self._forms:
                parts.append(b', "%s": ' % form.encode() + self._written(form, answer))
                self._count(len(parts[-1]))
        return Written(b"".join([*parts, b"}"]), answer.is_no_target)

    def _written(self, form: str, answer: Segmentation) -> bytes:
        if form == RLE:
            return json.dumps(answer.rle()).encode()
        if form == POLYGONS:
            return b"[" + b", ".join(map(self._polygon, answer.polygons(self._tolerance))) + b"]"
        if form == COCO:
            return b"[" + b", ".join(map(self._joined, answer.polygons(self._tolerance))) + b"]"
        return b'"' + base64.b64encode(png_file(answer)) + b'"'

    def _polygon(self, polygon: Polygon) -> bytes:
        rings = {
            "outer": polygon.outer.tolist(),
            "holes": [hole.tolist() for hole in polygon.holes],
        }
        return json.dumps(rings, separators=(",", ":")).encode()

    def _joined(self, polygon: Polygon) -> bytes:
        """x, y, x, y and so on: COCO has no holes, and a bridge leads to each."""
        numbers = [number for point in plain(polygon.joined()) for number in point]
        return json.dumps(numbers, separators=(",", ":")).encode()

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._most:
            raise LimitError(
                f"the answer has more than {self._most / 1e6:g} MB; ask for fewer expressions, for"
                " rle, or for polygons with a tolerance",
                413,
            )


def _number(value: float | None) -> float | None:
    """A probability for JSON, which has no NaN."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def png_file(answer: Segmentation) -> bytes:
    """The mask as a PNG file of one bit a pixel, 1 where the object is."""
    buffer = io.BytesIO()
    Image.fromarray(answer.mask).save(buffer, "PNG")
    return buffer.getvalue()


def refused(expression: str, error: ExpressionError) -> bytes:
    """The JSON object in the place of an answer that cannot be given."""
    fields = {"expression": shown(expression), "error": {"status": 400, "message": str(error)}}
    return json.dumps(fields, ensure_ascii=False).encode()
