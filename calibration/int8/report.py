"""What a calibration found: as data, as a picture of the layers' costs, and in a few lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ris.calibration.int8.chain import Score
from ris.calibration.int8.histogram import Calibrator
from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.search import LayerCost
from ris.runtime.commands.console import disk_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHOWN = 40
"""The most layers in the picture."""

_COLOURS = ("#1d84e2", "#e63946", "#2a9d5c", "#f4a227", "#8e44c8")


@dataclass(frozen=True)
class Int8Report:
    """What a calibration found."""

    options: Int8Options
    """What was asked for."""

    samples: int
    """How many expressions the samples had."""

    calibrator: Calibrator
    """The calibrator that was used."""

    calibrators: dict[Calibrator, Score]
    """The score of each calibrator tried, with every layer in INT8."""

    graphs: dict[str, Score]
    """The score of each whole graph alone in INT8, by stage. Empty where only one was asked for."""

    layers: tuple[LayerCost, ...]
    """What each layer costs alone in INT8, the worst first. Empty where this was not measured."""

    quantised: dict[str, int]
    """How many layers are INT8, by stage."""

    kept: dict[str, dict[str, str]]
    """Why a layer was left in FP32, by stage and node."""

    score: Score
    """The score of the bundle."""

    mask_iou: float
    """The lowest mask IoU with PyTorch on the bundle's golden image."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def files_of(folder: Path) -> tuple[Path, Path]:
    """The files of a report: the data, and the picture of the layers' costs."""
    return folder / "report.json", folder / "layers.png"


def write_report(report: Int8Report, folder: Path) -> list[Path]:
    """Writes report.json, and layers.png where single layers were measured; returns both paths."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data, picture = files_of(folder)
        data.write_text(report.to_json(), encoding="utf-8")
        if not report.layers:
            return [data]
        _plot(report, picture)
    return [data, picture]


def _plot(report: Int8Report, path: Path) -> None:
    """The worst layers by name; those that stay FP32 are hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = report.layers[:SHOWN]
    figure, axis = pyplot.subplots(figsize=(9, 1.6 + 0.2 * len(shown)))
    _draw_bars(report, shown, axis)
    _label(report, shown, axis)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_bars(report: Int8Report, shown: tuple[LayerCost, ...], axis: Axes) -> None:
    """A bar per layer, and the legend's entries."""
    colour = {stage: _COLOURS[i % len(_COLOURS)] for i, stage in enumerate(report.quantised)}
    for row, cost in enumerate(shown):
        left_out = cost.node in report.kept[cost.stage]
        axis.barh(
            row,
            cost.drop,
            color=colour[cost.stage],
            alpha=1.0 if left_out else 0.45,
            hatch="//" if left_out else "",
        )

    for stage in dict.fromkeys(cost.stage for cost in report.layers):
        axis.barh(0, 0, color=colour[stage], label=stage)
    axis.barh(0, 0, color="0.6", hatch="//", label="stays FP32")


def _label(report: Int8Report, shown: tuple[LayerCost, ...], axis: Axes) -> None:
    labels = [
        f"{cost.name} ({cost.operator}{', ' + cost.fold if cost.fold else ''})" for cost in shown
    ]
    axis.set_yticks(range(len(shown)), labels, fontsize=7)
    axis.invert_yaxis()

    masks = "FP32's masks" if report.options.against == "fp32" else "the true masks"
    which = f"{len(shown)} of {len(report.layers)} layers"
    axis.set(
        xlabel=f"mean IoU lost against {masks} with this layer alone in INT8",
        title=f"{which}, {report.calibrator}, {report.samples} expressions",
    )
    axis.legend(loc="lower right")
    axis.grid(axis="x", alpha=0.3)


def lines(report: Int8Report) -> list[str]:
    """The findings in a few lines."""
    against = report.options.against
    found = [
        f"  {stage:<19} {count} layers INT8, {len(report.kept[stage])} left in FP32"
        for stage, count in report.quantised.items()
    ]
    drops = {name: score.drop(against) for name, score in report.calibrators.items()}
    tried = ", ".join(f"{name} {drop:.4f}" for name, drop in drops.items())
    found.append(f"  calibrator {report.calibrator}; with every layer in INT8 the drop is: {tried}")
    for stage, score in report.graphs.items():
        found.append(f"  all of {stage} alone: {score.drop(against):.4f}")
    for cost in report.layers[:5]:
        found.append(f"  {cost.stage} {cost.name} alone: {cost.drop:.4f}")
    found += _final(report)
    return found


def _final(report: Int8Report) -> list[str]:
    """The lines about the bundle as it was written."""
    iou, truth, reference = report.score.iou, report.score.truth, report.score.reference_truth
    true = ""
    if truth is not None:
        true = f"; mean IoU with the true masks {truth:.4f}, FP32 {reference:.4f}"
    golden = f"lowest mask IoU {report.mask_iou:.4f} against PyTorch"
    return [
        f"  over {report.samples} expressions: mask IoU {iou:.4f} against FP32{true}",
        f"  on the bundle's golden image: {golden}",
    ]
