"""The plots of a comparison, as PNG files with captions."""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris import pip_install
from ris.engines.errors import RisError
from ris.evaluation.compare import Comparison
from ris.runtime.masks import COLOURS

Plot = tuple[bytes, str]
"""A PNG file and its caption."""


def require_matplotlib() -> None:
    """Raises RisError where the plots cannot be drawn."""
    if importlib.util.find_spec("matplotlib") is None:
        raise RisError(f"a report needs matplotlib: {pip_install('eval')}")


@dataclass(frozen=True)
class Series:
    """The IoUs of one run."""

    name: str
    """The run's name."""

    label: str
    """The name as plots show it, shortened."""

    ious: NDArray[np.float64]
    """Of the targeted expressions, refused ones 0."""

    colour: tuple[float, ...]
    """Red, green and blue in 0..1."""


def draw_plots(found: Comparison) -> list[Plot]:
    """Histograms side by side, the share above each IoU, and each run against the first.

    No plots where no expression is targeted.
    """
    targeted = found.runs[0].figures.targeted
    if not targeted.any():
        return []
    names = [run.name for run in found.runs]
    series = series_of(names, [own[targeted] for own in found.ious])
    first, *others = series
    return [histograms(series), _curves(series), *(_scatter(first, other) for other in others)]


def series_of(names: Sequence[str], ious: Sequence[NDArray[np.float64]]) -> list[Series]:
    """Runs' IoUs of the targeted expressions, refused ones 0, each in a colour of its own."""
    series = []
    for i, (name, own) in enumerate(zip(names, ious, strict=True)):
        colour = tuple(channel / 255 for channel in COLOURS[i % len(COLOURS)])
        series.append(Series(name, _short(name), own, colour))
    return series


def _short(name: str) -> str:
    return name if len(name) <= 34 else name[:33] + "…"


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, format="png", dpi=110)
    pyplot.close(figure)
    return buffer.getvalue()


def histograms(series: list[Series]) -> Plot:
    """How often each IoU occurs, side by side. Needs matplotlib (`require_matplotlib`)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (max(5.0, 3.6 * len(series)), 3.4)
    figure, axes = pyplot.subplots(1, len(series), figsize=size, sharey=True, squeeze=False)
    for axis, own in zip(axes[0], series, strict=True):
        axis.hist(own.ious, bins=20, range=(0, 1), color=own.colour)
        axis.set(title=own.label, xlabel="IoU", xlim=(0, 1))
    axes[0][0].set_ylabel("targeted expressions")
    return _png(figure), "IoU of the targeted expressions, refused ones 0"


def _curves(series: list[Series]) -> Plot:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 4))
    limits = np.linspace(0, 1, 101)
    for own in series:
        shares = [(own.ious >= limit).mean() for limit in limits]
        axis.plot(limits, shares, label=own.label, color=own.colour)
    axis.set(xlabel="IoU threshold X", ylabel="Pr@X", xlim=(0, 1), ylim=(0, 1.01))
    axis.grid(alpha=0.3)
    axis.legend()
    return _png(figure), "Share of the targeted expressions whose mask reaches each IoU"


def _scatter(first: Series, other: Series) -> Plot:
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(4.6, 4.4))
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.scatter(first.ious, other.ious, s=8, color=other.colour, alpha=0.4, linewidths=0)
    axis.set(xlabel=f"IoU, {first.label}", ylabel=f"IoU, {other.label}")
    axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))

    same = float((np.abs(other.ious - first.ious) < 0.01).mean())
    caption = (
        f"Every targeted expression, {other.name} against {first.name}: {same:.1%} within 0.01"
    )
    return _png(figure), caption
