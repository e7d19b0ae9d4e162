"""Label Studio's requests to its backend, read: tasks, and what an annotator typed.

Whatever a request can make this process do is bounded here. All of it runs in threads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, Field

from ris.engines.errors import ExpressionError, RisError
from ris.serving.http.labelling.label_config import MOST_LABELS, LabelConfig, read_label_config
from ris.serving.http.reading import validated
from ris.serving.limits import LimitError

_RUN_LENGTHS = re.compile(rb'"rle":\s*\[[\d,\s]*\]')
_MOST_PARTS = 1_000_000  # parts of a request's JSON
PART_BYTES = 350
"""Bytes of memory that a part takes at its worst: an empty task."""

_MOST_TASKS = 10_000  # of a request
_MOST_TEXT = 1_000_000  # characters of a text field


class Task(BaseModel):
    """A task, as far as it is read."""

    id: Any = None
    data: dict[str, Any] = {}

    def only(self, fields: Collection[str]) -> Task:
        """The task with these of its fields, and of them what is a text or a list of texts.

        The rest of what a request sends goes with its JSON, as its memory is booked no longer.
        """
        data = {name: _plain(self.data[name]) for name in fields if name in self.data}
        return Task(id=self.id if isinstance(self.id, int | str) else None, data=data)


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [text for text in value if isinstance(text, str)]
    return value if isinstance(value, str) else None


class _Typed(BaseModel):
    """A part of what an annotator did just now."""

    type: str = ""
    from_name: str = ""
    value: dict[str, Any] = {}


class _Context(BaseModel):
    """What an annotator did just now."""

    result: Annotated[list[_Typed], Field(fail_fast=True)] = []


class _Params(BaseModel):
    """What comes along with tasks."""

    context: _Context | None = None


class _Predict(BaseModel):
    """The body of /predict. What else Label Studio sends is left alone."""

    tasks: Annotated[list[Task], Field(fail_fast=True)]
    label_config: str
    params: _Params | None = None


@dataclass(frozen=True)
class Order:
    """A request that was read."""

    tasks: list[Task]
    """The tasks."""

    waits: bool
    """Whether an annotator waits for the answer, and may have a field for what was said."""

    config: LabelConfig | None = None
    """The labelling configuration, where it can be read."""

    typed: list[str] | None = None
    """What the annotator typed; None where nobody waits: tasks are annotated ahead."""

    error: RisError | None = None
    """Why no task can be answered."""


def _texts(context: _Context, config: LabelConfig) -> list[str]:
    """What stands in the text fields for phrases, each once.

    Raises ExpressionError where somebody drew, and typed nothing.
    """
    fields = (
        part
        for part in context.result
        if part.type == "textarea" and part.from_name in config.prompts
    )
    texts = _phrases(line for part in fields for line in _lines(part.value.get("text")))
    if not texts and any(part.type != "textarea" for part in context.result):
        raise ExpressionError("this model takes words: type a phrase into the text field")
    return texts


def prompts_of(task: Task, config: LabelConfig) -> list[str]:
    """The phrases in a task's own data, of the fields that fill the text fields, each once."""
    fields = dict.fromkeys(filter(None, config.prompts.values()))
    return _phrases(line for name in fields for line in _lines(task.data.get(name)))


def _phrases(lines: Iterable[str]) -> list[str]:
    """Each once. Raises LimitError for more of them than are asked of a picture."""
    found: dict[str, None] = {}
    for line in lines:
        found[line] = None
        if len(found) > MOST_LABELS:
            raise LimitError(f"more than {MOST_LABELS} phrases for a picture", 413)
    return list(found)


def _lines(value: Any) -> Iterator[str]:
    for text in value if isinstance(value, list) else [value]:
        if not isinstance(text, str):
            continue
        if len(text) > _MOST_TEXT:
            raise LimitError(f"a text field has more than {_MOST_TEXT} characters", 413)
        yield from filter(None, map(str.strip, text.splitlines()))


def read_order(body: bytes) -> Order:
    """The body of /predict, as `counted` left it, with all that its tasks share. Runs in a thread.

    Raises RisError where the request itself cannot be understood.
    """
    request = validated(body, _Predict, "the request")
    if len(request.tasks) > _MOST_TASKS:
        raise LimitError(
            f"{len(request.tasks)} tasks, at most {_MOST_TASKS} are answered at once", 413
        )
    context = request.params.context if request.params else None
    waits, config = context is not None, None
    typed, failed = None, None
    try:
        config = read_label_config(request.label_config)
        typed = None if context is None else _texts(context, config)
    except RisError as error:
        failed = error
    fields: set[str] = set()
    if config is not None:
        fields = {config.field, *filter(None, config.prompts.values())}
    return Order([task.only(fields) for task in request.tasks], waits, config, typed, failed)


def counted(body: bytes) -> bytes:
    """A body without the run lengths of regions that are there already, which are not read.

    Raises LimitError where it has too many parts all the same.
    """
    body = _RUN_LENGTHS.sub(b'"rle":[]', body)
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > _MOST_PARTS:
        raise LimitError("the tasks have too many parts; send fewer of them at once", 413)
    return body


def check_setup(body: bytes) -> str | None:
    """Why a configuration leaves no place for masks; None where it does. Runs in a thread."""
    try:
        read_label_config(str(json.loads(body).get("schema") or ""))
    except (ValueError, AttributeError, RecursionError):
        raise ExpressionError("/setup takes a JSON object with schema") from None
    except RisError as error:
        return str(error)
    return None
