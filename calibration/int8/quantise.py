"""`ris-calibrate int8` as a function: an FP32 bundle in, an INT8 bundle and a report out."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ris import __version__
from ris.calibration.int8.chain import Chain, Score
from ris.calibration.int8.histogram import Calibrator
from ris.calibration.int8.options import Execution, Int8Options
from ris.calibration.int8.report import Int8Report
from ris.calibration.int8.search import LayerCost, LayerKey, Quantiser
from ris.calibration.int8.statistics import measure
from ris.calibration.int8.work import Work
from ris.calibration.int8.writing import WRITER, write_bundle
from ris.calibration.samples import SampleSet
from ris.engines.errors import BundleError, RisError
from ris.runtime import Bundle
from ris.runtime.bundle_folder import check_target, recover

__all__ = [
    "WRITER",
    "Execution",
    "Int8Options",
    "Int8Report",
    "quantise_bundle",
    "work_folder",
]

_FORMAT = 2  # of what the work folder has
_RESULTS_SERVE_ANY = ("graphs", "max_iou_drop", "against", "calibrator", "sensitivity")
"""Options that may change between a stopped run and the next: what it found is good for all."""


def quantise_bundle(
    bundle: Bundle,
    samples: SampleSet,
    out: Path,
    options: Int8Options,
    *,
    overwrite: bool = False,
    execution: Execution | None = None,
) -> Int8Report:
    """Writes the INT8 bundle `out`.

    Results so far are kept beside it, in `work_folder(out)`, until it is whole.

    Args:
        bundle: The FP32 bundle.
        samples: What to calibrate with.
        out: The new bundle, a folder.
        options: What to do.
        overwrite: Whether a bundle that is there already is replaced.
        execution: Threads, progress and remarks. None: all cores, and silence.

    Raises:
        BundleError: `bundle` is not FP32, or `out` is in the way.
        RisError: There are no samples, there is no such graph, or the target cannot be held.
    """
    execution = execution or Execution()
    options = planned(bundle, out, options, overwrite)
    if not len(samples):
        raise RisError("there are no calibration samples")

    work = _open_work(out, _setup(bundle, samples, options), execution)
    chain = Chain(bundle, samples, work.folder / "recorded", execution)
    chain.record()
    graphs = {
        stage: measure(chain, stage, work, alpha=options.alpha, attention=options.attention)
        for stage in options.graphs or ()
    }
    quantiser = Quantiser(
        chain, graphs, work, against=options.against, percentile=options.percentile
    )
    report, chosen = _choose(quantiser, options)
    mask_iou = write_bundle(quantiser, chosen, report, out, overwrite)
    work.remove()
    return dataclasses.replace(report, mask_iou=mask_iou)


def planned(bundle: Bundle, out: Path, options: Int8Options, overwrite: bool) -> Int8Options:
    """The options with the stages to quantise, of a request that can be done as far as is known
    before the work.

    Args:
        bundle: As of `quantise_bundle`, as are the others.
        out: The new bundle.
        options: What to do.
        overwrite: Whether a bundle that is there already is replaced.

    Raises:
        BundleError: `bundle` is not FP32, or `out` is in the way.
        RisError: There is no such graph.
    """
    _require_fp32(bundle)
    stages = _stages(bundle, options.graphs)
    recover(out)
    check_target(out, overwrite)  # again when the work is done
    return dataclasses.replace(options, graphs=stages)


def _require_fp32(bundle: Bundle) -> None:
    precision = bundle.manifest.precision
    if precision != "fp32":
        raise BundleError(f"{bundle.path} is {precision}; INT8 is made from an FP32 bundle")
    if narrow := next((s.weights for s in bundle.manifest.stages if s.weights), None):
        raise BundleError(
            f"{bundle.path} has {narrow.format} weights; INT8 is made from a bundle without them"
        )


def _stages(bundle: Bundle, asked: tuple[str, ...] | None) -> tuple[str, ...]:
    """The stages to quantise: those that were asked for, or the bundle's own.

    Raises RisError where there is none, or none of that name.
    """
    known = ", ".join(bundle.stages)
    if unknown := sorted(set(asked or ()) - set(bundle.stages)):
        raise RisError(f"{bundle.path} has no graph {', '.join(unknown)}; there are {known}")
    stages = asked or tuple(s.name for s in bundle.manifest.stages if s.int8_by_default)
    if not stages:
        raise RisError(
            f"{bundle.path} does not say which graphs INT8 is for; name them with --graph: {known}"
        )
    return stages


def work_folder(out: Path) -> Path:
    """Where a calibration keeps what it has found, until it ends."""
    return out.with_name(f".{out.name}.calibration")


def _setup(bundle: Bundle, samples: SampleSet, options: Int8Options) -> dict[str, Any]:
    """Everything that what is kept in the work folder depends on."""
    asked = asdict(options)
    for name in _RESULTS_SERVE_ANY:
        del asked[name]
    manifest = bundle.manifest
    return {
        "format": _FORMAT,
        "options": asked,
        "samples": samples.fingerprint,
        "graphs": {stage: asdict(entry) for stage, entry in manifest.graphs.items()},
        "host": asdict(manifest.host),
        "answer": asdict(manifest.answer),
        "files": manifest.files,  # such as the tokenizer
        "version": __version__,
    }


def _open_work(out: Path, setup: dict[str, Any], execution: Execution) -> Work:
    work = Work(work_folder(out), setup)
    if work.restarted:
        execution.say(f"{work.folder} was of other samples or options: beginning again")
    elif len(work):
        execution.say(f"going on with what {work.folder} has")
    return work


def _choose(quantiser: Quantiser, options: Int8Options) -> tuple[Int8Report, list[LayerKey]]:
    """The layers to quantise, and the report as far as it is known before the bundle is written."""
    every = list(quantiser.layers)
    if not every:
        raise RisError(f"{', '.join(quantiser.graphs)}: there is nothing to quantise")
    calibrator, scores = _calibrate(quantiser, options)
    chosen, score = every, scores[calibrator]
    holds = score.drop(options.against) <= options.max_iou_drop
    graphs = quantiser.graph_costs(calibrator) if len(quantiser.graphs) > 1 else {}
    costs: list[LayerCost] = []
    if options.sensitivity or not holds:
        costs = quantiser.sensitivity(calibrator)
    if not holds:
        ranked = [(cost.stage, cost.node) for cost in costs]
        chosen, score = quantiser.search(ranked, calibrator, options.max_iou_drop)

    report = Int8Report(
        options=options,
        samples=quantiser.chain.samples.expressions,
        calibrator=calibrator,
        calibrators=scores,
        graphs=graphs,
        layers=tuple(costs),
        quantised={stage: sum(key[0] == stage for key in chosen) for stage in quantiser.graphs},
        kept=_kept(quantiser, set(chosen), costs, options.max_iou_drop),
        score=score,
        mask_iou=0.0,  # not known yet
    )
    return report, chosen


def _calibrate(
    quantiser: Quantiser, options: Int8Options
) -> tuple[Calibrator, dict[Calibrator, Score]]:
    """The calibrator to use, and the scores of those tried."""
    if options.calibrator == "auto":
        return quantiser.best_calibrator()
    calibrator = options.calibrator
    every = list(quantiser.layers)
    return calibrator, {calibrator: quantiser.score(every, calibrator, f"All layers, {calibrator}")}


def _kept(
    quantiser: Quantiser, chosen: set[LayerKey], costs: list[LayerCost], limit: float
) -> dict[str, dict[str, str]]:
    """Why each layer that was not chosen stays FP32, by stage and node."""
    by_key = {(cost.stage, cost.node): cost for cost in costs}
    kept: dict[str, dict[str, str]] = {stage: {} for stage in quantiser.graphs}
    for stage, node in quantiser.layers:
        if (stage, node) not in chosen:
            cost = by_key[stage, node]
            kept[stage][node] = (
                f"{cost.name}: INT8 here alone costs {cost.drop:.4f} IoU; with it the drop is above"
                f" {limit:g}"
            )
    return kept
