"""A comparison as one HTML file that needs nothing else, and as JSON and CSV."""

from __future__ import annotations

import base64
import csv
import dataclasses
import html
import importlib.util
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris import pip_install
from ris.engines.errors import RisError
from ris.evaluation.compare import Comparison
from ris.evaluation.metrics import PROTOCOLS
from ris.runtime.masks import COLOURS, Rle, decode_rle, overlay

TRUTH = (255, 255, 255)
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


def require_matplotlib() -> None:
    """Raises RisError where the report's plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RisError(f"a report needs matplotlib: {pip_install('eval')}")


def write_report(
    found: Comparison, out: Path, worst: int, picture: Callable[[str], NDArray[np.uint8] | None]
) -> list[Path]:
    """Writes report.html, report.json and samples.csv into the folder `out`; returns them.

    worst: how many disagreements are shown; picture: the pixels of an image by name, None where
    they are gone.
    """
    files = [out / "report.html", out / "report.json", out / "samples.csv"]
    files[0].write_text(_page(found, worst, picture), encoding="utf-8")
    files[1].write_text(json.dumps(to_dict(found), indent=1) + "\n", encoding="utf-8")
    with files[2].open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        names = [run.name for run in found.runs]
        rows.writerow(
            [
                "image",
                "expression",
                "kind",
                "targeted",
                *(f"iou: {n}" for n in names),
                *(f"no target: {n}" for n in names),
            ]
        )
        for i, (image, answer) in enumerate(
            zip(found.runs[0].images, found.runs[0].answers, strict=True)
        ):
            said = [run.answers[i].no_target for run in found.runs]
            rows.writerow(
                [
                    image,
                    answer.expression,
                    answer.kind,
                    int(answer.targeted),
                    *(f"{value:.6f}" for value in found.ious[:, i]),
                    *said,
                ]
            )
    return files


def to_dict(found: Comparison) -> dict[str, Any]:
    """The figures as JSON."""
    return {
        "protocol": found.protocol,
        "no_target_threshold": found.threshold,
        "at": found.runs[0].at,
        "samples": found.runs[0].samples,
        "runs": [
            {"name": run.name, "scores": scores, "against_first": differences}
            for run, scores, differences in zip(
                found.runs,
                found.scores,
                [
                    None,
                    *(
                        {k: dataclasses.asdict(d) for k, d in own.items()}
                        for own in found.differences
                    ),
                ],
                strict=True,
            )
        ],
    }


def _page(found: Comparison, worst: int, picture: Callable[[str], NDArray[np.uint8] | None]) -> str:
    protocol = PROTOCOLS[found.protocol]
    names = [run.name for run in found.runs]
    size = {"image": "the image's own size", "model": "the model's square"}.get(found.runs[0].at)
    title = " against ".join(names) if len(names) == 2 else f"{len(names)} models compared"
    parts = [
        f"<h1>{_text(title)}</h1>",
        (
            f"<p>{len(found.runs[0].answers)} expressions about {len(set(found.runs[0].images))}"
            f" images ({_text(_samples(found.runs[0].samples))}); masks compared at"
            f" {_text(size or found.runs[0].at)}. Counted by: {_text(protocol.source)}.</p>"
        ),
        "<h2>Figures</h2>",
        _figures_table(found),
        (
            "<p>In small print: the difference to the first, and the interval that holds 95 % of"
            " the differences over 1,000 draws of images, with replacement. An interval that has 0"
            " inside is no difference to speak of.</p>"
        ),
        "<ul>"
        + "".join(f"<li>{_text(k)}: {_text(v)}</li>" for k, v in protocol.metrics.items())
        + "</ul>",
        "<h2>By kind of expression</h2>",
        _kinds_table(found),
        "<h2>IoU</h2>",
        *(_figure(image, caption) for image, caption in _plots(found)),
        "<h2>Where they disagree most</h2>",
    ]
    shown = found.worst(worst)
    parts += [_case(found, i, picture) for i in shown] or [
        "<p>Nowhere: all masks have the same IoU.</p>"
    ]
    title = _text(f"ris-eval compare: {', '.join(names)}")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>\n'
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def _text(words: object) -> str:
    return html.escape(str(words))


def _samples(samples: dict[str, Any]) -> str:
    return ", ".join(str(samples[key]) for key in ("data", "split") if samples.get(key))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _figures_table(found: Comparison) -> str:
    metrics = [m for m in PROTOCOLS[found.protocol].metrics if m != "samples"]
    rows = ["<tr><th>model</th>" + "".join(f"<th>{_text(m)}</th>" for m in metrics) + "</tr>"]
    for i, run in enumerate(found.runs):
        cells = []
        for metric in metrics:
            cell = _number(found.scores[i]["all"].get(metric))
            if i and metric in found.differences[i - 1]:
                d = found.differences[i - 1][metric]
                cell += f"<br><small>{d.value:+.4f} [{d.low:+.4f}, {d.high:+.4f}]</small>"
            cells.append(f"<td>{cell}</td>")
        rows.append(f"<tr><td>{_text(run.name)}</td>{''.join(cells)}</tr>")
    return f"<table>{''.join(rows)}</table>"


def _kinds_table(found: Comparison) -> str:
    """The first metric of the protocol that a kind has."""
    metrics = [m for m in PROTOCOLS[found.protocol].metrics if m != "samples"]
    heads = "".join(f"<th>{_text(run.name)}</th>" for run in found.runs)
    rows = [f"<tr><th>kind</th><th>expressions</th><th>metric</th>{heads}</tr>"]
    for kind, first in found.scores[0].items():
        metric = next((m for m in metrics if m in first), None)
        if metric is None:
            continue
        cells = "".join(f"<td>{_number(scores[kind].get(metric))}</td>" for scores in found.scores)
        rows.append(
            f"<tr><td>{_text(kind)}</td><td>{first['samples']:.0f}</td><td>{metric}</td>{cells}</tr>"
        )
    return f"<table>{''.join(rows)}</table>"


def _figure(image: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(image).decode()}"
    return (
        f'<figure><img src="{source}"'
        f' alt="{_text(caption)}"><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _plots(found: Comparison) -> list[tuple[bytes, str]]:
    """(PNG, caption): histograms side by side, the share above each IoU, and each run against the
    first.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    targeted = np.array([answer.targeted for answer in found.runs[0].answers])
    ious, names = found.ious[:, targeted], [run.name for run in found.runs]
    if not targeted.any():
        return []
    colours = [
        tuple(channel / 255 for channel in COLOURS[i % len(COLOURS)]) for i in range(len(names))
    ]
    done = []

    def save(figure: Any, caption: str) -> None:
        buffer = io.BytesIO()
        figure.tight_layout()
        figure.savefig(buffer, format="png", dpi=110)
        pyplot.close(figure)
        done.append((buffer.getvalue(), caption))

    figure, axes = pyplot.subplots(
        1, len(names), figsize=(max(5.0, 3.6 * len(names)), 3.4), sharey=True, squeeze=False
    )
    for axis, values, name, colour in zip(axes[0], ious, names, colours, strict=True):
        axis.hist(values, bins=20, range=(0, 1), color=colour)
        axis.set(title=_short(name), xlabel="IoU", xlim=(0, 1))
    axes[0][0].set_ylabel("targeted expressions")
    save(figure, "IoU of the targeted expressions, refused ones 0")

    figure, axis = pyplot.subplots(figsize=(6, 4))
    limits = np.linspace(0, 1, 101)
    for values, name, colour in zip(ious, names, colours, strict=True):
        axis.plot(
            limits, [(values >= limit).mean() for limit in limits], label=_short(name), color=colour
        )
    axis.set(xlabel="IoU threshold X", ylabel="Pr@X", xlim=(0, 1), ylim=(0, 1.01))
    axis.grid(alpha=0.3)
    axis.legend()
    save(figure, "Share of the targeted expressions whose mask reaches each IoU")

    for values, name, colour in zip(ious[1:], names[1:], colours[1:], strict=True):
        figure, axis = pyplot.subplots(figsize=(4.6, 4.4))
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        axis.scatter(ious[0], values, s=8, color=colour, alpha=0.4, linewidths=0)
        axis.set(
            xlabel=f"IoU, {_short(names[0])}",
            ylabel=f"IoU, {_short(name)}",
            xlim=(-0.02, 1.02),
            ylim=(-0.02, 1.02),
        )
        same = float((np.abs(values - ious[0]) < 0.01).mean())
        save(
            figure, f"Every targeted expression, {name} against {names[0]}: {same:.1%} within 0.01"
        )
    return done


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"


def _case(found: Comparison, i: int, picture: Callable[[str], NDArray[np.uint8] | None]) -> str:
    """One expression: the truth and every run's mask on the image."""
    answer, image = found.runs[0].answers[i], found.runs[0].images[i]
    pixels = picture(image)
    size = (answer.width, answer.height)
    if pixels is None:
        background = np.full((answer.height, answer.width, 3), 128, np.uint8)
    else:
        background = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
    panels = [
        _panel(
            background,
            answer.truth_mask,
            TRUTH,
            "truth" if answer.targeted else "truth: no such thing",
        )
    ]
    for number, (run, value) in enumerate(zip(found.runs, found.ious[:, i], strict=True)):
        own = run.answers[i]
        refused = " (refused)" if own.refused(found.threshold) else ""
        mask = "" if refused else own.mask
        panels.append(
            _panel(
                background,
                mask,
                COLOURS[number % len(COLOURS)],
                f"{run.name}: IoU {value:.3f}{refused}",
            )
        )
    return (
        f"<h3>“{_text(answer.expression)}”, {_text(image)}</h3><div"
        f" class=case>{''.join(panels)}</div>"
    )


def _panel(
    background: NDArray[np.uint8], code: str, colour: tuple[int, int, int], caption: str
) -> str:
    height, width = background.shape[:2]
    shown = background
    if code:
        shown = overlay(background, decode_rle(Rle(size=[height, width], counts=code)), colour)
    small = Image.fromarray(shown)
    small.thumbnail((480, 480))
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True)
    return _figure(buffer.getvalue(), caption)
