"""The five graphs over the calibration samples, each output computed once and kept on disk.

What a change in one graph does to the masks then costs only that graph and those behind it. Only
ONNX Runtime's CPU is used; at most one large graph is open at a time while the reference is
recorded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.calibration.samples import CalibrationSample, SampleSet
from ris.engines import EngineOptions, Session
from ris.engines.errors import RisError
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.runtime import Bundle
from ris.runtime.bundle import STAGES
from ris.runtime.categories import CategoryTable
from ris.runtime.image import prepare_image
from ris.runtime.interpolate import resize_maps
from ris.runtime.masks import mask_from_logits
from ris.runtime.parity import mask_iou
from ris.runtime.text import ExpressionTokenizer

Arrays = dict[str, NDArray[Any]]
Track = Callable[[Iterable[int], int, str], Iterator[int]]
"""`ris.runtime.commands.console.track`, or anything that yields the same items."""

# whose outputs a graph's mask-relevant inputs come from; SAM reaches the fusion for the no-target
# head alone
_BEHIND = {
    "sam_image_encoder": (),
    "clip_image_encoder": (),
    "text_encoder": (),
    "fusion": ("clip_image_encoder", "text_encoder"),
    "mask_decoder": ("sam_image_encoder", "fusion"),
}


@dataclass(frozen=True)
class Score:
    """Over all expressions: mean IoU with the FP32 masks; and mean IoU with the true masks that are
    not empty, and what FP32 has there, None where no sample has any."""

    iou: float
    truth: float | None
    reference_truth: float | None

    def drop(self, against: str) -> float:
        """What was lost: of the IoU with FP32's masks ("fp32"), or of the IoU with the true ones
        ("truth").
        """
        if against == "fp32":
            return 1 - self.iou
        if self.truth is None or self.reference_truth is None:
            raise RisError(
                "these samples have no true masks; compare with those of FP32 (--against fp32)"
            )
        return self.reference_truth - self.truth


class Chain:
    """A bundle's graphs over samples. `record` first; `folder` keeps what it computed, so that it
    goes on there.
    """

    def __init__(
        self, bundle: Bundle, samples: SampleSet, folder: Path, threads: int | None = None
    ) -> None:
        manifest = bundle.manifest
        self.bundle, self.samples, self._folder = bundle, samples, folder
        self._engine = OnnxRuntimeEngine(EngineOptions("cpu", threads))
        self._tokenize = ExpressionTokenizer(
            bundle.file(manifest.text.tokenizer), manifest.text.max_tokens
        )
        self._features: NDArray[np.float32] | None = None
        if manifest.categories is not None:
            self._table = CategoryTable.read(bundle.file(manifest.categories.names))
            self._features = np.load(bundle.file(manifest.categories.features), allow_pickle=False)
        folder.mkdir(parents=True, exist_ok=True)

    def record(self, track: Track) -> None:
        """Runs what has not been run yet, graph by graph."""
        for stage in STAGES:
            missing = [i for i in range(len(self.samples)) if not self._file(i, stage).exists()]
            if not missing:
                continue
            with self.open(stage) as session:
                for i in track(missing, len(missing), f"FP32 {stage}"):
                    found = session.run(self.feeds(stage, i, self.samples[i], {}))
                    file = self._file(i, stage)
                    temporary = file.with_suffix(".part")
                    with temporary.open("wb") as target:
                        np.savez(target, **found)  # type: ignore[arg-type]
                    os.replace(temporary, file)

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
        """The inputs of a stage for sample i, by name; changed: outputs by stage that replace the
        recorded ones.
        """

        def output(of: str, name: str) -> NDArray[Any]:
            return (changed[of] if of in changed else self.recorded(i, of))[name]

        manifest = self.bundle.manifest
        if stage == "sam_image_encoder":
            return {"image": prepare_image(sample.rgb, manifest.preprocess)[0]}
        if stage == "clip_image_encoder":
            return {"image": prepare_image(sample.rgb, manifest.preprocess)[1]}
        tokens = self._tokenize(sample.expressions)
        if stage == "text_encoder":
            return {"input_ids": tokens.ids}
        feeds: Arrays = {"image_index": np.zeros(len(sample.expressions), np.int32)}
        if stage == "mask_decoder":
            link = manifest.dense_prompt
            dense = output("fusion", "dense_prompt")
            return feeds | {
                "image_embeddings": output("sam_image_encoder", "image_embeddings"),
                "dense_prompt": resize_maps(dense, link.target, link.target, link.interpolation),
                "sparse_prompt": output("fusion", "sparse_prompt"),
            }
        feeds["clip_tokens"] = output("clip_image_encoder", "clip_tokens")
        feeds["text_features"] = output("text_encoder", "text_features")
        feeds["text_mask"] = tokens.mask
        if manifest.no_target:
            feeds["image_embeddings"] = output("sam_image_encoder", "image_embeddings")
        if self._features is not None:
            if sample.categories is None:
                raise RisError(
                    "this model asks by category: give --category for each expression, or auto"
                )
            guesses = zip(sample.categories, sample.expressions, strict=True)
            names = [
                self._table.guess(e) if c == "auto" else self._table.known(c) for c, e in guesses
            ]
            feeds["category_feature"] = self._features[
                [self._table.row(guess.category) for guess in names]
            ]
        return feeds

    def score(self, paths: Mapping[str, Path], track: Track, title: str | None) -> Score:
        """What the masks are worth where these stages' graphs are replaced by those of `paths`."""
        ious: list[float] = []
        truths: list[float] = []
        references: list[float] = []
        touched: list[str] = []
        for stage in STAGES:
            if stage in paths or any(before in touched for before in _BEHIND[stage]):
                touched.append(stage)
        threshold = self.bundle.manifest.postprocess.threshold
        with ExitStack() as stack:
            sessions = {
                stage: stack.enter_context(self.open(stage, paths.get(stage))) for stage in touched
            }
            every = range(len(self.samples))
            for i in track(every, len(every), title) if title else every:
                sample = self.samples[i]
                changed: dict[str, Arrays] = {}
                for stage in touched:
                    changed[stage] = sessions[stage].run(self.feeds(stage, i, sample, changed))
                wanted = self.recorded(i, "mask_decoder")["mask_logits"]
                got = changed["mask_decoder"]["mask_logits"] if touched else wanted
                height, width = sample.rgb.shape[:2]
                for number in range(len(sample.expressions)):
                    ours = mask_from_logits(got[number, 0], height, width, threshold)
                    theirs = mask_from_logits(wanted[number, 0], height, width, threshold)
                    ious.append(mask_iou(ours, theirs))
                    if sample.truths is not None and sample.truths[number].any():
                        truths.append(mask_iou(ours, sample.truths[number]))
                        references.append(mask_iou(theirs, sample.truths[number]))
        mean = (float(np.mean(truths)), float(np.mean(references))) if truths else (None, None)
        return Score(float(np.mean(ious)), *mean)
