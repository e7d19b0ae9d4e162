"""What is accepted of a bundle beside its reference, by precision (`ris.runtime.parity`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ris.engines.errors import BundleError
from ris.runtime.manifest import Manifest, Precision, StageParity
from ris.runtime.model import Model

END_TO_END = "end_to_end.mask_logits"
"""The row of the mask logits through all graphs."""


@dataclass(frozen=True)
class Tolerance:
    """What is accepted. Errors are relative, as `StageParity.relative`."""

    stage: float
    """The error of a graph's output or a host step by itself."""

    no_target_logits: float | None
    """The error of the no-target logits. None: any that is finite; `no_target_margin` judges.

    A head may take the largest over queries, behind attention masks with a threshold. What narrow
    arithmetic costs it then comes in steps, and has no bound (docs/reference/precision.md).
    """

    no_target_margin: float
    """Where the reference's no-target probability is farther from 0.5, the decision is the same."""

    mask_logits: float
    """The error of the mask logits through all graphs."""

    mask_iou: float
    """The IoU of a mask with the reference's."""

    flipped: float
    """The share of the image's pixels that may differ where the IoU is not reached.

    In a mask of a few pixels, one of them is a large part of the IoU.
    """

    behind_threshold: float = 0.0
    """The error of what lies behind a threshold and only other graphs take, or what the manifest
    says, if more.

    Narrow arithmetic carries many values over it. What that costs the answer is judged there.
    """

    graphs: Mapping[str, float] = field(default_factory=dict)
    """By graph what is accepted of its outputs in the place of `stage`."""

    def of(self, row: str) -> float:
        """What is accepted of a row, "stage.output", that has no rule of its own."""
        return self.graphs.get(row.partition(".")[0], self.stage)


NARROW_STEPS = 5e-2
"""`Tolerance.behind_threshold` below FP32: more than twice the largest that was seen
(docs/reference/precision.md)."""

TOLERANCES: dict[Precision, Tolerance] = {
    "fp32": Tolerance(
        stage=1e-4,
        no_target_logits=1e-4,
        no_target_margin=1e-3,
        mask_logits=1e-3,
        mask_iou=0.9999,
        flipped=1e-5,
    ),
    "fp16": Tolerance(
        stage=1e-2,
        no_target_logits=None,
        no_target_margin=0.05,
        mask_logits=2e-2,
        mask_iou=0.998,
        flipped=1e-4,
        behind_threshold=NARROW_STEPS,
    ),
    # of what --compute bf16 runs in it
    "bf16": Tolerance(
        stage=2e-2,
        no_target_logits=None,
        no_target_margin=0.1,
        mask_logits=4e-2,
        mask_iou=0.985,
        flipped=1e-3,
        behind_threshold=NARROW_STEPS,
    ),
}
"""What is accepted of each precision, the narrowest last."""

MADE_UP_FP16_IOU = 0.995
"""The mask IoU that is accepted of made-up weights in FP16.

Their masks are all boundary: FP16 as such costs them 0.002 to 0.003, and a fault far more.
"""

INT8_MARGIN = 1.5
"""A bundle with INT8 products or narrow weights may have so many times the error that it had when
it was calibrated or exported."""

INT8_IOU = 0.03
"""Such a bundle may have so much less mask IoU than it had then."""

INT8_NO_TARGET_MARGIN = 0.3
"""`Tolerance.no_target_margin` of an INT8 bundle."""


def tolerance_of(model: Model) -> Tolerance:
    """What is accepted of a model.

    It is that of the bundle's precision, or of a narrower one that one of its graphs runs in. A
    bundle for bfloat16 whose graphs all stayed FP32 is FP32.
    """
    manifest = model.bundle.manifest
    if manifest.precision == "int8":
        return _measured_tolerance(manifest)
    written = {stage.precision for stage in manifest.stages}
    named = "fp32" if manifest.precision == "bf16" and written == {"fp32"} else manifest.precision
    running = {named, *(info.precision for info in model.sessions.values())}
    narrowest = next(name for name in reversed(TOLERANCES) if name in running or name == "fp32")
    found = TOLERANCES[narrowest]
    if any(stage.weights for stage in manifest.stages):
        return _narrow_tolerance(manifest, found, as_written=narrowest == named)
    if narrowest == "fp16" and not manifest.source.trained:
        return replace(found, mask_iou=MADE_UP_FP16_IOU)
    return found


def _narrow_tolerance(manifest: Manifest, usual: Tolerance, *, as_written: bool) -> Tolerance:
    """What is accepted where graphs have narrow weights.

    Of each graph it is a little more than rounding its own weights cost, or the usual error of what
    runs. Where less precise arithmetic runs than was written, its error comes on top.
    """
    measured = _measured_tolerance(manifest)
    beside = 0.0 if as_written else usual.stage
    graphs = {
        stage: max(INT8_MARGIN * error + beside, usual.stage)
        for stage, error in _measured_errors(manifest).items()
    }
    return replace(
        measured,
        stage=usual.stage,
        graphs=graphs,
        mask_logits=max(measured.mask_logits, usual.mask_logits),
        mask_iou=min(measured.mask_iou, usual.mask_iou),
    )


def _measured_errors(manifest: Manifest) -> dict[str, float]:
    """By graph the largest relative error that its outputs had, the no-target logits aside."""
    found: dict[str, float] = {}
    for name in manifest.parity.keys() - {END_TO_END, no_target_row(manifest)}:
        stage = name.partition(".")[0]
        if stage in manifest.graphs:
            found[stage] = max(found.get(stage, 0.0), manifest.parity[name].relative)
    return found


def no_target_row(manifest: Manifest) -> str | None:
    """The row of the no-target logits; None for a model that does not decide that."""
    value = manifest.answer.no_target_logits
    makers = (stage.name for stage in manifest.stages for out in stage.outputs if out.name == value)
    return next((f"{stage}.{value}" for stage in makers), None)


def thresholded_rows(manifest: Manifest, tolerance: Tolerance) -> dict[str, float]:
    """The rows of the values that lie behind a threshold, and the error that is accepted there.

    tolerance: what is accepted of the rest.
    """
    rows = {}
    answers = (manifest.answer.mask_logits, manifest.answer.no_target_logits)
    for stage in manifest.stages:
        for value, step in stage.thresholded.items():
            least = 0.0 if value in answers else tolerance.behind_threshold
            rows[f"{stage.name}.{value}"] = max(step, least)
            if value == manifest.answer.mask_logits:
                rows[END_TO_END] = step
    return rows


def _measured_tolerance(manifest: Manifest) -> Tolerance:
    """What is accepted where rounding costs what it costs: a little more than was measured."""
    if END_TO_END not in manifest.parity:
        raise BundleError(
            f"the bundle's manifest has no parity of {END_TO_END}, which is compared with;"
            " calibrate or export the bundle again"
        )
    judged = manifest.parity.keys() - {END_TO_END, no_target_row(manifest)}  # the usual errors
    stages = [manifest.parity[name].relative for name in judged]
    stage = INT8_MARGIN * max(stages, default=0.0)
    return Tolerance(
        stage=stage,
        no_target_logits=None,
        no_target_margin=INT8_NO_TARGET_MARGIN,
        mask_logits=INT8_MARGIN * manifest.parity[END_TO_END].relative,
        mask_iou=manifest.mask_iou - INT8_IOU,
        flipped=1e-3,
        behind_threshold=NARROW_STEPS,
    )


def failed_rows(
    rows: Mapping[str, StageParity],
    tolerance: Tolerance,
    no_target: str | None = None,
    thresholded: Mapping[str, float] | None = None,
) -> list[str]:
    """A sentence for every row that is out of tolerance.

    Args:
        rows: What was compared, by name.
        tolerance: What is accepted.
        no_target: The row of the no-target logits (`no_target_row`).
        thresholded: The rows behind a threshold, and what is accepted (`thresholded_rows`).
    """
    failures = []
    own: dict[str | None, float | None] = {
        END_TO_END: tolerance.mask_logits,
        no_target: tolerance.no_target_logits,
    }
    for name, row in rows.items():
        accepted = own.get(name, tolerance.of(name))
        if accepted is None:
            if not math.isfinite(row.relative):
                failures.append(f"{name}: values that are not finite")
            continue
        accepted = max(accepted, (thresholded or {}).get(name, 0.0))
        if not row.relative <= accepted:  # NaN is out of tolerance too
            failures.append(
                f"{name}: relative error {row.relative:.2e} (largest {row.max_abs:.2e}), accepted"
                f" {accepted:.0e}"
            )
    return failures
