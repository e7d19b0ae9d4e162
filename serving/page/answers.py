"""What the page shows of an answer: the picture with coloured masks, and tables in HTML.

Nothing here knows of Gradio.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import ExpressionError, RisError
from ris.runtime import Segmentation
from ris.runtime.json_lines import text_lines
from ris.runtime.masks import COLOURS, overlay
from ris.serving.answering import Answerer

SHOWN_SIDE = 1280
"""Pixels. Larger images are shown smaller; their masks are made at full size all the same."""

Colour = tuple[int, int, int]
"""Red, green and blue, 0 to 255."""


@dataclass(frozen=True)
class Shown:
    """What the page shows of the answers to one question."""

    picture: NDArray[np.uint8]
    """RGB [h, w, 3] with the masks, at most `SHOWN_SIDE` pixels wide and high."""

    answers: str
    """HTML: a row for each expression."""

    times: str
    """HTML: the milliseconds of each stage."""


def answer(
    answerer: Answerer, image: bytes, text: str, category: str | None, threshold: float
) -> Shown:
    """Asks every line of `text` about the image.

    Args:
        answerer: The model.
        image: The bytes of an image file.
        text: An expression a line; empty lines are left out.
        category: Asked with every expression by models that ask by category. None: "auto".
        threshold: Above this no-target probability the mask is empty.

    Raises:
        RisError: Where there is nothing to show at all: no image, no expression, over a limit.
    """
    expressions = text_lines(text)
    answerer.limits.check_expressions(expressions)
    deadline = answerer.limits.deadline()

    scene, known = answerer.scene(image)
    categories = [category or "auto"] * len(expressions) if answerer.model.categories else None
    answers = answerer.ask(scene, expressions, categories, threshold, deadline)

    colours = [COLOURS[i % len(COLOURS)] for i in range(len(answers))]
    picture = _painted(answerer.limits.decode(image), answers, colours)
    return Shown(picture, _answers(expressions, answers, colours), _times(answers, known))


def _painted(
    rgb: NDArray[np.uint8],
    answers: Sequence[Segmentation | ExpressionError],
    colours: Sequence[Colour],
) -> NDArray[np.uint8]:
    """The image at the size at which it is shown, with each mask in its colour."""
    small = Image.fromarray(rgb)
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
    picture = np.asarray(small)

    for found, colour in zip(answers, colours, strict=True):
        if isinstance(found, Segmentation):
            mask = Image.fromarray(found.mask).resize(small.size, Image.Resampling.NEAREST)
            picture = overlay(picture, np.asarray(mask), colour)
    return picture


def _answers(
    expressions: Sequence[str],
    answers: Sequence[Segmentation | ExpressionError],
    colours: Sequence[Colour],
) -> str:
    rows = []
    for text, found, colour in zip(expressions, answers, colours, strict=True):
        swatch = f'<span class="ris-swatch" style="background:rgb{colour}"></span>'
        name = f"<th scope='row'>{swatch}{html.escape(text)}</th>"
        if isinstance(found, ExpressionError):
            cells = f"<td colspan='3' class='ris-error'>{html.escape(str(found))}</td>"
        else:
            cells = _found(found)
        rows.append(f"<tr>{name}{cells}</tr>")

    columns = ("expression", "found", "score", "no-target probability")
    return _table("ris-answers", columns, rows)


def _found(answer: Segmentation) -> str:
    """The cells of one answer: what was found, its score, the no-target probability."""
    if answer.is_no_target:
        what, score = "<b>no target</b>: nothing in the image is meant", ""
    else:
        what, score = f"{answer.mask.mean():.1%} of the image", f"{answer.score:.2f}"
    notes = "".join(f"<div class='ris-note'>{html.escape(note)}</div>" for note in answer.notes)

    if answer.no_target is None:
        probability = "the model has no such head"
    else:
        probability = f"{answer.no_target:.2f}"
    return f"<td>{what}{notes}</td><td>{score}</td><td>{probability}</td>"


def _times(answers: Sequence[Segmentation | ExpressionError], known: bool) -> str:
    """Milliseconds by stage: the image's once, the expressions' summed."""
    total: dict[str, float] = {}
    for found in answers:
        if isinstance(found, Segmentation):
            for stage, seconds in found.timings.items():
                of_image = stage.startswith("image.")
                total[stage] = seconds if of_image else total.get(stage, 0.0) + seconds

    rows = []
    for stage, seconds in total.items():
        if stage.startswith("image."):
            how_often = "kept from before" if known else "once"
        else:
            how_often = "all expressions"
        rows.append(
            f"<tr><th scope='row'>{stage.removeprefix('image.')}</th>"
            f"<td>{seconds * 1000:.1f}</td><td>{how_often}</td></tr>"
        )
    return _table("ris-times", ("stage", "milliseconds", ""), rows)


def running(answerer: Answerer) -> str:
    """HTML: the engine, device and precision of each graph, as the engines themselves tell."""
    model = answerer.model
    rows = []
    for stage, info in model.sessions.items():
        cells = (
            model.bundle.manifest.graphs[stage].precision,
            info.precision or "not told",
            html.escape(f"{info.engine} {info.version}"),
            info.device,
            html.escape(info.where),
        )
        values = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f"<tr><th scope='row'>{stage}</th>{values}</tr>")

    columns = ("graph", "precision", "computes in", "engine", "device", "what runs")
    return _table("ris-running", columns, rows)


def _table(element: str, columns: Sequence[str], rows: Sequence[str]) -> str:
    head = "".join(f"<th>{column}</th>" for column in columns)
    return (
        f"<table class='ris-table' id='{element}'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table>"
    )


def refusal(error: RisError) -> str:
    """HTML: an error, shown in place of the answers."""
    return f"<div class='ris-error' id='ris-refusal' role='alert'>{html.escape(str(error))}</div>"
