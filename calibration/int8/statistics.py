"""Smoothing and thresholds of one graph: two passes over the samples, each kept after every
sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.calibration.int8.chain import Chain, Track
from ris.calibration.int8.histogram import Calibrator, Histogram
from ris.calibration.int8.work import Work
from ris.calibration.numerics.activations import ActivationReader, largest_by_channel
from ris.calibration.numerics.qdq import Layer, find_layers
from ris.calibration.numerics.smoothing import find_folds, smooth
from ris.engines.errors import ParityError
from ris.runtime.parity import TOLERANCES, compare


@dataclass(frozen=True)
class Statistics:
    """One graph, ready to be quantised. path: its FP32 form, smoothed; folds: kind of fold by the
    product's node.
    """

    stage: str
    path: Path
    layers: tuple[Layer, ...]
    folds: dict[str, str]
    histograms: dict[str, Histogram]

    def thresholds(
        self, layers: Iterable[Layer], calibrator: Calibrator, percentile: float
    ) -> dict[str, float]:
        """By activation of these layers."""
        names = {name for layer in layers for name in layer.activations}
        return {name: self.histograms[name].threshold(calibrator, percentile) for name in names}


def measure(
    chain: Chain,
    stage: str,
    work: Work,
    *,
    alpha: float | None,
    attention: bool,
    threads: int | None,
    track: Track,
) -> Statistics:
    """Smooths one graph (not with alpha None) and looks at every sample's activations.

    Raises ParityError where the smoothed graph is not the same function.
    """
    folder = work.folder / stage
    folder.mkdir(exist_ok=True)
    graph = chain.bundle.graph(stage)
    layers = find_layers(graph.path, attention)
    smoothed = folder / graph.path.name
    if f"{stage}/folds" not in work:
        channels: dict[str, NDArray[Any]] = {}
        if alpha is not None:
            wanted = {node for fold in find_folds(graph.path) for node in fold.nodes}
            products = [layer for layer in layers if layer.node in wanted]
            channels = _channels(chain, stage, products, work, threads, track)
        folds = smooth(graph.path, smoothed, channels, alpha or 0.0)
        _check_same(chain, stage, smoothed)
        work.put(f"{stage}/folds", {node: fold.kind for fold in folds for node in fold.nodes})
    histograms = _histograms(chain, stage, smoothed, layers, work, threads, track)
    return Statistics(stage, smoothed, tuple(layers), work[f"{stage}/folds"], histograms)


def _check_same(chain: Chain, stage: str, path: Path) -> None:
    accepted = TOLERANCES["fp32"].stage
    wanted = chain.recorded(0, stage)
    with chain.open(stage, path) as session:
        for name, got in session.run(chain.feeds(stage, 0, chain.samples[0], {})).items():
            error = compare(got, wanted[name]).relative
            if not error <= accepted:
                raise ParityError(
                    f"smoothing changed {stage}: {name} is off by {error:.1e}, accepted"
                    f" {accepted:.0e}; use --no-smooth"
                )


def _pass(
    chain: Chain, stage: str, reader: ActivationReader, done: int, track: Track, title: str
) -> Iterator[tuple[int, dict[str, NDArray[Any]], Any]]:
    """(sample, its feeds, the function that shows its activations) for every sample from `done`
    on.
    """
    left = range(done, len(chain.samples))
    if not left:
        return
    with reader.opened() as show:
        for i in track(left, len(left), title):
            yield i, chain.feeds(stage, i, chain.samples[i], {}), show


def _channels(
    chain: Chain, stage: str, layers: list[Layer], work: Work, threads: int | None, track: Track
) -> dict[str, NDArray[Any]]:
    """The largest magnitude by channel, float32 [K], by activation."""
    name = f"{stage}.channels"
    found = work.load_arrays(name)
    done = int(found.pop("samples", np.array(0)))

    def look(activation: str, values: NDArray[np.float32]) -> None:
        largest = largest_by_channel(values)
        found[activation] = (
            np.maximum(found[activation], largest) if activation in found else largest
        )

    if layers:
        reader = ActivationReader(chain.bundle.graph(stage), layers, work.folder / stage, threads)
        for i, feeds, show in _pass(chain, stage, reader, done, track, f"Channels {stage}"):
            show(feeds, look)
            work.save_arrays(name, found | {"samples": np.array(i + 1)})
    return found


def _histograms(
    chain: Chain,
    stage: str,
    path: Path,
    layers: list[Layer],
    work: Work,
    threads: int | None,
    track: Track,
) -> dict[str, Histogram]:
    name = f"{stage}.histograms"
    kept = work.load_arrays(name)
    done = int(kept.pop("samples", np.array(0)))
    names = list(dict.fromkeys(name for layer in layers for name in layer.activations))
    found = {n: Histogram() for n in names}
    if kept:
        rows = zip(names, kept["counts"], kept["top"], kept["largest"], strict=True)
        found = {
            n: Histogram(counts, float(top), float(largest)) for n, counts, top, largest in rows
        }

    def look(activation: str, values: NDArray[np.float32]) -> None:
        found[activation].add(values)

    reader = ActivationReader(
        replace(chain.bundle.graph(stage), path=path), layers, path.parent, threads
    )
    for i, feeds, show in _pass(chain, stage, reader, done, track, f"Histograms {stage}"):
        show(feeds, look)
        arrays = {
            "counts": np.stack([found[n].counts for n in names]),
            "top": np.array([found[n].top for n in names]),
            "largest": np.array([found[n].largest for n in names]),
        }
        work.save_arrays(name, arrays | {"samples": np.array(i + 1)})
    return found
