"""A report as Markdown and as a plot, and two reports beside each other."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

from ris import pip_install
from ris.engines.errors import RisError
from ris.runtime.bench.report import PER_EXPRESSION, BenchReport, Measured, Spread
from ris.runtime.bundle import STAGES

_BUSY = 0.5  # load average for each core from where on a machine is called busy
_UNSTEADY = 0.1  # middle half of the machine's own products, over their median


def _seconds(value: float | None) -> str:
    """For people: milliseconds below a second."""
    if value is None:
        return ""
    return (
        f"{value:.2f} s"
        if value >= 1
        else f"{value * 1000:.3g} ms"
        if value < 0.1
        else f"{value * 1000:.0f} ms"
    )


def _spread(found: Spread | None) -> str:
    """Median, and the middle half where there were several runs."""
    if found is None:
        return ""
    middle = f" ({_seconds(found.lower)} to {_seconds(found.upper)})" if found.runs > 1 else ""
    return _seconds(found.median) + middle


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a and b else ""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right; none without rows."""
    if not rows:
        return []
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]


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
        spread = max(libraries.values(), key=lambda s: s.median)
        if spread.upper - spread.lower > _UNSTEADY * spread.median:
            share = (spread.upper - spread.lower) / spread.median
            found.append(
                f"The machine's speed varied: the middle half of its {precision} matrix products"
                f" spans {share:.0%} of their median."
            )
    return found


def markdown(report: BenchReport) -> str:
    """The whole report, for people."""
    machine, inputs = report.machine, report.inputs
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    lines = [
        "# Benchmark",
        "",
        (
            f"{machine['cpu']}, {machine['cores']} cores, {inputs.threads or 'all'} threads;"
            f" {versions}."
        ),
        f'Image {inputs.width}x{inputs.height}, "{inputs.expressions[0]}"; load average'
        f" {machine['load_before']} "
        f"before, {machine['load_after']} after. Medians of {report.rounds} rounds in which all"
        " take turns, "
        f"{'each round in new processes, ' * report.anew}with the middle half of the values in"
        " brackets.",
        *(f"\n**{text}**" for text in warnings(report)),
        *_first_masks(report),
        *_next_expressions(report),
        *_starts(report),
        *_stages(report),
        *_rates(report),
        *_batches(report),
        *_table(
            ["12-megapixel JPEG to the encoders' inputs", "seconds"],
            [[name, _spread(spread)] for name, spread in report.photo.items()],
        ),
    ]
    lines += [
        "",
        *(f"- Not measured: {name}: {reason}" for name, reason in report.failed.items()),
    ] * bool(report.failed)
    return "\n".join(lines) + "\n"


def _first_masks(report: BenchReport) -> list[str]:
    against = baseline(report)
    rows = []
    for m in report.alternatives:
        floor = report.floor(m)
        rows.append(
            [
                m.name,
                _spread(m.first_mask),
                _ratio(against.first_mask.median, m.first_mask.median),
                _seconds(floor),
                _ratio(m.first_mask.median, floor),
                _seconds(m.host.median) if m.host else "",
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
    return _table(headings, rows)


def _next_expressions(report: BenchReport) -> list[str]:
    against = baseline(report)
    rows = []
    for m in report.alternatives:
        floor = report.floor(m, PER_EXPRESSION)
        rows.append(
            [
                m.name,
                _spread(m.next_expression),
                _ratio(against.next_expression.median, m.next_expression.median),
                _ratio(m.first_mask.median, m.next_expression.median),
                _seconds(floor),
                _ratio(m.next_expression.median, floor),
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
    return _table(headings, rows)


def _starts(report: BenchReport) -> list[str]:
    rows = [
        [m.name, _spread(m.cold_start), _spread(m.imports), _spread(m.load), _seconds(m.compile)]
        for m in report.alternatives
        if m.cold_start
    ]
    return _table(
        ["cold start", "new process to mask", "imports", "load", "first load, which compiled"], rows
    )


def _stages(report: BenchReport) -> list[str]:
    rows = []
    for m in report.alternatives:
        for stage, spread in m.stages.items():
            floor = report.floor(m, [stage]) if stage in STAGES else None
            operations = f"{m.operations[stage] / 1e9:.4g}" if stage in m.operations else ""
            cells = [m.precision.get(stage, ""), operations, _spread(spread), _seconds(floor)]
            rows.append([f"{m.name}: {stage}", *cells, _ratio(spread.median, floor)])
    return _table(
        [
            "stage of a first mask",
            "ran in",
            "10^9 operations",
            "seconds",
            "floor",
            "measured / floor",
        ],
        rows,
    )


def _rates(report: BenchReport) -> list[str]:
    rows = [
        [
            f"{precision}, {library}",
            f"{s.median / 1e9:.0f}",
            f"{s.lower / 1e9:.0f} to {s.upper / 1e9:.0f}",
        ]
        for precision, libraries in report.rates.items()
        for library, s in libraries.items()
    ]
    lines = _table(
        ["matrix products of this machine", "10^9 operations a second", "middle half"], rows
    )
    if lines:
        lines += [
            "",
            (
                "The floor of a graph is its matrix products and convolutions at the rate of the"
                " fastest library for large products, in the precision that most of the graph's"
                " ran in."
            ),
        ]
    return lines


def _batches(report: BenchReport) -> list[str]:
    lines = []
    for m in report.alternatives:
        for what, found in (("images", m.images), ("expressions", m.expressions)):
            alone = found[1].median if 1 in found else None
            rows = [
                [
                    str(size),
                    _spread(spread),
                    f"{1 / spread.median:.3g}",
                    _ratio(spread.median, alone),
                ]
                for size, spread in found.items()
            ]
            headings = [f"{m.name}: {what} together", "seconds each", "a second", "of one alone"]
            lines += _table(headings, rows)
        if m.peak_memory_batches:
            lines += ["", f"Peak memory after these: {m.peak_memory_batches / 1e9:.2f} GB."]
    return lines


def plot(report: BenchReport, path: Path) -> None:
    """First mask and next expression of every alternative with their middle halves and floors, as a
    PNG.

    Raises RisError where matplotlib is not installed.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise RisError(f"the plot needs matplotlib: {pip_install('eval')}")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [m.name for m in report.alternatives]
    figure = Figure((10, 1.5 + 0.5 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, title, stages in (
        (panels[0], "first mask", STAGES),
        (panels[1], "next expression", PER_EXPRESSION),
    ):
        spreads = [
            m.first_mask if title == "first mask" else m.next_expression
            for m in report.alternatives
        ]
        floors = [report.floor(m, stages) for m in report.alternatives]
        medians = [s.median for s in spreads]
        middle = [[s.median - s.lower for s in spreads], [s.upper - s.median for s in spreads]]
        axes.barh(
            names, medians, xerr=middle, color="#4c78a8", capsize=3, label="median and middle half"
        )
        drawn = [(floor, i) for i, floor in enumerate(floors) if floor is not None]
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
    panels[0].invert_yaxis()
    panels[1].legend(loc="lower right")
    figure.suptitle(f"{report.machine['cpu']}, {report.machine['cores']} cores")
    figure.savefig(path, dpi=120, format="png")


def compare(first: BenchReport, second: BenchReport, names: tuple[str, str]) -> str:
    """A Markdown table of what both measured. Raises RisError where their inputs differ or nothing
    is in both.
    """
    a, b = vars(first.inputs), vars(second.inputs)
    different = [name for name in a if a[name] != b[name]]
    if different:
        shown = ", ".join(
            f"{name} ({str(a[name])[:24]} and {str(b[name])[:24]})" for name in different
        )
        raise RisError(
            f"{names[0]} and {names[1]} are not compared: they measured different inputs: {shown}"
        )
    others = {m.name: m for m in second.alternatives}
    rows = []
    for m in first.alternatives:
        if m.name not in others:
            continue
        for what in ("first_mask", "next_expression", "cold_start", "load"):
            x, y = getattr(m, what), getattr(others[m.name], what)
            if x is not None and y is not None:
                verdict = (
                    "within the noise"
                    if x.overlaps(y)
                    else "faster"
                    if y.median < x.median
                    else "slower"
                )
                ratio = f"{y.median / x.median:.3f}"
                rows.append(
                    [f"{m.name}: {what.replace('_', ' ')}", _spread(x), _spread(y), ratio, verdict]
                )
    if not rows:
        raise RisError(f"{names[0]} and {names[1]} have no alternative in common")
    lines = _table(["", *names, "second / first", "the second is"], rows)[1:]
    for key in ("cpu", "cores", "versions"):
        if first.machine[key] != second.machine[key]:
            lines += [
                "",
                f"They ran on another {key}: {first.machine[key]} and {second.machine[key]}.",
            ]
    for name, report in zip(names, (first, second), strict=True):
        lines += [f"\n{name}: {text}" for text in warnings(report)]
    return "\n".join(lines) + "\n"
