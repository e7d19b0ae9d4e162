"""The log of a run as a picture: losses, and validation IoU by kind of expression."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ris.runtime.json_lines import read_json_lines

MEANS = ("miou", "gIoU", "mIoU")
"""The figure that is drawn, the first that a validation has."""

Lines = list[dict[str, Any]]
"""The lines of a log, parsed."""


def plot_log(log: Path, out: Path) -> None:
    """Draws `log` (the lines that a `Trainer` writes) into the PNG `out`.

    Raises ValueError for an empty log.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: Lines = [line.value for line in read_json_lines(log) if not line.problem]
    if not lines:
        raise ValueError(f"{log} is empty")

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 4.5))
    left.set_prop_cycle(color=[pyplot.get_cmap("tab20")(i) for i in range(20)])
    _plot_losses(left, lines)
    _plot_validation(right, [line for line in lines if line["validation"]])

    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _plot_losses(axes: Any, lines: Lines) -> None:
    steps = [line["step"] for line in lines]
    for name in dict.fromkeys(name for line in lines for name in line["losses"]):
        values = [line["losses"].get(name) for line in lines]
        axes.plot(steps, values, label=name, linewidth=0.8)

    axes.set(xlabel="step", ylabel="weighted loss", yscale="log", title="training loss")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _plot_validation(axes: Any, lines: Lines) -> None:
    """Mean IoU of each kind of expression, and the accuracy on expressions without a target."""
    known = lines[-1]["validation"] if lines else {}
    figure = next((name for name in MEANS if name in known.get("all", {})), MEANS[0])
    for kind in known:
        points = _points(lines, kind, figure)
        if points:
            width = 2.0 if kind == "all" else 0.8
            axes.plot(*zip(*points, strict=True), label=kind, linewidth=width)

    refused = _points(lines, "all", "n_acc")
    if refused:
        axes.plot(*zip(*refused, strict=True), label="no target: accuracy", linestyle=":")

    # the published evaluators count in percent
    top = 1 if figure == MEANS[0] else 100
    axes.set(xlabel="step", ylabel=figure, ylim=(0, top), title="validation")
    if known:
        axes.legend(fontsize=8)


def _points(lines: Lines, kind: str, figure: str) -> list[tuple[int, float]]:
    """(step, value) of the lines whose validation has this figure for this kind."""
    found = [(line["step"], line["validation"].get(kind, {})) for line in lines]
    return [(step, figures[figure]) for step, figures in found if figure in figures]
