"""A bundle's graphs over the calibration samples, each output computed once and kept on disk.

A change in one graph then costs only that graph and those behind it. Only ONNX Runtime's CPU is
used. At most one large graph is open at a time while the reference is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ris.calibration.int8.options import Execution
from ris.calibration.numerics.reach import Reach
from ris.calibration.samples import CalibrationSample, SampleSet
from ris.engines import EngineOptions, Session, TensorSpec
from ris.engines.errors import RisError
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.engines.temporary import clear_folder, write_atomically
from ris.runtime import Bundle
from ris.runtime.categories import CategoryTable, categories_to_ask
from ris.runtime.comparing import mask_iou
from ris.runtime.host import HostSide
from ris.runtime.masks import mask_from_logits

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Score:
    """What the masks are worth, over all expressions."""

    iou: float
    """Mean IoU with the FP32 masks."""

    truth: float | None
    """Mean IoU with the true masks that are not empty. None where no sample has any."""

    reference_truth: float | None
    """What `truth` is for the FP32 masks."""

    def drop(self, against: str) -> float:
        """The IoU that was lost: with FP32's masks ("fp32"), or with the true ones ("truth").

        Raises RisError where the samples have no true masks to compare with.
        """
        if against == "fp32":
            return 1 - self.iou
        if self.truth is None or self.reference_truth is None:
            raise RisError(
                "these samples have no true masks; compare with those of FP32 (--against fp32)"
            )
        return self.reference_truth - self.truth


class _MaskScore(NamedTuple):
    """`Score` for the mask of one expression."""

    iou: float
    """IoU with the FP32 mask."""

    truth: tuple[float, float] | None
    """IoU with the true mask, ours and FP32's. None where that is empty or not known."""


class Chain:
    """A bundle's graphs over samples. Call `record` before anything else."""

    bundle: Bundle
    """The FP32 bundle."""

    samples: SampleSet
    """The samples; sample i is `samples[i]`."""

    execution: Execution
    """Threads and progress."""

    def __init__(
        self,
        bundle: Bundle,
        samples: SampleSet,
        folder: Path,
        execution: Execution | None = None,
    ) -> None:
        """Opens no graph yet.

        Args:
            bundle: The FP32 bundle.
            samples: What its graphs are run on.
            folder: Where outputs are kept; a later run goes on with what is there.
            execution: Threads and progress. None: all cores, and silence.
        """
        self.bundle, self.samples, self._folder = bundle, samples, folder
        self.execution = execution or Execution()
        self._engine = OnnxRuntimeEngine(EngineOptions("cpu", self.execution.threads))
        self._host = HostSide(bundle)
        folder.mkdir(parents=True, exist_ok=True)
        clear_folder(folder)

    def record(self) -> None:
        """Runs what has not been run yet, graph by graph."""
        for stage in self.bundle.stages:
            missing = [i for i in range(len(self.samples)) if not self._file(i, stage).exists()]
            if not missing:
                continue
            with self.open(stage) as session:
                for i in self.execution.track(missing, len(missing), f"FP32 {stage}"):
                    found = session.run(self.feeds(stage, i, self.samples[i], {}))
                    _save(self._file(i, stage), found)

    def _file(self, i: int, stage: str) -> Path:
        return self._folder / f"{i}.{stage}.npz"

    def recorded(self, i: int, stage: str) -> Arrays:
        """A stage's FP32 outputs for sample i, by name."""
        with np.load(self._file(i, stage), allow_pickle=False) as found:
            return dict(found)

    def open(self, stage: str, path: Path | None = None) -> Session:
        """The bundle's own graph, or another form of it in `path`."""
        graph = self.bundle.graph(stage)
        return self._engine.open(graph, path or graph.path)

    def feeds(
        self, stage: str, i: int, sample: CalibrationSample, changed: Mapping[str, Arrays]
    ) -> Arrays:
        """The inputs of a stage for one sample, by name.

        Args:
            stage: The stage.
            i: The sample's number.
            sample: The sample itself.
            changed: Outputs, by stage and name, that replace the recorded ones.

        Raises:
            ExpressionError: The model cannot be asked an expression of the sample, or asks by
                category and the sample has none that it knows.
        """
        takes = {spec.name: spec.value for spec in self.bundle.manifest.graphs[stage].inputs}
        wanted = set(takes.values())
        values = self._host_values(wanted, sample)
        for before in self.bundle.stages:
            own = _names(self.bundle.manifest.graphs[before].outputs)
            resized = self.bundle.wiring.resizes[before].keys()
            if wanted.isdisjoint(own | resized):
                continue
            outputs = changed[before] if before in changed else self.recorded(i, before)
            values |= outputs
            if not wanted.isdisjoint(resized):
                values |= self._host.resized(before, outputs)
        return {name: values[value] for name, value in takes.items()}

    def _host_values(self, wanted: set[str], sample: CalibrationSample) -> Arrays:
        """Those of the wanted values that the host makes of a sample, and perhaps others of it."""
        host = self.bundle.manifest.host
        values: dict[str, Any] = {}
        if not wanted.isdisjoint(host.images):
            values |= self._host.images(sample.rgb)
        if not wanted.isdisjoint({host.text.ids, host.text.mask, host.image_index}):
            values |= self._host.texts(self._host.tokenize(sample.expressions))
        if host.categories is not None and host.categories.value in wanted:
            values |= self._host.asked(_rows(self._host.categories, sample))
        if not wanted.isdisjoint(host.drawn):
            values |= self._host.drawn(len(sample.expressions))
        return values

    @cached_property
    def _reach(self) -> Reach:
        return Reach(self.bundle)

    def score(self, paths: Mapping[str, Path], title: str | None = None) -> Score:
        """What the masks are worth where the graphs of `paths` replace those of their stages.

        The progress over the samples is shown under `title`. None: it is not shown.
        """
        logits = self.bundle.manifest.answer.mask_logits
        last = next(s.name for s in self.bundle.manifest.stages if logits in _names(s.outputs))
        touched = self._reach.touched(paths)
        scores: list[_MaskScore] = []
        with ExitStack() as stack:
            sessions = {
                stage: stack.enter_context(self.open(stage, paths.get(stage))) for stage in touched
            }
            every: Iterable[int] = range(len(self.samples))
            if title:
                every = self.execution.track(every, len(self.samples), title)
            for i in every:
                sample = self.samples[i]
                changed: dict[str, Arrays] = {}
                for stage in touched:
                    changed[stage] = sessions[stage].run(self.feeds(stage, i, sample, changed))
                wanted = self.recorded(i, last)
                got = changed.get(last, wanted)
                scores += self._compare(sample, got[logits], wanted[logits])
        return _mean(scores)

    def _compare(
        self, sample: CalibrationSample, got: NDArray[Any], wanted: NDArray[Any]
    ) -> Iterator[_MaskScore]:
        """Scores of a sample's masks, from their logits [expressions, 1, h, w] and FP32's."""
        height, width = sample.rgb.shape[:2]
        rule = self.bundle.manifest.mask_rule
        for number in range(len(sample.expressions)):
            ours = mask_from_logits(got[number, 0], height, width, rule)
            theirs = mask_from_logits(wanted[number, 0], height, width, rule)
            truth = None
            if sample.truths is not None and sample.truths[number].any():
                true = sample.truths[number]
                truth = mask_iou(ours, true), mask_iou(theirs, true)
            yield _MaskScore(mask_iou(ours, theirs), truth)


def _save(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes the arrays whole or not at all."""
    write_atomically(file, lambda target: np.savez(target, **arrays))


def _names(specs: Iterable[TensorSpec]) -> set[str]:
    return {spec.name for spec in specs}


def _rows(table: CategoryTable | None, sample: CalibrationSample) -> list[int]:
    """The row of each expression's category."""
    assert table is not None  # the manifest has a table
    found = categories_to_ask(table, sample.expressions, sample.categories)
    return [table.row(guess.category) for guess in found if guess is not None]


def _mean(scores: list[_MaskScore]) -> Score:
    iou = float(np.mean([score.iou for score in scores]))
    truths = [score.truth for score in scores if score.truth is not None]
    if not truths:
        return Score(iou, None, None)
    ours, theirs = zip(*truths, strict=True)
    return Score(iou, float(np.mean(ours)), float(np.mean(theirs)))
