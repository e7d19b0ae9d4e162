"""How far a bundle is from its reference: each stage on the reference's own inputs, and all of it.

A reference is a dictionary of arrays. The bundle's golden.npz holds one, so this needs no PyTorch:
every value of the manifest by its name, for one image and N expressions; the picture itself, `rgb`
uint8 [H, W, 3]; and what was asked, `expressions` and, by category, `categories`, unicode [N].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ris.engines import Graph, Session
from ris.engines.errors import BundleError
from ris.engines.text import one_line
from ris.runtime.bundle import Bundle
from ris.runtime.comparing import compare, compare_mask
from ris.runtime.dfam.format_1 import GOLDEN_NAMES
from ris.runtime.drawn import draw, for_each
from ris.runtime.graphs import no_target_probabilities
from ris.runtime.host import prepare_images
from ris.runtime.interpolate import Float, resize_maps
from ris.runtime.manifest import Host, HostImage, Manifest, StageParity
from ris.runtime.manifest_kinds import Taken
from ris.runtime.model import Model
from ris.runtime.segmentation import Segmentation
from ris.runtime.tolerance import (
    END_TO_END,
    Tolerance,
    failed_rows,
    no_target_row,
    thresholded_rows,
    tolerance_of,
)
from ris.runtime.wiring import runs_once_an_image

Arrays = Mapping[str, NDArray[Any]]
"""A reference: arrays by name."""


@dataclass(frozen=True)
class NoTargetParity:
    """How often a bundle refuses what its reference does not, or the other way round."""

    asked: int
    """The expressions."""

    differ: int
    """Those that one of the two refuses: its no-target probability is above 0.5."""

    moved: float
    """The largest difference of a no-target probability, through all graphs."""


@dataclass(frozen=True)
class ParityReport:
    """How far a bundle is from its reference, and whether that is accepted."""

    rows: dict[str, StageParity]
    """Everything that was compared, by name: "host.step", "stage.output" and `END_TO_END`."""

    mask_iou: float
    """The smallest IoU of a mask with the reference's, at the image's own size."""

    flipped: float
    """The largest share of a mask's pixels that differ."""

    failures: tuple[str, ...]
    """A sentence for everything that is out of tolerance."""

    no_target: NoTargetParity | None = None
    """The decisions of the no-target head; None for a model without it."""


def graph_feeds(graph: Graph, reference: Arrays) -> dict[str, NDArray[Any]]:
    """The reference's values under the names of the graph's inputs, in FP16 where it takes that."""
    names = {spec: spec.value if isinstance(spec, Taken) else spec.name for spec in graph.inputs}
    half = {"float16": np.float16}
    return {one.name: np.asarray(reference[at], half.get(one.dtype)) for one, at in names.items()}


def check_stage(
    stage: str, session: Session, reference: Arrays, expressions: int | None = None
) -> dict[str, StageParity]:
    """Runs one graph on the reference's inputs.

    Args:
        stage: The graph.
        session: Its session.
        reference: The arrays.
        expressions: The most expressions of one call, where the graph takes any number. None: all
            at once.

    Returns:
        A row `stage.output` for each of the graph's outputs. Where rows of tokens have several
        lengths, it is that of the longest or of the shortest that holds them, the larger error.
    """
    feeds = graph_feeds(session.graph, reference)
    found: dict[str, StageParity] = {}
    for cut in (feeds, *_shorter(session.graph, feeds)):
        for name, value in _run_in_parts(session, cut, expressions).items():
            row = compare(value, reference[name])
            before = found.get(f"{stage}.{name}")
            if before is None or not row.relative <= before.relative:
                found[f"{stage}.{name}"] = row
    return found


def _shorter(graph: Graph, feeds: Arrays) -> list[dict[str, NDArray[Any]]]:
    """The same rows of tokens in the shortest length that holds them; none where it is theirs."""
    rows = [spec for spec in graph.inputs if "tokens" in spec.shape]
    masks = [feeds[spec.name] for spec in rows if spec.dtype == "float32"]
    if not masks:
        return []
    used = max(int(np.flatnonzero(mask.any(axis=0))[-1]) + 1 for mask in masks)
    length = next(one for one in graph.lengths if one >= used)
    cut = {**feeds, **{spec.name: feeds[spec.name][:, :length] for spec in rows}}
    return [cut] if length < masks[0].shape[1] else []


def _run_in_parts(session: Session, feeds: Arrays, expressions: int | None) -> Arrays:
    """What a graph gives; `expressions` as of `check_stage`."""
    split = [spec.name for spec in session.graph.inputs if spec.shape[:1] == ("expressions",)]
    if split:
        count = len(feeds[split[0]])
        step = expressions or count
        parts = [
            session.run({**feeds, **{name: feeds[name][first : first + step] for name in split}})
            for first in range(0, count, step)
        ]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return session.run(feeds)


def load_golden(bundle: Bundle) -> dict[str, NDArray[Any]]:
    """The reference that the bundle carries.

    Raises:
        BundleError: Where it cannot be read, or lacks an array.
    """
    path = bundle.file(bundle.manifest.golden)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: np.asarray(array) for name, array in arrays.items()}
    except Exception as error:  # whatever zipfile and numpy raise for a damaged file
        reason = one_line(str(error))[:200]
        raise BundleError(f"{path} cannot be read ({reason}); export the bundle again") from None
    images = bundle.manifest.host.images
    for old, name in GOLDEN_NAMES.items():
        if name in images and old not in images and old in found and name not in found:
            found[name] = found.pop(old)
    if problem := _golden_problem(found, bundle.manifest):
        raise BundleError(f"{path} {problem}; export the bundle again")
    return found | _host_values(found, bundle.manifest.host)


def _host_values(found: Arrays, host: Host) -> dict[str, NDArray[Any]]:
    """What golden.npz leaves to the reader: normalised images, masks, indices, random numbers."""
    values: dict[str, NDArray[Any]] = {
        name: _normalised(found[name], image)
        for name, image in host.images.items()
        if found[name].dtype == np.uint8
    }
    ids = found[host.text.ids]
    if host.text.mask is not None:
        values[host.text.mask] = (ids != host.text.pad_id).astype(np.float32)
    if host.image_index is not None:
        values[host.image_index] = np.zeros(len(ids), np.int32)
    return values | for_each(draw(host.drawn), len(ids))


def _golden_problem(found: Arrays, manifest: Manifest) -> str | None:
    """What the reference lacks, None where it is whole."""
    by_expression = {manifest.host.text.ids: ("i4", 2), "expressions": ("U", 1)}
    by_image = {"rgb": ("u1", 3)}
    for name in manifest.host.images:
        is_square = name in found and found[name].dtype == np.uint8
        by_image[name] = ("u1", 3) if is_square else ("f4", 4)
    if (table := manifest.categories) is not None:
        by_expression |= {table.value: ("f4", 2), "categories": ("U", 1)}
    for stage in manifest.stages:
        group = by_image if runs_once_an_image(stage) else by_expression
        group |= {spec.name: (_KINDS[spec.dtype], len(spec.shape)) for spec in stage.outputs}
        for name, resize in manifest.host.resizes.items():
            if resize.of in group:
                group[name] = group[resize.of]
    for name, (kind, axes) in (by_image | by_expression).items():
        array = found.get(name)
        if array is None:
            return f"has no array {name}"
        is_kind = array.dtype.str[1:].startswith(kind)
        if not is_kind or array.ndim != axes or not array.size:
            return f"has {name} as {array.dtype} {list(array.shape)}"
    counts = {len(found[name]) for name in by_expression}
    if len(counts) > 1:
        return f"has arrays of {' and '.join(map(str, sorted(counts)))} expressions"
    return None


# how the dtype of the reference's values begins, as numpy writes it; none of them is FP16
_KINDS = {"float32": "f4", "float16": "f4", "int32": "i4"}


def check_model(
    model: Model, reference: Arrays, tolerance: Tolerance | None = None
) -> ParityReport:
    """Each graph and each of the host's steps by itself, and all of them from pixels to masks.

    Args:
        model: The opened bundle.
        reference: The arrays.
        tolerance: What is accepted. None: `tolerance_of` the model.
    """
    tolerance = tolerance or tolerance_of(model)
    manifest = model.bundle.manifest
    rows = _check_host(manifest.host, reference)
    for stage, session in model.open_sessions.items():
        rows |= check_stage(stage, session, reference, model.max_expressions)

    results = _answers(model, reference)
    logits = np.stack([r.logits for r in results])[:, None]
    wanted_logits = reference[manifest.answer.mask_logits]
    rows[END_TO_END] = compare(logits, wanted_logits)

    thresholded = thresholded_rows(manifest, tolerance)
    # where a step is accepted of logits of which less is else, it may flip the pixels it reaches
    step = thresholded.get(END_TO_END, 0.0)
    step = step if tolerance.mask_logits < step else 0.0
    pairs = zip(results, wanted_logits[:, 0], strict=True)
    masks = [compare_mask(*pair, manifest.mask_rule, step) for pair in pairs]

    failures = failed_rows(rows, tolerance, no_target_row(manifest), thresholded)
    failures += [
        text
        for mask in masks
        for text in mask.failures(tolerance.mask_iou, tolerance.flipped, step)
    ]
    no_target = None
    if (name := manifest.answer.no_target_logits) is not None:
        probabilities = no_target_probabilities(reference[name])
        no_target, undecided = _no_target(results, probabilities, tolerance.no_target_margin)
        failures += undecided
    iou, flipped = min(mask.iou for mask in masks), max(mask.flipped for mask in masks)
    return ParityReport(rows, iou, flipped, tuple(failures), no_target)


def _no_target(
    results: Sequence[Segmentation], wanted: Sequence[float], margin: float
) -> tuple[NoTargetParity, list[str]]:
    """The decisions of the no-target head, and a sentence for each that may not differ."""
    found = [cast("float", result.no_target) for result in results]
    differ, failures = 0, []
    for result, got, want in zip(results, found, wanted, strict=True):
        if math.isfinite(got) and (got > 0.5) == (want > 0.5):
            continue
        differ += 1
        if not (math.isfinite(got) and abs(want - 0.5) <= margin):
            failures.append(
                f"{result.expression!r}: no-target probability {got:.3f}, the reference's"
                f" {want:.3f}; they may decide differently where that is within {margin:g} of 0.5"
            )
    moved = max(abs(got - want) for got, want in zip(found, wanted, strict=True))
    return NoTargetParity(len(found), differ, moved), failures


def _normalised(levels: NDArray[np.uint8], wanted: HostImage) -> Float:
    """An image [1, 3, S, S], made from its 8-bit levels in the plainest way."""
    values = levels if wanted.levels == 255 else levels / np.float32(255)
    planes = (values - np.asarray(wanted.mean, np.float32)) / np.asarray(wanted.std, np.float32)
    below, right = (wanted.size - side for side in levels.shape[:2])  # 0 but for a letterbox
    filled = np.pad(planes, ((0, below), (0, right), (0, 0)))
    return np.ascontiguousarray(filled.transpose(2, 0, 1)[None], np.float32)


def _check_host(host: Host, reference: Arrays) -> dict[str, StageParity]:
    """What the host does before and between the graphs; a row "host.value" for each step."""
    images = prepare_images(np.asarray(reference["rgb"]), host.images)
    rows = {f"host.{name}": compare(image, reference[name]) for name, image in images.items()}
    for name, resize in host.resizes.items():
        maps = np.asarray(reference[resize.of])
        resized = resize_maps(maps, resize.size, resize.size, resize.interpolation)
        rows[f"host.{name}"] = compare(resized, reference[name])
    return rows


def _answers(model: Model, reference: Arrays) -> list[Segmentation]:
    """The model's own answers to the reference's questions, never empty for "no target"."""
    expressions = [str(e) for e in reference["expressions"]]
    asks_by_category = model.bundle.manifest.categories is not None
    categories = [str(c) for c in reference["categories"]] if asks_by_category else None
    scene = model.encode_image(np.asarray(reference["rgb"]))
    return scene.segment_many(expressions, categories=categories, no_target_threshold=None)
