"""Which layers are quantised: what each one alone costs, and the fewest worst ones to leave out for
a target.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ris.calibration.int8.chain import Chain, Score, Track
from ris.calibration.int8.histogram import CALIBRATORS, Calibrator
from ris.calibration.int8.statistics import Statistics
from ris.calibration.int8.work import Work
from ris.calibration.numerics.qdq import Layer, write_quantised
from ris.engines.errors import RisError

LayerKey = tuple[str, str]
"""A graph's stage and a layer's node in it."""


@dataclass(frozen=True)
class LayerCost:
    """What quantising one layer alone costs in IoU, everything else FP32; fold: how its input was
    smoothed, or None.
    """

    stage: str
    node: str
    name: str
    operator: str
    fold: str | None
    drop: float
    score: Score


class Quantiser:
    """Scores of any choice of layers. against: "fp32" or "truth", what a drop is measured by
    (`Score.drop`).
    """

    def __init__(
        self,
        chain: Chain,
        graphs: Mapping[str, Statistics],
        work: Work,
        track: Track,
        *,
        against: str,
        percentile: float,
    ) -> None:
        self.chain, self.graphs, self._work, self._track = chain, graphs, work, track
        self.against, self.percentile = against, percentile
        self.layers: dict[LayerKey, Layer] = {
            (stage, layer.node): layer for stage, found in graphs.items() for layer in found.layers
        }

    def score(
        self, chosen: list[LayerKey], calibrator: Calibrator, title: str | None = None
    ) -> Score:
        """The masks with these layers in INT8 and all others in FP32; computed once, and shown
        under `title`.
        """
        text = json.dumps([calibrator, sorted(chosen)])
        key = f"score/{hashlib.sha256(text.encode()).hexdigest()}"
        if key not in self._work:
            stages = dict.fromkeys(stage for stage, _ in chosen)
            paths = {stage: self._write(stage, chosen, calibrator) for stage in stages}
            try:
                self._work.put(key, asdict(self.chain.score(paths, self._track, title)))
            finally:
                for path in paths.values():
                    path.unlink(missing_ok=True)
        return Score(**self._work[key])

    def _write(self, stage: str, chosen: list[LayerKey], calibrator: Calibrator) -> Path:
        target = self.graphs[stage].path.with_name("variant.onnx")
        self.write(stage, chosen, calibrator, target)
        return target

    def write(
        self, stage: str, chosen: list[LayerKey], calibrator: Calibrator, target: Path
    ) -> None:
        """The stage's graph with these layers in INT8, to `target`."""
        found = self.graphs[stage]
        layers = [self.layers[key] for key in chosen if key[0] == stage]
        write_quantised(
            found.path, target, layers, found.thresholds(layers, calibrator, self.percentile)
        )

    def best_calibrator(self) -> tuple[Calibrator, dict[Calibrator, Score]]:
        """The calibrator that loses least with every layer in INT8, and the scores of all."""
        every = list(self.layers)
        scores = {name: self.score(every, name, f"All layers, {name}") for name in CALIBRATORS}
        return min(CALIBRATORS, key=lambda name: scores[name].drop(self.against)), scores

    def sensitivity(self, calibrator: Calibrator) -> list[LayerCost]:
        """What each layer alone costs, the worst first."""
        found = []
        keys = list(self.layers)
        for i in self._track(range(len(keys)), len(keys), "Layers, each alone"):
            (stage, node), layer = keys[i], self.layers[keys[i]]
            score = self.score([(stage, node)], calibrator)
            fold = self.graphs[stage].folds.get(node)
            drop = score.drop(self.against)
            found.append(LayerCost(stage, node, layer.name, layer.operator, fold, drop, score))
        return sorted(found, key=lambda cost: -cost.drop)

    def graph_costs(self, calibrator: Calibrator) -> dict[str, Score]:
        """What each graph alone costs, with all its layers in INT8."""
        return {
            stage: self.score(
                [key for key in self.layers if key[0] == stage], calibrator, f"All of {stage}"
            )
            for stage in self.graphs
        }

    def search(
        self, ranked: list[LayerKey], calibrator: Calibrator, limit: float
    ) -> tuple[list[LayerKey], Score]:
        """The layers to quantise, as many as the limit on the drop allows, and their score.

        ranked: all layers, the worst first. Leaves out the first k of them, k by bisection: the
        drop is taken to shrink with k, and that of the k chosen is measured. Raises RisError where
        not even the last one may be quantised.
        """

        def attempt(k: int) -> Score:
            return self.score(
                ranked[k:], calibrator, f"Without the {k} worst of {len(ranked)} layers"
            )

        if attempt(0).drop(self.against) <= limit:
            return ranked, attempt(0)
        if (alone := attempt(len(ranked) - 1).drop(self.against)) > limit:
            raise RisError(
                f"the best layer alone in INT8 costs {alone:.4f} IoU, and --max-iou-drop is"
                f" {limit}; allow more, or give more samples"
            )
        bad, good = 0, len(ranked) - 1
        while good - bad > 1:
            middle = (bad + good) // 2
            if attempt(middle).drop(self.against) <= limit:
                good = middle
            else:
                bad = middle
        return ranked[good:], attempt(good)
