"""The log of a run as a picture: losses, and validation IoU by kind of expression."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def plot_log(log: Path, out: Path) -> None:
    """Draws `log` (the lines that a `Trainer` writes) into the PNG `out`. Raises ValueError for an
    empty log.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines: list[dict[str, Any]] = [
        json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()
    ]
    if not lines:
        raise ValueError(f"{log} is empty")
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(14, 4.5))
    left.set_prop_cycle(color=[pyplot.get_cmap("tab20")(i) for i in range(20)])
    for name in dict.fromkeys(name for x in lines for name in x["losses"]):
        left.plot(
            [x["step"] for x in lines],
            [x["losses"].get(name) for x in lines],
            label=name,
            linewidth=0.8,
        )
    left.set(xlabel="step", ylabel="weighted loss", yscale="log", title="training loss")
    left.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    checked = [x for x in lines if x["validation"]]
    for kind in checked[-1]["validation"] if checked else ():
        seen = [(x["step"], x["validation"].get(kind, {})) for x in checked]
        points = [(step, figures["miou"]) for step, figures in seen if "miou" in figures]
        if points:
            right.plot(
                *zip(*points, strict=True), label=kind, linewidth=2.0 if kind == "all" else 0.8
            )
    refused = [
        (x["step"], x["validation"]["all"]["n_acc"])
        for x in checked
        if "n_acc" in x["validation"]["all"]
    ]
    if refused:
        right.plot(*zip(*refused, strict=True), label="no target: accuracy", linestyle=":")
    right.set(xlabel="step", ylabel="mean IoU", ylim=(0, 1), title="validation")
    right.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
