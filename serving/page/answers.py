"""What the page shows of an answer: the picture with coloured masks, and tables in HTML. Knows
nothing of Gradio.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import ExpressionError, RisError
from ris.runtime.masks import COLOURS, overlay
from ris.runtime.model import Segmentation
from ris.serving.answering import Answerer

SHOWN_SIDE = (
    1280  # pixels; larger images are shown smaller, their masks are made at full size all the same
)


@dataclass(frozen=True)
class Shown:
    """picture: RGB [h, w, 3] with the masks; answers, times, running: HTML."""

    picture: NDArray[np.uint8]
    answers: str
    times: str


def answer(
    answerer: Answerer, image: bytes, text: str, category: str | None, threshold: float
) -> Shown:
    """Asks every line of `text` about the image. Raises RisError where there is nothing to show at
    all.
    """
    expressions = [line.strip() for line in text.splitlines() if line.strip()]
    answerer.limits.check_expressions(expressions)
    deadline = answerer.limits.deadline()
    scene, known = answerer.scene(image)
    categories = [category or "auto"] * len(expressions) if answerer.model.categories else None
    answers = answerer.ask(scene, expressions, categories, threshold, deadline)
    picture = _small(answerer.limits.decode(image))
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(answers))]
    for found, colour in zip(answers, colours, strict=True):
        if isinstance(found, Segmentation):
            mask = Image.fromarray(found.mask).resize(
                picture.shape[1::-1], Image.Resampling.NEAREST
            )
            picture = overlay(picture, np.asarray(mask), colour)
    return Shown(picture, _answers(expressions, answers, colours), _times(answers, known))


def _small(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = Image.fromarray(rgb)
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.BILINEAR)
    return np.asarray(picture)


def _answers(
    expressions: Sequence[str],
    answers: Sequence[Segmentation | ExpressionError],
    colours: Sequence[tuple[int, int, int]],
) -> str:
    rows = []
    for text, found, colour in zip(expressions, answers, colours, strict=True):
        swatch = f'<span class="ris-swatch" style="background:rgb{colour}"></span>'
        name = f"<th scope='row'>{swatch}{html.escape(text)}</th>"
        if isinstance(found, ExpressionError):
            rows.append(
                f"<tr>{name}<td colspan='3' class='ris-error'>{html.escape(str(found))}</td></tr>"
            )
            continue
        probability = (
            "the model has no such head" if found.no_target is None else f"{found.no_target:.2f}"
        )
        if found.is_no_target:
            what = "<b>no target</b>: nothing in the image is meant"
        else:
            what = f"{found.mask.mean():.1%} of the image"
        notes = "".join(f"<div class='ris-note'>{html.escape(note)}</div>" for note in found.notes)
        score = "" if found.is_no_target else f"{found.score:.2f}"
        rows.append(f"<tr>{name}<td>{what}{notes}</td><td>{score}</td><td>{probability}</td></tr>")
    head = "<tr><th>expression</th><th>found</th><th>score</th><th>no-target probability</th></tr>"
    return (
        "<table class='ris-table'"
        f" id='ris-answers'><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _times(answers: Sequence[Segmentation | ExpressionError], known: bool) -> str:
    """Milliseconds by stage: the image's once, the expressions' summed."""
    total: dict[str, float] = {}
    for found in answers:
        if isinstance(found, Segmentation):
            for stage, seconds in found.timings.items():
                total[stage] = (
                    seconds if stage.startswith("image.") else total.get(stage, 0.0) + seconds
                )
    of_image = "kept from before" if known else "once"
    rows = "".join(
        f"<tr><th scope='row'>{stage.removeprefix('image.')}</th><td>{seconds * 1000:.1f}</td>"
        f"<td>{of_image if stage.startswith('image.') else 'all expressions'}</td></tr>"
        for stage, seconds in total.items()
    )
    head = "<tr><th>stage</th><th>milliseconds</th><th></th></tr>"
    return (
        "<table class='ris-table'"
        f" id='ris-times'><thead>{head}</thead><tbody>{rows}</tbody></table>"
    )


def running(answerer: Answerer) -> str:
    """Which engine, device and precision runs each graph, as the engines themselves tell."""
    model = answerer.model
    rows = "".join(
        f"<tr><th scope='row'>{stage}</th><td>{model.bundle.manifest.graphs[stage].precision}</td>"
        f"<td>{info.precision or 'not told'}</td>"
        f"<td>{html.escape(f'{info.engine} {info.version}')}</td><td>{info.device}</td>"
        f"<td>{html.escape(info.where)}</td></tr>"
        for stage, info in model.sessions.items()
    )
    head = (
        "<tr><th>graph</th><th>precision</th><th>computes"
        " in</th><th>engine</th><th>device</th><th>what runs</th></tr>"
    )
    return (
        "<table class='ris-table'"
        f" id='ris-running'><thead>{head}</thead><tbody>{rows}</tbody></table>"
    )


def refusal(error: RisError) -> str:
    """An error, said where the answers would be."""
    return f"<div class='ris-error' id='ris-refusal' role='alert'>{html.escape(str(error))}</div>"
