"""`ris-calibrate int8` as a function: an FP32 bundle in, an INT8 bundle and a report out."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ris import __version__
from ris.calibration.int8.chain import Chain, Score, Track
from ris.calibration.int8.histogram import Calibrator
from ris.calibration.int8.search import LayerCost, LayerKey, Quantiser
from ris.calibration.int8.statistics import measure
from ris.calibration.int8.work import Work
from ris.calibration.samples import SampleSet
from ris.engines.errors import BundleError, RisError
from ris.runtime import Bundle
from ris.runtime.bundle import MANIFEST, Int8, hash_files
from ris.runtime.bundle_folder import building, check_target, recover
from ris.runtime.model import open_model
from ris.runtime.parity import check_model, load_golden

IMAGE_ENCODERS = ("sam_image_encoder", "clip_image_encoder")
WRITER = "ris-calibrate int8"
"""The manifest's `writer` names this in a bundle with INT8 graphs."""


@dataclass(frozen=True)
class Int8Options:
    """What to do. graphs: the stages to quantise; calibrator: "auto" for the one that loses least;
    percentile: of that calibrator; alpha: of the smoothing, None for none; attention: products of
    two activations too; max_iou_drop: what may be lost, measured against "fp32" masks or the
    "truth"; sensitivity: measure every layer alone even where the target holds without leaving any
    out.
    """

    graphs: tuple[str, ...] = IMAGE_ENCODERS
    calibrator: Calibrator | Literal["auto"] = "auto"
    percentile: float = 99.99
    alpha: float | None = 0.5
    attention: bool = False
    max_iou_drop: float = 0.005
    against: Literal["fp32", "truth"] = "fp32"
    sensitivity: bool = True


@dataclass(frozen=True)
class Int8Report:
    """What was found: scores of the calibrators tried, of whole graphs and of single layers (the
    worst first), each alone in INT8 (empty where not measured); what was left in FP32, by stage and
    name; and the final score.
    """

    options: Int8Options
    samples: int
    calibrator: Calibrator
    calibrators: dict[Calibrator, Score]
    graphs: dict[str, Score]
    layers: tuple[LayerCost, ...]
    quantised: dict[str, int]
    kept: dict[str, dict[str, str]]
    score: Score
    mask_iou: float

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"


def quantise_bundle(
    bundle: Bundle,
    samples: SampleSet,
    out: Path,
    options: Int8Options,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    track: Track = lambda items, total, title: iter(items),
    say: Any = lambda line: None,
) -> Int8Report:
    """Writes the INT8 bundle `out`; results so far are kept beside it, in `work_folder(out)`, until
    it is whole.

    Raises BundleError where `bundle` is not FP32 or `out` is in the way, RisError without samples
    and where the target cannot be held.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp32":
        raise BundleError(
            f"{bundle.path} is {manifest.precision}; INT8 is made from an FP32 bundle"
        )
    if not len(samples):
        raise RisError("there are no calibration samples")
    recover(out)
    check_target(out, overwrite)  # before the work, and again when it is done
    asked = asdict(options)
    for name in (
        "graphs",
        "max_iou_drop",
        "against",
        "calibrator",
        "sensitivity",
    ):  # results serve any of these
        del asked[name]
    setup = {
        "options": asked,
        "samples": samples.fingerprint,
        "graphs": {stage: entry.sha256 for stage, entry in manifest.graphs.items()},
        "version": __version__,
    }
    work = Work(work_folder(out), setup)
    if work.restarted:
        say(f"{work.folder} was of other samples or options: beginning again")
    elif len(work):
        say(f"going on with what {work.folder} has")
    chain = Chain(bundle, samples, work.folder / "recorded", threads)
    chain.record(track)
    graphs = {
        stage: measure(
            chain,
            stage,
            work,
            alpha=options.alpha,
            attention=options.attention,
            threads=threads,
            track=track,
        )
        for stage in options.graphs
    }
    quantiser = Quantiser(
        chain, graphs, work, track, against=options.against, percentile=options.percentile
    )
    report, chosen = _choose(quantiser, options, samples.expressions)
    finished = _write(bundle, quantiser, chosen, report, out, overwrite)
    work.remove()
    return finished


def work_folder(out: Path) -> Path:
    """Where a calibration keeps what it has found, until it ends."""
    return out.with_name(f".{out.name}.calibration")


def _choose(
    quantiser: Quantiser, options: Int8Options, expressions: int
) -> tuple[Int8Report, list[LayerKey]]:
    scores: dict[Calibrator, Score] = {}
    every = list(quantiser.layers)
    if not every:
        raise RisError(f"{', '.join(options.graphs)}: there is nothing to quantise")
    if options.calibrator == "auto":
        calibrator, scores = quantiser.best_calibrator()
    else:
        calibrator = options.calibrator
        scores[calibrator] = quantiser.score(every, calibrator, f"All layers, {calibrator}")
    holds = scores[calibrator].drop(options.against) <= options.max_iou_drop
    graphs = quantiser.graph_costs(calibrator) if len(quantiser.graphs) > 1 else {}
    costs: list[LayerCost] = []
    chosen, score = every, scores[calibrator]
    if options.sensitivity or not holds:
        costs = quantiser.sensitivity(calibrator)
    if not holds:
        ranked = [(cost.stage, cost.node) for cost in costs]
        chosen, score = quantiser.search(ranked, calibrator, options.max_iou_drop)
    left = {(cost.stage, cost.node): cost for cost in costs}
    kept: dict[str, dict[str, str]] = {stage: {} for stage in quantiser.graphs}
    for key in [key for key in every if key not in set(chosen)]:
        kept[key[0]][key[1]] = (
            f"{left[key].name}: INT8 here alone costs {left[key].drop:.4f} IoU; with it the drop is"
            f" above {options.max_iou_drop:g}"
        )
    quantised = {stage: sum(key[0] == stage for key in chosen) for stage in quantiser.graphs}
    report = Int8Report(
        options,
        expressions,
        calibrator,
        scores,
        graphs,
        tuple(costs),
        quantised,
        kept,
        score,
        mask_iou=0.0,
    )
    return report, chosen


def _write(
    bundle: Bundle,
    quantiser: Quantiser,
    chosen: Sequence[LayerKey],
    report: Int8Report,
    out: Path,
    overwrite: bool,
) -> Int8Report:
    manifest, options = bundle.manifest, report.options
    with building(out, overwrite) as folder:
        (folder / "graphs").mkdir()
        for name in manifest.files:
            shutil.copyfile(bundle.file(name), folder / name)
        graphs = dict(manifest.graphs)
        for stage, entry in graphs.items():
            if not report.quantised.get(stage):
                for name in entry.sha256:
                    shutil.copyfile(bundle.file(name), folder / name)
                graphs[stage] = dataclasses.replace(
                    entry, fp32_islands={"*": _why_not(stage, report)}
                )
                continue
            quantiser.write(stage, list(chosen), report.calibrator, folder / entry.file)
            int8 = Int8(
                layers=report.quantised[stage],
                calibrator=report.calibrator,
                percentile=options.percentile if report.calibrator == "percentile" else None,
                alpha=options.alpha,
                samples=report.samples,
            )
            graphs[stage] = dataclasses.replace(
                entry,
                sha256=hash_files(folder, list(entry.sha256)),
                fp32_islands=report.kept[stage],
                int8=int8,
            )
        changed = dataclasses.replace(
            manifest,
            precision="int8",
            graphs=graphs,
            writer={**manifest.writer, WRITER: __version__},
        )
        with open_model(Bundle(folder, changed), engine="onnxruntime") as model:
            checked = check_model(model, load_golden(bundle))
        if not all(np.isfinite(row.relative) for row in checked.rows.values()):
            raise RisError(
                "the INT8 graphs give values that are not finite on the bundle's own golden image"
            )
        changed = dataclasses.replace(changed, parity=checked.rows, mask_iou=checked.mask_iou)
        (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    return dataclasses.replace(report, mask_iou=checked.mask_iou)


def _why_not(stage: str, report: Int8Report) -> str:
    if stage in report.options.graphs:
        return (
            "every layer of it in INT8 costs more than --max-iou-drop"
            f" {report.options.max_iou_drop:g} allows"
        )
    return "was not asked for (--graph)"
