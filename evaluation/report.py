"""A comparison as one HTML file that needs nothing else, and as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.text import shown
from ris.evaluation.compare import Comparison
from ris.evaluation.metrics import PROTOCOLS
from ris.evaluation.plots import draw_plots
from ris.runtime.masks import COLOURS, Rle, decode_rle, overlay

Pictures = Callable[[str], NDArray[np.uint8] | None]
"""The pixels of an image, uint8 [H, W, 3], by its name; None where they are gone."""

TRUTH = (255, 255, 255)
"""The colour of true masks."""

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem;
  color: #1b1b1f }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid #ddd; text-align: right }
th:first-child, td:first-child { text-align: left }
td small { color: #666 } figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto }
figcaption { color: #444 }
.case { display: flex; flex-wrap: wrap; gap: .5rem } .case figure { margin: 0; width: 15rem }
"""


def write_report(found: Comparison, out: Path, worst: int, picture: Pictures) -> list[Path]:
    """Writes report.html, report.json and samples.csv; returns their paths.

    Args:
        found: What to report.
        out: The folder, which is there.
        worst: How many disagreements to show.
        picture: Finds the images of the disagreements.
    """
    page, figures, samples = out / "report.html", out / "report.json", out / "samples.csv"
    # an image's name need not be valid Unicode
    page.write_text(shown(_page(found, worst, picture)), encoding="utf-8")
    figures.write_text(json.dumps(to_dict(found), indent=1) + "\n", encoding="utf-8")
    with samples.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows(_rows(found))
    return [page, figures, samples]


def _rows(found: Comparison) -> Iterator[list[object]]:
    """The rows of samples.csv, the heads first."""
    names = [run.name for run in found.runs]
    heads = ["image", "expression", "kind", "targeted"]
    yield [*heads, *(f"iou: {name}" for name in names), *(f"no target: {name}" for name in names)]

    first = found.runs[0]
    for i, (image, answer) in enumerate(zip(first.images, first.answers, strict=True)):
        asked = [image, answer.expression, answer.kind, int(answer.targeted)]
        ious = [f"{value:.6f}" for value in found.ious[:, i]]
        yield [*asked, *ious, *(run.answers[i].no_target for run in found.runs)]


def to_dict(found: Comparison) -> dict[str, Any]:
    """The figures as JSON."""
    against_first: list[dict[str, Any] | None] = [None]
    for own in found.differences:
        against_first.append({metric: dataclasses.asdict(d) for metric, d in own.items()})
    runs = zip(found.runs, found.scores, against_first, strict=True)
    return {
        "protocol": found.protocol,
        "no_target_threshold": found.threshold,
        "at": found.runs[0].at,
        "samples": found.runs[0].samples,
        "left_out": list(found.left_out),
        "runs": [
            {"name": run.name, "scores": scores, "against_first": differences}
            for run, scores, differences in runs
        ],
    }


def _page(found: Comparison, worst: int, picture: Pictures) -> str:
    names = [run.name for run in found.runs]
    title = _text(f"ris-eval compare: {', '.join(names)}")
    cases = [_case(found, i, picture) for i in found.worst(worst)]
    parts = [
        *_introduction(found),
        "<h2>Figures</h2>",
        _figures_table(found),
        _legend(found),
        "<h2>By kind of expression</h2>",
        _kinds_table(found),
        "<h2>IoU</h2>",
        *(_figure(image, caption) for image, caption in draw_plots(found)),
        "<h2>Where they disagree most</h2>",
        *(cases or ["<p>Nowhere: all masks have the same IoU.</p>"]),
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _introduction(found: Comparison) -> list[str]:
    """What was compared, on what."""
    first, names = found.runs[0], [run.name for run in found.runs]
    title = " against ".join(names) if len(names) == 2 else f"{len(names)} models compared"
    count, images = len(first.answers), len(set(first.images))
    places = {"image": "the image's own size", "model": "the model's square"}
    where = places.get(first.at, first.at)
    source = PROTOCOLS[found.protocol].source
    lines = [
        f"<h1>{_text(title)}</h1>",
        f"<p>{count} expressions about {images} images ({_text(_samples(first.samples))}); "
        f"masks compared at {_text(where)}. Counted by: {_text(source)}.</p>",
    ]
    if found.left_out:
        items = "".join(f"<li>{_text(sentence)}</li>" for sentence in found.left_out)
        lines.append(f"<p>{len(found.left_out)} left out:</p>\n<ul>{items}</ul>")
    return lines


def _legend(found: Comparison) -> str:
    """How to read the table of figures."""
    metrics = PROTOCOLS[found.protocol].metrics
    items = "".join(
        f"<li>{_text(name)}: {_text(meaning)}</li>" for name, meaning in metrics.items()
    )
    return (
        "<p>In small print: the difference to the first, and the interval that holds 95 % of the "
        "differences over 1,000 draws of images, with replacement. An interval that has 0 inside "
        f"is no difference to speak of.</p>\n<ul>{items}</ul>"
    )


def _text(words: object) -> str:
    return html.escape(str(words))


def _samples(samples: dict[str, Any]) -> str:
    """The data set and the split, of `SampleSource.to_dict`."""
    return ", ".join(str(samples[key]) for key in ("data", "split") if samples.get(key))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figures_table(found: Comparison) -> str:
    """Every metric of every run, with its difference to the first."""
    metrics = [metric for metric in PROTOCOLS[found.protocol].metrics if metric != "samples"]
    heads = "".join(f"<th>{_text(metric)}</th>" for metric in metrics)
    rows = [f"<tr><th>model</th>{heads}</tr>"]
    for run, scores, differences in zip(
        found.runs, found.scores, ({}, *found.differences), strict=True
    ):
        cells = []
        for metric in metrics:
            cell = _number(scores["all"].get(metric))
            if metric in differences:
                own = differences[metric]
                interval = f"[{own.low:+.4f}, {own.high:+.4f}]"
                cell += f"<br><small>{own.value:+.4f} {interval}</small>"
            cells.append(f"<td>{cell}</td>")
        rows.append(f"<tr><td>{_text(run.name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _kinds_table(found: Comparison) -> str:
    """For each kind of expression the first metric of the protocol that it has."""
    metrics = [metric for metric in PROTOCOLS[found.protocol].metrics if metric != "samples"]
    heads = "".join(f"<th>{_text(run.name)}</th>" for run in found.runs)
    rows = [f"<tr><th>kind</th><th>expressions</th><th>metric</th>{heads}</tr>"]
    for kind, first in found.scores[0].items():
        metric = next((name for name in metrics if name in first), None)
        if metric is None:
            continue
        about = f"<td>{_text(kind)}</td><td>{first['samples']:.0f}</td><td>{metric}</td>"
        cells = "".join(f"<td>{_number(scores[kind].get(metric))}</td>" for scores in found.scores)
        rows.append(f"<tr>{about}{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _figure(image: bytes, caption: str) -> str:
    """A PNG file with its caption, inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    text = _text(caption)
    return f'<figure><img src="{source}" alt="{text}"><figcaption>{text}</figcaption></figure>'


def _case(found: Comparison, i: int, picture: Pictures) -> str:
    """One expression: the truth and every run's mask on the image."""
    answer, image = found.runs[0].answers[i], found.runs[0].images[i]
    pixels = picture(image)
    if pixels is None:
        background = np.full((answer.height, answer.width, 3), 128, np.uint8)
    else:
        size = (answer.width, answer.height)
        background = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    caption = "truth" if answer.targeted else "truth: no such thing"
    panels = [_panel(background, answer.truth_mask, TRUTH, caption)]
    for number, (run, value) in enumerate(zip(found.runs, found.ious[:, i], strict=True)):
        own = run.answers[i]
        refused = own.refused(found.threshold)
        caption = f"{run.name}: IoU {value:.3f}{' (refused)' if refused else ''}"
        mask = "" if refused else own.mask
        panels.append(_panel(background, mask, COLOURS[number % len(COLOURS)], caption))

    head = f"<h3>“{_text(answer.expression)}”, {_text(image)}</h3>"
    return f"{head}<div class=case>{''.join(panels)}</div>"


def _panel(
    background: NDArray[np.uint8], code: str, colour: tuple[int, int, int], caption: str
) -> str:
    """The background, small, with a mask on it where there is a run-length code.

    Args:
        background: uint8 [H, W, 3].
        code: A mask of this size as COCO's compressed run-length code; empty for none.
        colour: Of the mask.
        caption: What stands below.
    """
    height, width = background.shape[:2]
    shown = background
    if code:
        mask = decode_rle(Rle(size=[height, width], counts=code))
        shown = overlay(background, mask, colour)
    small = Image.fromarray(shown)
    small.thumbnail((480, 480))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return _figure(buffer.getvalue(), caption)
