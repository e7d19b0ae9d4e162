"""Smoothing and thresholds of one graph.

It takes two passes over the samples, in as many rounds each as there are groups of activations.
What they found is kept after every run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.calibration.int8.chain import Chain
from ris.calibration.int8.histogram import Calibrator, Histogram
from ris.calibration.int8.work import Work
from ris.calibration.numerics.activations import ActivationReader, Show, largest_by_channel
from ris.calibration.numerics.qdq import Layer, find_layers
from ris.calibration.numerics.smoothing import find_folds, smooth
from ris.engines import Graph
from ris.engines.errors import ParityError
from ris.runtime.comparing import compare
from ris.runtime.tolerance import TOLERANCES

_RUNS = "runs"
"""What says among kept arrays how many runs they are of."""


@dataclass(frozen=True)
class Statistics:
    """One graph, ready to be quantised."""

    stage: str
    """The graph's stage."""

    path: Path
    """Its FP32 form, smoothed."""

    layers: tuple[Layer, ...]
    """The products that can be quantised, in the graph's order."""

    folds: dict[str, str]
    """`Fold.kind` by node, for the products whose input was smoothed."""

    histograms: dict[str, Histogram]
    """The magnitudes of each activation, by name."""

    def thresholds(
        self, layers: Iterable[Layer], calibrator: Calibrator, percentile: float
    ) -> dict[str, float]:
        """The magnitude that becomes the last level, by activation of these layers."""
        names = {name for layer in layers for name in layer.activations}
        return {name: self.histograms[name].threshold(calibrator, percentile) for name in names}


def measure(
    chain: Chain, stage: str, work: Work, *, alpha: float | None, attention: bool
) -> Statistics:
    """Smooths one graph and looks at every sample's activations.

    Args:
        chain: The bundle and the samples, recorded.
        stage: The stage of the graph.
        work: Where the smoothed graph and what was found are kept.
        alpha: Of the smoothing, from 0 to 1. None: no smoothing.
        attention: Whether products of two activations are quantised too.

    Raises:
        ParityError: The smoothed graph does not compute the same function.
    """
    folder = work.folder / stage
    folder.mkdir(exist_ok=True)
    graph = chain.bundle.graph(stage)
    layers = find_layers(graph.path, attention)
    smoothed = replace(graph, path=folder / graph.path.name)

    if f"{stage}/folds" not in work:
        channels: dict[str, NDArray[Any]] = {}
        if alpha is not None:
            wanted = {node for fold in find_folds(graph.path) for node in fold.nodes}
            products = [layer for layer in layers if layer.node in wanted]
            channels = _channels(chain, graph, products, work)
        folds = smooth(graph.path, smoothed.path, channels, alpha or 0.0)
        _check_same(chain, smoothed)
        work.put(f"{stage}/folds", {node: fold.kind for fold in folds for node in fold.nodes})

    histograms = _histograms(chain, smoothed, layers, work)
    return Statistics(stage, smoothed.path, tuple(layers), work[f"{stage}/folds"], histograms)


def _check_same(chain: Chain, graph: Graph) -> None:
    """Compares the outputs for the first sample with the recorded ones."""
    stage, tolerance = graph.stage, TOLERANCES["fp32"]
    thresholded = chain.bundle.manifest.graphs[stage].thresholded
    wanted = chain.recorded(0, stage)
    feeds = chain.feeds(stage, 0, chain.samples[0], {})
    with chain.open(stage, graph.path) as session:
        for name, got in session.run(feeds).items():
            error = compare(got, wanted[name]).relative
            accepted = max(tolerance.stage, thresholded.get(name, 0.0))
            if not error <= accepted:
                raise ParityError(
                    f"smoothing changed {stage}: {name} is off by {error:.1e}, accepted"
                    f" {accepted:.0e}; use --no-smooth"
                )


def _pass(
    chain: Chain, reader: ActivationReader, done: int, title: str
) -> Iterator[tuple[int, dict[str, NDArray[Any]], Show]]:
    """Every sample by each group of activations, from the run after the first `done` on.

    Gives how many runs there are with it, its feeds, and what shows the group's activations.
    """
    stage, samples = reader.graph.stage, len(chain.samples)
    runs = range(done, len(reader.groups) * samples)
    if not runs:
        return
    shown = chain.execution.track(runs, len(runs), f"{title} {stage}")
    for group, of_it in itertools.groupby(shown, lambda run: run // samples):
        with reader.opened(reader.groups[group]) as show:
            for run in of_it:
                i = run % samples
                yield run + 1, chain.feeds(stage, i, chain.samples[i], {}), show


def _reader(chain: Chain, graph: Graph, layers: Sequence[Layer], work: Work) -> ActivationReader:
    return ActivationReader(
        graph, layers, work.folder / graph.stage, threads=chain.execution.threads
    )


def _channels(
    chain: Chain, graph: Graph, layers: Sequence[Layer], work: Work
) -> dict[str, NDArray[Any]]:
    """The largest magnitude of each channel, float32 [K], by activation of the layers."""
    name = f"{graph.stage}.channels"
    found = work.load_arrays(name)
    done = int(found.pop(_RUNS, np.array(0)))
    if not layers:
        return found

    def look(activation: str, values: NDArray[np.float32]) -> None:
        largest = largest_by_channel(values)
        before = found.get(activation)
        found[activation] = largest if before is None else np.maximum(before, largest)

    reader = _reader(chain, graph, layers, work)
    for number, feeds, show in _pass(chain, reader, done, "Channels"):
        show(feeds, look)
        work.save_arrays(name, found | {_RUNS: np.array(number)})
    return found


def _histograms(
    chain: Chain, graph: Graph, layers: Sequence[Layer], work: Work
) -> dict[str, Histogram]:
    """The magnitudes of each activation of the layers, by name."""
    name = f"{graph.stage}.histograms"
    kept = work.load_arrays(name)
    done = int(kept.pop(_RUNS, np.array(0)))
    names = list(dict.fromkeys(name for layer in layers for name in layer.activations))
    found = _unpacked(names, kept) if kept else {name: Histogram() for name in names}

    def look(activation: str, values: NDArray[np.float32]) -> None:
        found[activation].add(values)

    reader = _reader(chain, graph, layers, work)
    for number, feeds, show in _pass(chain, reader, done, "Histograms"):
        show(feeds, look)
        work.save_arrays(name, _packed(names, found) | {_RUNS: np.array(number)})
    return found


def _packed(names: Sequence[str], histograms: dict[str, Histogram]) -> dict[str, NDArray[Any]]:
    """Arrays with a row per histogram, in the order of `names`."""
    rows = [histograms[name] for name in names]
    return {
        "counts": np.stack([row.counts for row in rows]),
        "top": np.array([row.top for row in rows]),
        "largest": np.array([row.largest for row in rows]),
    }


def _unpacked(names: Sequence[str], arrays: dict[str, NDArray[Any]]) -> dict[str, Histogram]:
    """The inverse of `_packed`."""
    rows = zip(names, arrays["counts"], arrays["top"], arrays["largest"], strict=True)
    return {
        name: Histogram(counts, float(top), float(largest)) for name, counts, top, largest in rows
    }
