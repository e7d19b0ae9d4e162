"""How far a bundle is from its reference: stage by stage on the reference's own inputs, and end to
end.

A reference is a dictionary of arrays. `golden.npz` in the bundle holds one, so this needs no torch:

    rgb uint8 [H, W, 3]; square uint8 [S, S, 3]; clip_image [1, 3, c, c]; input_ids int32 [N, T];
    image_embeddings [1, C, s, s]; clip_tokens [1, P, width]; text_features [N, T, C];
    category_feature [N, width]; dense_prompt [N, C, g, g]; dense_embedding [N, C, s, s];
    sparse_prompt [N, 1, C]; no_target_logits [N, 2]; mask_logits [N, 1, m, m]; expressions and
    categories as unicode [N].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines import Graph, Session
from ris.engines.errors import BundleError
from ris.runtime.bundle import Bundle, Precision, StageParity
from ris.runtime.image import prepare_image
from ris.runtime.interpolate import resize_maps
from ris.runtime.masks import mask_from_logits
from ris.runtime.model import Model

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Tolerance:
    """What is accepted: relative error of a stage on its own, of the no-target logits and of the
    mask logits end to end; for masks an IoU, or as few flipped pixels (a share of the image): in a
    mask of a few pixels one flip is a large part. The no-target logits are two numbers an
    expression, the largest over DFAM's queries, behind attention masks with a threshold: bfloat16
    costs them 1e-2 on average and up to 6e-2 (docs/reference/precision.md).
    """

    stage: float
    no_target_logits: float
    mask_logits: float
    mask_iou: float
    flipped: float


TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(
        stage=1e-4, no_target_logits=1e-4, mask_logits=1e-3, mask_iou=0.9999, flipped=1e-5
    ),
    "fp16": Tolerance(
        stage=1e-2, no_target_logits=1e-2, mask_logits=2e-2, mask_iou=0.998, flipped=1e-4
    ),
    # of what --compute bf16 runs in it
    "bf16": Tolerance(
        stage=2e-2, no_target_logits=6e-2, mask_logits=4e-2, mask_iou=0.985, flipped=1e-3
    ),
}
MADE_UP_FP16_IOU = 0.995
"""Made-up weights give masks that are all boundary: FP16 as such costs them 0.002 to 0.003, and a
fault far more.
"""
END_TO_END, NO_TARGET = "end_to_end.mask_logits", "fusion.no_target_logits"
INT8_MARGIN, INT8_IOU = 1.5, 0.03
"""An INT8 bundle is measured by what it had when it was calibrated: so many times that error, so
much less mask IoU.
"""


def tolerance_of(model: Model) -> Tolerance:
    """What is accepted of a model: that of its bundle's precision, or of a narrower one that its
    graphs run in.
    """
    manifest = model.bundle.manifest
    if manifest.precision == "int8":
        stages = [row.relative for name, row in manifest.parity.items() if name != END_TO_END]
        end = manifest.parity[END_TO_END].relative
        worst = max(stages, default=0.0)
        stage = INT8_MARGIN * worst
        return Tolerance(
            stage, stage, INT8_MARGIN * end, manifest.mask_iou - INT8_IOU, flipped=1e-3
        )
    running = {manifest.precision, *(info.precision for info in model.sessions.values())}
    narrowest = next(name for name in reversed(TOLERANCES) if name in running or name == "fp32")
    found = TOLERANCES[narrowest]
    if narrowest == "fp16" and not manifest.source.trained:
        return replace(found, mask_iou=MADE_UP_FP16_IOU)
    return found


@dataclass(frozen=True)
class ParityReport:
    """The result: every row by name, masks compared at the image's own size, and what is out of
    tolerance.
    """

    rows: dict[str, StageParity]
    mask_iou: float
    flipped: float
    failures: tuple[str, ...]


def compare(got: NDArray[Any], want: NDArray[Any]) -> StageParity:
    """Differences in float64. Arrays with a value that is not finite are infinitely far apart."""
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    if a.shape != b.shape or not np.isfinite(a).all():
        return StageParity(np.inf, np.inf, np.inf, 0.0)
    difference = np.abs(a - b)
    scale = np.sqrt((b * b).mean())
    error = np.sqrt((difference * difference).mean())
    relative = error / scale if scale else (0.0 if error == 0 else np.inf)
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    cosine = 1.0 if not norms and error == 0 else float(a @ b / norms) if norms else 0.0
    return StageParity(
        float(difference.max()), float(difference.mean()), float(relative), min(cosine, 1.0)
    )


def graph_feeds(graph: Graph, reference: Arrays) -> dict[str, NDArray[Any]]:
    """The reference's arrays under the names of the graph's inputs."""
    special = {
        "text_mask": lambda: (reference["input_ids"] != 0).astype(np.float32),
        "image_index": lambda: np.asarray(
            reference.get("image_index", np.zeros(len(reference["input_ids"]))), np.int32
        ),
    }
    feeds: dict[str, NDArray[Any]] = {}
    for spec in graph.inputs:
        name = spec.name
        if graph.stage == "clip_image_encoder":
            name = "clip_image"
        elif graph.stage == "mask_decoder" and name == "dense_prompt":
            name = "dense_embedding"
        feeds[spec.name] = special[name]() if name in special else np.asarray(reference[name])
    return feeds


def check_stage(
    stage: str, session: Session, reference: Arrays, expressions: int | None = None
) -> dict[str, StageParity]:
    """Runs one graph on the reference's inputs; a row `stage.output` for each of its outputs.

    expressions: at most so many at a time, where the graph takes any and the session was opened for
    no more.
    """
    feeds = graph_feeds(session.graph, reference)
    split = [spec.name for spec in session.graph.inputs if spec.shape[:1] == ("expressions",)]
    if split:
        count = len(feeds[split[0]])
        step = expressions or count
        parts = [
            session.run(feeds | {name: feeds[name][first : first + step] for name in split})
            for first in range(0, count, step)
        ]
        outputs = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    else:
        outputs = session.run(feeds)
    return {f"{stage}.{name}": compare(value, reference[name]) for name, value in outputs.items()}


def load_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The reference that the bundle carries. Raises BundleError where it cannot be read."""
    path = bundle.file(bundle.manifest.golden)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} cannot be read ({error}); export the bundle again") from None


def check_model(
    model: Model, reference: Arrays, tolerance: Tolerance | None = None
) -> ParityReport:
    """Every stage on its own, the host's own steps, and the whole chain from the image file's
    pixels to masks.
    """
    manifest = model.bundle.manifest
    tolerance = tolerance or tolerance_of(model)
    rgb = np.asarray(reference["rgb"])
    image, clip_image = prepare_image(rgb, manifest.preprocess)
    sam = manifest.preprocess.sam
    square = (reference["square"] - np.asarray(sam.mean, np.float32)) / np.asarray(
        sam.std, np.float32
    )
    square = np.ascontiguousarray(square.transpose(2, 0, 1)[None], np.float32)
    rows = {
        "host.sam_image": compare(image, square),
        "host.clip_image": compare(clip_image, reference["clip_image"]),
    }
    link = manifest.dense_prompt
    dense = resize_maps(
        np.asarray(reference["dense_prompt"]), link.target, link.target, link.interpolation
    )
    rows["host.dense_embedding"] = compare(dense, reference["dense_embedding"])
    staged = dict(reference) | {"image": square}
    for stage, session in model.open_sessions.items():
        rows |= check_stage(stage, session, staged, model.max_expressions)

    expressions = [str(e) for e in reference["expressions"]]
    categories = [str(c) for c in reference["categories"]] if manifest.categories else None
    results = model.encode_image(rgb).segment_many(
        expressions, categories=categories, no_target_threshold=None
    )
    logits = np.stack([r.logits for r in results])[:, None]
    rows[END_TO_END] = compare(logits, reference["mask_logits"])
    ious, flips = [], []
    height, width = rgb.shape[:2]
    for result, want in zip(results, reference["mask_logits"], strict=True):
        wanted = mask_from_logits(want[0], height, width, manifest.postprocess.threshold)
        ious.append(mask_iou(result.mask, wanted))
        flips.append(float((result.mask != wanted).mean()))
    failures = failed_rows(rows, tolerance)
    if min(ious) < tolerance.mask_iou and max(flips) > tolerance.flipped:
        failures.append(f"mask IoU {min(ious):.5f}, accepted from {tolerance.mask_iou}")
    return ParityReport(rows, min(ious), max(flips), tuple(failures))


def failed_rows(rows: Mapping[str, StageParity], tolerance: Tolerance) -> list[str]:
    """A sentence for every row that is out of tolerance."""
    failures = []
    own = {END_TO_END: tolerance.mask_logits, NO_TARGET: tolerance.no_target_logits}
    for name, row in rows.items():
        accepted = own.get(name, tolerance.stage)
        if not row.relative <= accepted:
            failures.append(
                f"{name}: relative error {row.relative:.2e} (largest {row.max_abs:.2e}), accepted"
                f" {accepted:.0e}"
            )
    return failures


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; two empty masks agree."""
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0
