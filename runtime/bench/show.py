"""A report as Markdown and as a plot."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ris import pip_install
from ris.engines.errors import RisError
from ris.runtime.bench.report import BenchReport, Measured, Spread
from ris.runtime.bench.text import ratio, seconds, spread, table
from ris.runtime.cost import once_an_image_words

_BUSY = 0.5
"""The load average for each core from which on a machine is called busy."""

_UNSTEADY = 0.1
"""The middle half of the machine's own products over their median, from which on it is unsteady."""

_FLOOR = (
    "The floor of a graph is its matrix products and convolutions at the rate of the fastest"
    " library for large products, in the precision that most of the graph's ran in."
)


def baseline(report: BenchReport) -> Measured:
    """What the others are compared with: PyTorch eager where it was measured, else the first."""
    return next((m for m in report.alternatives if m.bundle is None), report.alternatives[0])


def warnings(report: BenchReport) -> list[str]:
    """What makes the figures less than sure."""
    found = []
    before, cores = report.machine["load_before"], report.machine["cores"]
    if before is not None and before > _BUSY * cores:
        found.append(
            f"The machine was busy when this began: load average {before} on {cores} cores."
        )
    for precision, libraries in report.rates.items():
        fastest = max(libraries.values(), key=lambda s: s.median)
        middle = fastest.upper - fastest.lower
        if middle > _UNSTEADY * fastest.median:
            found.append(
                f"The machine's speed varied: the middle half of its {precision} matrix products"
                f" spans {middle / fastest.median:.0%} of their median."
            )
    return found


def markdown(report: BenchReport) -> str:
    """The whole report, for people."""
    lines = [
        *_head(report),
        *_first_masks(report),
        *_next_expressions(report),
        *_starts(report),
        *_stages(report),
        *_rates(report),
        *_batches(report),
        *_photo(report),
    ]
    if report.failed:
        lines.append("")
        lines += [f"- Not measured: {name}: {reason}" for name, reason in report.failed.items()]
    return "\n".join(lines) + "\n"


def _head(report: BenchReport) -> list[str]:
    """The machine, the inputs, how it was measured, and warnings."""
    machine, inputs = report.machine, report.inputs
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    anew = "each round in new processes, " if report.anew else ""
    return [
        "# Benchmark",
        "",
        f"{machine['cpu']}, {machine['cores']} cores, {inputs.threads or 'all'} threads;"
        f" {versions}.",
        f'Image {inputs.width}x{inputs.height}, "{inputs.expressions[0]}";'
        f" load average {machine['load_before']} before, {machine['load_after']} after."
        f" Medians of {report.rounds} rounds in which all take turns,"
        f" {anew}with the middle half of the values in brackets.",
        *(f"\n**{text}**" for text in warnings(report)),
    ]


def _first_masks(report: BenchReport) -> list[str]:
    against = baseline(report)
    rows = []
    for m in report.alternatives:
        floor = report.floor(m)
        rows.append(
            [
                m.name,
                spread(m.first_mask),
                ratio(against.first_mask.median, m.first_mask.median),
                seconds(floor),
                ratio(m.first_mask.median, floor),
                seconds(m.host.median) if m.host else "",
                f"{m.peak_memory / 1e9:.2f} GB" if m.peak_memory else "",
            ]
        )
    headings = [
        "first mask",
        "seconds",
        f"times faster than {against.name}",
        "floor",
        "measured / floor",
        "of it the runtime's own",
        "peak memory",
    ]
    return table(headings, rows)


def _next_expressions(report: BenchReport) -> list[str]:
    against = baseline(report)
    rows = []
    for m in report.alternatives:
        floor = report.floor(m, report.per_expression)
        rows.append(
            [
                m.name,
                spread(m.next_expression),
                ratio(against.next_expression.median, m.next_expression.median),
                ratio(m.first_mask.median, m.next_expression.median),
                seconds(floor),
                ratio(m.next_expression.median, floor),
            ]
        )
    headings = [
        "next expression",
        "seconds",
        f"times faster than {against.name}",
        "times cheaper than a first mask",
        "floor",
        "measured / floor",
    ]
    return [*table(headings, rows), *_every_question(report)]


def _every_question(report: BenchReport) -> list[str]:
    """What runs once an image, and so is not in the table above."""
    if not report.per_expression:
        return []  # an old file does not say it
    # another bundle, of before, may have other stages
    whole = (m.operations for m in report.alternatives if {*report.stages} <= m.operations.keys())
    operations = next(whole, {})
    said = once_an_image_words(report.once_an_image, operations)
    return ["", f"{said[0].upper()}{said[1:]}."]


def _starts(report: BenchReport) -> list[str]:
    headings = [
        "cold start",
        "new process to mask",
        "imports",
        "load",
        "first load, which compiled",
    ]
    rows = [
        [m.name, spread(m.cold_start), spread(m.imports), spread(m.load), seconds(m.compile)]
        for m in report.alternatives
        if m.cold_start
    ]
    return table(headings, rows)


def _stages(report: BenchReport) -> list[str]:
    rows = []
    for m in report.alternatives:
        for stage, found in m.stages.items():
            floor = report.floor(m, [stage]) if stage in report.stages else None
            operations = f"{m.operations[stage] / 1e9:.4g}" if stage in m.operations else ""
            rows.append(
                [
                    f"{m.name}: {stage}",
                    m.precision.get(stage, ""),
                    operations,
                    spread(found),
                    seconds(floor),
                    ratio(found.median, floor),
                ]
            )
    headings = [
        "stage of a first mask",
        "ran in",
        "10^9 operations",
        "seconds",
        "floor",
        "measured / floor",
    ]
    return table(headings, rows)


def _rates(report: BenchReport) -> list[str]:
    rows = []
    for precision, libraries in report.rates.items():
        for library, s in libraries.items():
            middle = f"{s.lower / 1e9:.0f} to {s.upper / 1e9:.0f}"
            rows.append([f"{precision}, {library}", f"{s.median / 1e9:.0f}", middle])
    headings = ["matrix products of this machine", "10^9 operations a second", "middle half"]
    lines = table(headings, rows)
    return [*lines, "", _FLOOR] if lines else []


def _batches(report: BenchReport) -> list[str]:
    lines = []
    for m in report.alternatives:
        for what, found in (("images", m.images), ("expressions", m.expressions)):
            alone = found[1].median if 1 in found else None
            rows = [
                [str(size), spread(each), f"{1 / each.median:.3g}", ratio(each.median, alone)]
                for size, each in found.items()
            ]
            headings = [f"{m.name}: {what} together", "seconds each", "a second", "of one alone"]
            lines += table(headings, rows)
        if m.peak_memory_batches:
            lines += ["", f"Peak memory after these: {m.peak_memory_batches / 1e9:.2f} GB."]
    return lines


def _photo(report: BenchReport) -> list[str]:
    headings = ["12-megapixel JPEG to what the graphs take", "seconds"]
    return table(headings, [[name, spread(found)] for name, found in report.photo.items()])


def plot(report: BenchReport, path: Path) -> None:
    """First mask and next expression of every alternative as a PNG, with middle halves and floors.

    Raises RisError where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RisError(f"the plot needs matplotlib: {pip_install('eval')}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    alternatives = report.alternatives
    figure = Figure((10, 2.0 + 0.5 * len(alternatives)), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, "first mask", report, report.stages, [m.first_mask for m in alternatives])
    following = [m.next_expression for m in alternatives]
    _draw(right, "next expression", report, report.per_expression, following)
    left.invert_yaxis()
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)  # over no bar
    figure.suptitle(f"{report.machine['cpu']}, {report.machine['cores']} cores")
    figure.savefig(path, dpi=120, format="png")


def _draw(
    axes: Any, title: str, report: BenchReport, stages: Sequence[str], spreads: Sequence[Spread]
) -> None:
    """One panel of the plot.

    Args:
        axes: Where to draw, of matplotlib.
        title: Its title.
        report: The report.
        stages: The stages under the floor.
        spreads: What to draw, one for each alternative.
    """
    names = [m.name for m in report.alternatives]
    medians = [s.median for s in spreads]
    middle = [[s.median - s.lower for s in spreads], [s.upper - s.median for s in spreads]]
    axes.barh(
        names,
        medians,
        xerr=middle,
        color="#4c78a8",
        capsize=3,
        label="median and middle half",
    )

    floors = [(report.floor(m, stages), row) for row, m in enumerate(report.alternatives)]
    drawn = [(floor, row) for floor, row in floors if floor is not None]
    if drawn:
        axes.scatter(
            *zip(*drawn, strict=True),
            marker="|",
            s=400,
            color="#e45756",
            zorder=3,
            label="floor",
        )
    axes.set_title(title)
    axes.set_xlabel("seconds")
    axes.set_xlim(left=0)
