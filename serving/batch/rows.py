"""The rows of a batch: what a worker writes of each question."""

from __future__ import annotations

from typing import Any

from ris.engines.errors import ExpressionError
from ris.engines.text import one_line, shown
from ris.runtime import Segmentation
from ris.serving.batch.inputs import ImageTask


def error_rows(task: ImageTask, reason: str) -> list[dict[str, Any]]:
    """The same error in every row of an image."""
    return [_error(task, i, reason) for i in range(len(task.rows))]


def _base(task: ImageTask, i: int) -> dict[str, Any]:
    # Arrow's text is valid Unicode; a file name or an expression need not be
    name, expression = shown(task.name), shown(task.expressions[i])
    return {"row": task.rows[i], "image": name, "expression": expression}


def _error(task: ImageTask, i: int, reason: str) -> dict[str, Any]:
    return {**_base(task, i), "error": one_line(reason)}


def row_of(task: ImageTask, i: int, answer: Segmentation | ExpressionError) -> dict[str, Any]:
    """The row of an image's question `i`."""
    if isinstance(answer, Segmentation):
        return _answer(task, i, answer)
    return _error(task, i, str(answer))


def _answer(task: ImageTask, i: int, answer: Segmentation) -> dict[str, Any]:
    return {
        **_base(task, i),
        "category": answer.category,
        "form": answer.form,
        "rle": dict(answer.rle()),
        "score": answer.score,
        "no_target": answer.no_target,
        "is_no_target": answer.is_no_target,
        "notes": list(answer.notes),
        "error": None,
    }
