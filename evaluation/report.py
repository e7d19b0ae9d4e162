"""A comparison as one HTML file that needs nothing else, and as JSON and CSV."""

from __future__ import annotations

import csv
import dataclasses
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
from ris.evaluation.metrics import Mask
from ris.evaluation.pages import escaped, figure, page
from ris.evaluation.plots import draw_plots
from ris.runtime.commands.console import without_nan
from ris.runtime.masks import COLOURS, overlay

Pictures = Callable[[str], NDArray[np.uint8] | None]
"""The pixels of an image, uint8 [H, W, 3], by its name; None where they are gone."""

TRUTH = (255, 255, 255)
"""The colour of true masks."""


def write_report(found: Comparison, out: Path, worst: int, picture: Pictures) -> list[Path]:
    """Writes report.html, report.json and samples.csv; returns their paths.

    Args:
        found: What to report.
        out: The folder, which is there.
        worst: How many disagreements to show.
        picture: Finds the images of the disagreements.
    """
    html, figures, samples = out / "report.html", out / "report.json", out / "samples.csv"
    # an image's name need not be valid Unicode
    html.write_text(shown(_page(found, worst, picture)), encoding="utf-8")
    figures.write_text(json.dumps(without_nan(to_dict(found)), indent=1) + "\n", encoding="utf-8")
    with samples.open("w", newline="", encoding="utf-8", errors="replace") as file:
        csv.writer(file).writerows(_rows(found))
    return [html, figures, samples]


def _rows(found: Comparison) -> Iterator[list[object]]:
    """The rows of samples.csv, the heads first."""
    names = [run.name for run in found.runs]
    heads = ["image", "expression", "kind", "targeted"]
    yield [*heads, *(f"iou: {name}" for name in names), *(f"no target: {name}" for name in names)]

    first = found.runs[0]
    for i, own in enumerate(first.expressions):
        asked = [own.image, own.text, own.kind, int(own.targeted)]
        ious = [f"{value:.6f}" for value in found.ious[:, i]]
        yield [*asked, *ious, *(run.no_target[i] for run in found.runs)]


def to_dict(found: Comparison) -> dict[str, Any]:
    """The figures as JSON."""
    against_first: list[dict[str, Any] | None] = [None]
    for own in found.differences:
        against_first.append({metric: dataclasses.asdict(d) for metric, d in own.items()})
    runs = zip(found.runs, found.scores, against_first, strict=True)
    return {
        "protocol": found.counting.name,
        "compared_at": found.runs[0].where,
        "samples": found.runs[0].samples,
        "left_out": list(found.left_out),
        "runs": [
            {"name": run.name, "scores": scores, "against_first": differences}
            for run, scores, differences in runs
        ],
    }


def _page(found: Comparison, worst: int, picture: Pictures) -> str:
    names = [run.name for run in found.runs]
    title = f"ris-eval compare: {', '.join(names)}"
    cases = [_case(found, i, picture) for i in found.worst(worst)]
    parts = [
        *_introduction(found),
        "<h2>Figures</h2>",
        _figures_table(found),
        _legend(found),
        "<h2>By kind of expression</h2>",
        _kinds_table(found),
        "<h2>IoU</h2>",
        *(figure(image, caption) for image, caption in draw_plots(found)),
        "<h2>Where they disagree most</h2>",
        *(cases or ["<p>Nowhere: all masks have the same IoU.</p>"]),
    ]
    return page(title, parts)


def _introduction(found: Comparison) -> list[str]:
    """What was compared, on what."""
    first, names = found.runs[0], [run.name for run in found.runs]
    title = " against ".join(names) if len(names) == 2 else f"{len(names)} models compared"
    count, images = len(first.expressions), len({own.image for own in first.expressions})
    source = escaped(found.counting.source)
    lines = [
        f"<h1>{escaped(title)}</h1>",
        f"<p>{count} expressions about {images} images ({escaped(_samples(first.samples))}); "
        f"masks compared at {escaped(first.where)}. Counted by: {source}.</p>",
    ]
    if found.left_out:
        items = "".join(f"<li>{escaped(sentence)}</li>" for sentence in found.left_out)
        lines.append(f"<p>{len(found.left_out)} left out:</p>\n<ul>{items}</ul>")
    return lines


def _legend(found: Comparison) -> str:
    """How to read the table of figures."""
    metrics = found.counting.metrics
    items = "".join(
        f"<li>{escaped(name)}: {escaped(meaning)}</li>" for name, meaning in metrics.items()
    )
    return (
        "<p>In small print: the difference to the first, and the interval that holds 95 % of the "
        "differences over 1,000 draws of images, with replacement. An interval that has 0 inside "
        f"is no difference to speak of.</p>\n<ul>{items}</ul>"
    )


def _samples(samples: dict[str, Any]) -> str:
    """The data set and the split, of `SampleSource.to_dict`."""
    return ", ".join(str(samples[key]) for key in ("data", "split") if samples.get(key))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figures_table(found: Comparison) -> str:
    """Every metric of every run, with its difference to the first."""
    metrics = list(found.counting.metrics)
    heads = "".join(f"<th>{escaped(metric)}</th>" for metric in metrics)
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
        rows.append(f"<tr><td>{escaped(run.name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _kinds_table(found: Comparison) -> str:
    """For each kind of expression the first metric of the protocol that it has."""
    metrics = list(found.counting.metrics)
    heads = "".join(f"<th>{escaped(run.name)}</th>" for run in found.runs)
    rows = [f"<tr><th>kind</th><th>expressions</th><th>metric</th>{heads}</tr>"]
    for kind, first in found.scores[0].items():
        metric = next((name for name in metrics if name in first), None)
        if metric is None:
            continue
        about = f"<td>{escaped(kind)}</td><td>{first['samples']:.0f}</td><td>{metric}</td>"
        cells = "".join(f"<td>{_number(scores[kind].get(metric))}</td>" for scores in found.scores)
        rows.append(f"<tr>{about}{cells}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _case(found: Comparison, i: int, picture: Pictures) -> str:
    """One expression: the truth and every run's mask on the image."""
    asked = found.runs[0].expressions[i]
    masks = [run.masks(i) for run in found.runs]
    truth = masks[0][1]
    pixels = picture(asked.image)
    if pixels is None:
        background = np.full((*truth.shape, 3), 128, np.uint8)
    else:
        size = truth.shape[::-1]
        background = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))

    caption = "truth" if asked.targeted else "truth: no such thing"
    panels = [_panel(background, truth, TRUTH, caption)]
    for number, (run, value) in enumerate(zip(found.runs, found.ious[:, i], strict=True)):
        refused = bool(run.figures.refused[i])
        caption = f"{run.name}: IoU {value:.3f}{' (refused)' if refused else ''}"
        mask = np.zeros_like(truth) if refused else masks[number][0]
        panels.append(_panel(background, mask, COLOURS[number % len(COLOURS)], caption))

    head = f"<h3>“{escaped(asked.text)}”, {escaped(asked.image)}</h3>"
    return f"{head}<div class=case>{''.join(panels)}</div>"


def _panel(
    background: NDArray[np.uint8], mask: Mask, colour: tuple[int, int, int], caption: str
) -> str:
    """The background, small, with a mask on it.

    Args:
        background: uint8 [H, W, 3].
        mask: bool [H, W].
        colour: Of the mask.
        caption: What stands below.
    """
    small = Image.fromarray(overlay(background, mask, colour) if mask.any() else background)
    small.thumbnail((480, 480))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return figure(buffer.getvalue(), caption)
