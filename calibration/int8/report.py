"""What a calibration found, for people: the picture of the layers' costs, and a few lines."""

from __future__ import annotations

from pathlib import Path

from ris.calibration.int8.quantise import Int8Report
from ris.runtime.commands.console import disk_errors

SHOWN = 40  # layers in the picture
_COLOURS = ("#1d84e2", "#e63946", "#2a9d5c", "#f4a227", "#8e44c8")


def write_report(report: Int8Report, folder: Path) -> list[Path]:
    """report.json with everything, and layers.png where single layers were measured; returns what
    it wrote.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        data = folder / "report.json"
        data.write_text(report.to_json(), encoding="utf-8")
        if not report.layers:
            return [data]
        picture = folder / "layers.png"
        _plot(report, picture)
    return [data, picture]


def _plot(report: Int8Report, path: Path) -> None:
    """The worst layers by name; those that stay FP32 are hatched."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = list(dict.fromkeys(cost.stage for cost in report.layers))
    colour = {stage: _COLOURS[i % len(_COLOURS)] for i, stage in enumerate(report.quantised)}
    kept = {(stage, node) for stage, nodes in report.kept.items() for node in nodes}
    worst = report.layers[:SHOWN]
    figure, axis = pyplot.subplots(figsize=(9, 1.6 + 0.2 * len(worst)))
    labels = []
    for row, cost in enumerate(worst):
        left_out = (cost.stage, cost.node) in kept
        axis.barh(
            row,
            cost.drop,
            color=colour[cost.stage],
            alpha=1.0 if left_out else 0.45,
            hatch="//" if left_out else "",
        )
        labels.append(f"{cost.name} ({cost.operator}{', ' + cost.fold if cost.fold else ''})")
    for stage in stages:
        axis.barh(0, 0, color=colour[stage], label=stage)
    axis.barh(0, 0, color="0.6", hatch="//", label="stays FP32")
    axis.set_yticks(range(len(worst)), labels, fontsize=7)
    axis.invert_yaxis()
    masks = "FP32's masks" if report.options.against == "fp32" else "the true masks"
    axis.set(
        xlabel=f"mean IoU lost against {masks} with this layer alone in INT8",
        title=(
            f"{len(worst)} of {len(report.layers)} layers, {report.calibrator}, {report.samples}"
            " expressions"
        ),
    )
    axis.legend(loc="lower right")
    axis.grid(axis="x", alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def lines(report: Int8Report) -> list[str]:
    """The findings in a few lines."""
    against, left = (
        report.options.against,
        {stage: len(nodes) for stage, nodes in report.kept.items()},
    )
    found = [
        f"  {stage:<19} {count} layers INT8, {left[stage]} left in FP32"
        for stage, count in report.quantised.items()
    ]
    tried = ", ".join(
        f"{name} {score.drop(against):.4f}" for name, score in report.calibrators.items()
    )
    found.append(f"  calibrator {report.calibrator}; with every layer in INT8 the drop is: {tried}")
    for stage, score in report.graphs.items():
        found.append(f"  all of {stage} alone: {score.drop(against):.4f}")
    for cost in report.layers[:5]:
        found.append(f"  {cost.stage} {cost.name} alone: {cost.drop:.4f}")
    score, truth = report.score, ""
    if score.truth is not None:
        truth = (
            f"; mean IoU with the true masks {score.truth:.4f}, FP32 {score.reference_truth:.4f}"
        )
    found.append(
        f"  over {report.samples} expressions: mask IoU {score.iou:.4f} against FP32{truth}"
    )
    found.append(
        f"  on the bundle's golden image: lowest mask IoU {report.mask_iou:.4f} against PyTorch"
    )
    return found
