"""Which layers are quantised: what each one costs alone, and which worst ones to leave out."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from ris.calibration.int8.chain import Chain, Score
from ris.calibration.int8.histogram import CALIBRATORS, Calibrator
from ris.calibration.int8.statistics import Statistics
from ris.calibration.int8.work import Work
from ris.calibration.numerics.qdq import Layer, write_quantised
from ris.engines.errors import RisError

LayerKey = tuple[str, str]
"""A graph's stage and a layer's node in it."""


@dataclass(frozen=True)
class LayerCost:
    """What quantising one layer alone costs, everything else in FP32."""

    stage: str
    """The graph's stage."""

    node: str
    """The layer's node in it."""

    name: str
    """The module it came from, for people."""

    operator: str
    """MatMul, Gemm or Conv."""

    fold: str | None
    """How its input was smoothed (`Fold.kind`). None: not at all."""

    drop: float
    """The IoU lost (`Score.drop`)."""

    score: Score
    """What the masks are worth with this layer in INT8."""


class Quantiser:
    """Scores of any choice of layers."""

    chain: Chain
    """The bundle and the samples."""

    graphs: Mapping[str, Statistics]
    """The graphs to quantise, by stage."""

    layers: dict[LayerKey, Layer]
    """Every layer of these graphs."""

    against: str
    """What a drop is measured against: "fp32" or "truth"."""

    percentile: float
    """Of the percentile calibrator, in percent."""

    def __init__(
        self,
        chain: Chain,
        graphs: Mapping[str, Statistics],
        work: Work,
        *,
        against: str,
        percentile: float,
    ) -> None:
        """Computes nothing yet.

        Args:
            chain: The bundle and the samples, recorded.
            graphs: The graphs to quantise, by stage.
            work: Where scores are kept.
            against: What a drop is measured against: "fp32" or "truth".
            percentile: Of the percentile calibrator, in percent.
        """
        self.chain, self.graphs, self._work = chain, graphs, work
        self.against, self.percentile = against, percentile
        self.layers = {
            (stage, layer.node): layer for stage, found in graphs.items() for layer in found.layers
        }

    def score(
        self, chosen: list[LayerKey], calibrator: Calibrator, title: str | None = None
    ) -> Score:
        """The masks with these layers in INT8 and all others in FP32, computed once.

        The progress is shown under `title`. None: it is not shown.
        """
        text = json.dumps([calibrator, sorted(chosen)])
        key = f"score/{hashlib.sha256(text.encode()).hexdigest()}"
        if key not in self._work:
            stages = dict.fromkeys(stage for stage, _ in chosen)
            paths = {stage: self._write(stage, chosen, calibrator) for stage in stages}
            try:
                self._work.put(key, asdict(self.chain.score(paths, title)))
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
        """Writes the stage's graph with its layers among `chosen` in INT8.

        Args:
            stage: The stage.
            chosen: Layers; those of other stages are ignored.
            calibrator: How their thresholds are chosen.
            target: The graph to write.
        """
        found = self.graphs[stage]
        layers = [self.layers[key] for key in chosen if key[0] == stage]
        thresholds = found.thresholds(layers, calibrator, self.percentile)
        write_quantised(found.path, target, layers, thresholds)

    def best_calibrator(self) -> tuple[Calibrator, dict[Calibrator, Score]]:
        """The calibrator that loses least with every layer in INT8, and the scores of all."""
        every = list(self.layers)
        scores = {name: self.score(every, name, f"All layers, {name}") for name in CALIBRATORS}
        return min(CALIBRATORS, key=lambda name: scores[name].drop(self.against)), scores

    def sensitivity(self, calibrator: Calibrator) -> list[LayerCost]:
        """What each layer alone costs, the worst first."""
        keys = list(self.layers)
        track = self.chain.execution.track
        found = [
            self._cost(keys[i], calibrator)
            for i in track(range(len(keys)), len(keys), "Layers, each alone")
        ]
        return sorted(found, key=lambda cost: -cost.drop)

    def _cost(self, key: LayerKey, calibrator: Calibrator) -> LayerCost:
        (stage, node), layer = key, self.layers[key]
        score = self.score([key], calibrator)
        fold = self.graphs[stage].folds.get(node)
        drop = score.drop(self.against)
        return LayerCost(stage, node, layer.name, layer.operator, fold, drop, score)

    def graph_costs(self, calibrator: Calibrator) -> dict[str, Score]:
        """What each graph alone costs, with all its layers in INT8."""
        costs: dict[str, Score] = {}
        for stage in self.graphs:
            own = [key for key in self.layers if key[0] == stage]
            costs[stage] = self.score(own, calibrator, f"All of {stage}")
        return costs

    def search(
        self, ranked: list[LayerKey], calibrator: Calibrator, limit: float
    ) -> tuple[list[LayerKey], Score]:
        """The layers to quantise, as many as the limit on the drop allows, and their score.

        ranked: all layers, the worst first. The first k of them are left out. k is found by
        bisection, which assumes that the drop shrinks as k grows; the drop of the k chosen is
        measured. Raises RisError where not even the last layer may be quantised.
        """

        def attempt(k: int) -> Score:
            title = f"Without the {k} worst of {len(ranked)} layers"
            return self.score(ranked[k:], calibrator, title)

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
