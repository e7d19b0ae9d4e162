"""The five graphs over the calibration samples, each output computed once and kept on disk.

A change in one graph then costs only that graph and those behind it. Only ONNX Runtime's CPU is
used. At most one large graph is open at a time while the reference is recorded.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ris.calibration.int8.options import Execution
from ris.calibration.samples import CalibrationSample, SampleSet
from ris.engines import EngineOptions, Session
from ris.engines.errors import RisError
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.engines.temporary import clear_folder, write_atomically
from ris.runtime import Bundle
from ris.runtime.bundle import STAGES
from ris.runtime.categories import CategoryTable, read_table
from ris.runtime.image import prepare_image
from ris.runtime.interpolate import resize_maps
from ris.runtime.masks import mask_from_logits
from ris.runtime.parity import mask_iou
from ris.runtime.text import ExpressionTokenizer

Arrays = dict[str, NDArray[Any]]

# the stages whose outputs a graph's masks depend on; SAM's reach the fusion for the no-target head
# alone
_BEHIND = {
    "sam_image_encoder": (),
    "clip_image_encoder": (),
    "text_encoder": (),
    "fusion": ("clip_image_encoder", "text_encoder"),
    "mask_decoder": ("sam_image_encoder", "fusion"),
}


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
        manifest = bundle.manifest
        self.bundle, self.samples, self._folder = bundle, samples, folder
        self.execution = execution or Execution()
        self._engine = OnnxRuntimeEngine(EngineOptions("cpu", self.execution.threads))
        self._tokenize = ExpressionTokenizer(
            bundle.file(manifest.text.tokenizer), manifest.text.max_tokens
        )
        self._categories: tuple[CategoryTable, NDArray[np.float32]] | None = None
        if (files := manifest.categories) is not None:
            self._categories = read_table(bundle.file(files.names), bundle.file(files.features))
        folder.mkdir(parents=True, exist_ok=True)
        clear_folder(folder)

    def record(self) -> None:
        """Runs what has not been run yet, graph by graph."""
        for stage in STAGES:
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
            RisError: The model asks by category and the sample has none.
        """
        manifest = self.bundle.manifest
        if stage == "sam_image_encoder":
            return {"image": prepare_image(sample.rgb, manifest.preprocess)[0]}
        if stage == "clip_image_encoder":
            return {"image": prepare_image(sample.rgb, manifest.preprocess)[1]}
        if stage == "text_encoder":
            return {"input_ids": self._tokenize(sample.expressions).ids}

        def output(of: str, name: str) -> NDArray[Any]:
            return (changed[of] if of in changed else self.recorded(i, of))[name]

        image_index = np.zeros(len(sample.expressions), np.int32)
        if stage == "mask_decoder":
            link = manifest.dense_prompt
            dense = output("fusion", "dense_prompt")
            return {
                "image_index": image_index,
                "image_embeddings": output("sam_image_encoder", "image_embeddings"),
                "dense_prompt": resize_maps(dense, link.target, link.target, link.interpolation),
                "sparse_prompt": output("fusion", "sparse_prompt"),
            }
        feeds: Arrays = {
            "image_index": image_index,
            "clip_tokens": output("clip_image_encoder", "clip_tokens"),
            "text_features": output("text_encoder", "text_features"),
            "text_mask": self._tokenize(sample.expressions).mask,
        }
        if manifest.no_target:
            feeds["image_embeddings"] = output("sam_image_encoder", "image_embeddings")
        if self._categories is not None:
            feeds["category_feature"] = _category_features(*self._categories, sample)
        return feeds

    def score(self, paths: Mapping[str, Path], title: str | None = None) -> Score:
        """What the masks are worth where the graphs of `paths` replace those of their stages.

        The progress over the samples is shown under `title`. None: it is not shown.
        """
        touched = _touched(paths)
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
                wanted = self.recorded(i, "mask_decoder")
                got = changed.get("mask_decoder", wanted)
                scores += self._compare(sample, got["mask_logits"], wanted["mask_logits"])
        return _mean(scores)

    def _compare(
        self, sample: CalibrationSample, got: NDArray[Any], wanted: NDArray[Any]
    ) -> Iterator[_MaskScore]:
        """Scores of a sample's masks, from their logits [expressions, 1, h, w] and FP32's."""
        height, width = sample.rgb.shape[:2]
        threshold = self.bundle.manifest.postprocess.threshold
        for number in range(len(sample.expressions)):
            ours = mask_from_logits(got[number, 0], height, width, threshold)
            theirs = mask_from_logits(wanted[number, 0], height, width, threshold)
            truth = None
            if sample.truths is not None and sample.truths[number].any():
                true = sample.truths[number]
                truth = mask_iou(ours, true), mask_iou(theirs, true)
            yield _MaskScore(mask_iou(ours, theirs), truth)


def _save(file: Path, arrays: Mapping[str, Any]) -> None:
    """Writes the arrays whole or not at all."""
    write_atomically(file, lambda target: np.savez(target, **arrays))


def _category_features(
    table: CategoryTable, features: NDArray[np.float32], sample: CalibrationSample
) -> NDArray[np.float32]:
    """The feature of each expression's category, float32 [expressions, C]."""
    if sample.categories is None:
        raise RisError("this model asks by category: give --category for each expression, or auto")
    pairs = zip(sample.categories, sample.expressions, strict=True)
    found = [
        table.guess(expression) if category == "auto" else table.known(category)
        for category, expression in pairs
    ]
    return features[[table.row(guess.category) for guess in found]]


def _touched(stages: Iterable[str]) -> list[str]:
    """The stages to run anew where the graphs of these have changed, in the order of `STAGES`."""
    changed = set(stages)
    touched: list[str] = []
    for stage in STAGES:
        if stage in changed or any(before in touched for before in _BEHIND[stage]):
            touched.append(stage)
    return touched


def _mean(scores: list[_MaskScore]) -> Score:
    iou = float(np.mean([score.iou for score in scores]))
    truths = [score.truth for score in scores if score.truth is not None]
    if not truths:
        return Score(iou, None, None)
    ours, theirs = zip(*truths, strict=True)
    return Score(iou, float(np.mean(ours)), float(np.mean(theirs)))
