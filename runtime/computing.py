"""What a bundle's graphs compute in: what the user asks for, and what `auto` takes where nobody
asks.

On an engine that computes in bfloat16 on this machine, `auto` takes it where it pays and where the
bundle's own masks bear it. Both are measured at the first use, by a product in either precision and
by the parity of the whole bundle (`ris.runtime.parity`), and kept beside the compiled graphs. So
what `auto` takes has passed what `ris-parity` asks for, on this very machine. Else it takes FP32.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ris import __version__
from ris.engines import (
    Engine,
    EngineOptions,
    EngineSpec,
    Progress,
    Session,
    cache,
    create,
    silent,
)
from ris.engines.errors import BundleError, EngineError, RisError
from ris.engines.processor import cpu_features
from ris.engines.recipe import Recipe
from ris.runtime.bundle import Bundle
from ris.runtime.choice import AUTO, CHOICES, Choice
from ris.runtime.model import Model
from ris.runtime.parity import check_model, load_golden
from ris.runtime.tolerance import tolerance_of

Compute = str | Mapping[str, str] | None
"""A precision for the whole model, precisions by graph, or None where nobody asks for one.

By graph, "*" stands for the whole model, and a graph's own name goes before it. For the whole model
it may be `AUTO`, which is what None means unless `VARIABLE` says otherwise.
"""

WHOLE = "*"
"""The whole model in a `Compute` by graph."""

VARIABLE = "RIS_COMPUTE"
"""The environment variable with what is asked for where a `Compute` names nothing for the whole."""

WORTH = 1.5
"""From so many times the speed of FP32 products on `auto` takes bfloat16.

Between its products a graph is not faster. CPUs that were tried have 0.5, or 2 and more
(docs/measurements/performance.md).
"""

_NARROW = "bf16"
_RECORD = "auto-compute"  # its name in the cache, as of a graph
_FORMAT = 3  # of what is in it, and of what was accepted
_FEATURES = ("amx", "avx512", "avx_vnni")


class NotMeasuredError(EngineError):
    """What `AUTO` takes was not measured here yet, and nothing may be compiled for it."""


@dataclass(frozen=True)
class Settled:
    """What each graph is to compute in, with an engine that does."""

    choice: Choice
    """What was taken."""

    engines: Mapping[str, Engine]
    """The engine of each graph."""


def whole_of(compute: Compute) -> str:
    """What is asked for the whole model, one of `CHOICES`.

    Raises EngineError for anything else, also where the environment says it.
    """
    asked = compute.get(WHOLE) if isinstance(compute, Mapping) else compute
    source = ""
    if asked is None:
        asked, source = os.environ.get(VARIABLE) or AUTO, f"{VARIABLE}: "
    if asked not in CHOICES:
        raise EngineError(
            f"{source}there is no precision {asked!r}; known are {', '.join(CHOICES)}"
        )
    return asked


def computes_by_stage(compute: Compute, bundle: Bundle) -> dict[str, str | None]:
    """What each graph is asked to compute in, None for what is left open.

    "bf16" and "fp16" ask the graphs that are worth their error, which the manifest names
    (`GraphEntry.bfloat16`). "fp32" asks all graphs, a mapping those that it names, and "auto" none.

    Raises EngineError where it names a graph that the bundle does not have, and where a narrow
    precision for the whole model would change none.
    """
    stages, whole = bundle.manifest.graphs, whole_of(compute)
    single = dict(compute) if isinstance(compute, Mapping) else {}
    single.pop(WHOLE, None)
    if unknown := sorted(set(single) - set(stages)):
        raise EngineError(f"there is no graph {', '.join(unknown)}; there are {', '.join(stages)}")
    narrow = whole in ("bf16", "fp16")
    if narrow and not any(entry.bfloat16 for entry in stages.values()):
        raise EngineError(
            f"none of the graphs is said to be precise enough in {whole}; name those that are to"
            f" compute in it, of {', '.join(stages)}"
        )
    left_open = None if narrow or whole == AUTO else whole
    return {
        name: single.get(name, whole if narrow and entry.bfloat16 else left_open)
        for name, entry in stages.items()
    }


def settle(
    bundle: Bundle,
    row: EngineSpec,
    options: EngineOptions,
    compute: Compute = None,
    progress: Progress = silent,
    *,
    anew: bool = False,
) -> Settled:
    """Decides what each graph computes in.

    Args:
        bundle: The bundle.
        row: The engine's row in the table.
        options: How it is to run; its `compute` does not count.
        compute: What is asked for.
        progress: Called where something is measured or compiled for that.
        anew: Measure also what was measured before.

    Raises:
        EngineError: As in `computes_by_stage` and `create`.
        NotMeasuredError: Where `options.build` is False and nothing was measured yet.
    """
    options = replace(options, compute=None)
    if "compute" not in row.options:
        by_stage, choice = _without_choice(bundle, row, options, compute)
    else:
        by_stage = computes_by_stage(compute, bundle)
        whole = whole_of(compute)
        if whole == AUTO:
            choice = _choice(bundle, row, options, by_stage, progress, anew)
        else:
            choice = Choice(whole, whole, "it was asked for")
        if choice.asked == AUTO and choice.taken:
            taken = {
                stage: choice.taken if entry.bfloat16 else "fp32"
                for stage, entry in bundle.manifest.graphs.items()
            }
            by_stage = {stage: asked or taken[stage] for stage, asked in by_stage.items()}
    return Settled(replace(choice, by_stage=by_stage), engines_by_stage(row, options, by_stage))


def engines_by_stage(
    row: EngineSpec, options: EngineOptions, by_stage: Mapping[str, str | None]
) -> dict[str, Engine]:
    """The engine of each graph, one for each precision. Raises EngineError as `create` does."""
    made = {one: create(row.name, replace(options, compute=one)) for one in {*by_stage.values()}}
    return {stage: made[one] for stage, one in by_stage.items()}


def as_written(bundle: Bundle, row: EngineSpec, device: str) -> Compute:
    """What runs a bundle in the precision of its graphs; None where the engine leaves no choice.

    A CPU runs FP16 graphs in FP32, and bfloat16 ones too where it does not multiply bfloat16.

    Raises EngineError as `create` does.
    """
    if "compute" not in row.options:
        return None
    engine = create(row.name, EngineOptions(device=device))
    if engine.options.device != "cpu":
        return None
    if _NARROW not in engine.computes():
        return "fp32"
    graphs = bundle.manifest.graphs.items()
    return {WHOLE: "fp32", **{s: _NARROW for s, entry in graphs if entry.precision == _NARROW}}


def open_graphs(
    bundle: Bundle,
    settled: Settled,
    max_expressions: int,
    overlap: bool | None = None,
    progress: Progress = silent,
) -> Model:
    """The model with each graph opened; where one fails, those before it are closed.

    Args:
        bundle: The bundle.
        settled: What opens its graphs.
        max_expressions: The most expressions that go through the graphs at once.
        overlap: Run graphs that do not depend on each other side by side. None: on GPUs alone.
        progress: Called while an engine compiles.

    Raises:
        EngineError: Where an engine cannot compile or open a graph.
    """
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for stage in bundle.stages:
            sessions[stage] = settled.engines[stage].load(bundle.graph(stage), progress)
            opened.callback(sessions[stage].close)
        model = Model(bundle, sessions, max_expressions, overlap, settled.choice)
        opened.pop_all()
    return model


def _without_choice(
    bundle: Bundle, row: EngineSpec, options: EngineOptions, compute: Compute
) -> tuple[dict[str, str | None], Choice]:
    """For an engine that has no choice: FP32 is what it computes in on a CPU, asked for or not.

    So it does where graphs are FP16 or bfloat16. What else is asked of it is for the engine to
    refuse.
    """
    asked: dict[str, str | None] = dict.fromkeys(bundle.stages)
    on_cpu = (row.devices[0] if options.device == AUTO else options.device) == "cpu"
    if on_cpu and compute in ("fp32", {WHOLE: "fp32"}):
        return asked, Choice("fp32", "fp32", "it was asked for")
    if compute not in (None, AUTO):
        asked = computes_by_stage(compute, bundle)
    return asked, Choice(AUTO, "fp32" if on_cpu else None, f"{row.name} leaves no choice")


def _choice(
    bundle: Bundle,
    row: EngineSpec,
    options: EngineOptions,
    by_stage: Mapping[str, str | None],
    progress: Progress,
    anew: bool,
) -> Choice:
    """What `AUTO` takes for the whole model.

    Args:
        bundle: The bundle.
        row: The engine's row in the table.
        options: How it is to run.
        by_stage: What is asked of each graph.
        progress: Called where something is measured or compiled for that.
        anew: As in `settle`.
    """
    engine = create(row.name, options)
    if engine.options.device != "cpu":
        return Choice(AUTO, None, "there is a choice on CPUs alone")
    narrow = [s for s, entry in bundle.manifest.graphs.items() if entry.bfloat16]
    if not narrow:
        return Choice(AUTO, "fp32", "no graph of the bundle is precise enough in bfloat16")
    if all(by_stage[stage] for stage in narrow):
        return Choice(AUTO, "fp32", "all graphs that may be bfloat16 were named")
    if _NARROW not in engine.computes():
        return Choice(AUTO, "fp32", "this CPU does not multiply bfloat16")
    try:
        found = _measured(bundle, row, engine, progress, anew)
    except RisError as error:
        if not options.build:
            raise
        return _judged(fault=str(error))
    return _judged(**found)


def _judged(
    gain: float | None = None,
    mask_iou: float | None = None,
    accepted: float | None = None,
    failures: Sequence[str] = (),
    flipped: float = 0.0,
    fault: str | None = None,
) -> Choice:
    """The choice that follows from what was measured, the fields of a record.

    Args:
        gain: As `Choice.gain`.
        mask_iou: As `Choice.mask_iou`.
        accepted: As `Choice.accepted`.
        failures: What is out of tolerance, as `ParityReport.failures`.
        flipped: The largest share of a mask's pixels that differ, as `ParityReport.flipped`.
        fault: As `Choice.fault`.
    """
    if fault is not None:
        why = f"what bfloat16 costs here could not be measured: {fault}"
        return Choice(AUTO, "fp32", why, gain, fault=fault)
    speed = f"bfloat16 products are {gain:.1f} times as fast as FP32 ones here"
    if mask_iou is None:
        return Choice(AUTO, "fp32", speed, gain)
    masks = f"an IoU of {mask_iou:.4f} with the reference's (accepted from {accepted:.4g})"
    if failures:
        why = f"the masks in bfloat16 have {masks} and the bundle is out of tolerance: "
        return Choice(AUTO, "fp32", why + failures[0], gain, mask_iou, accepted)
    why = f"{speed} and the masks keep {masks}"
    if accepted is not None and mask_iou < accepted:
        why += f", or from less where as few pixels differ, {flipped:.3%} here"
    return Choice(AUTO, _NARROW, why, gain, mask_iou, accepted)


def _measured(
    bundle: Bundle, row: EngineSpec, engine: Engine, progress: Progress, anew: bool
) -> Any:
    """The arguments of `_judged`: the record that is kept, or measured now."""
    version, device = engine.here
    # a hypervisor may call all of its CPUs by one name
    features = sorted(name for name in cpu_features() if name.startswith(_FEATURES))
    recipe = Recipe(
        stage=_RECORD,
        onnx={"manifest": hashlib.sha256(bundle.manifest.to_json().encode()).hexdigest()},
        engine=row.name,
        version=version,
        device=" ".join([device, *features]),
        profiles={},
        options={
            "ris-runtime": __version__,
            "format": _FORMAT,
            "activations": "int8" if engine.options.int8_activations else "kept",
        },
    )

    def measure(file: Path) -> dict[str, Any]:
        found = _measure(bundle, row, engine, progress)
        file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        return found

    home = bundle.graph(bundle.stages[0]).cache
    try:
        return cache.obtain(recipe, home, measure, engine.options, progress, anew=anew).report
    except EngineError as error:
        if engine.options.build:
            raise
        raise NotMeasuredError(
            f"what {bundle.path} is to compute in was not measured here yet; run ris-compile, or"
            f" say it (--compute fp32 or {VARIABLE}=fp32): {error}"
        ) from None


def _measure(bundle: Bundle, row: EngineSpec, engine: Engine, progress: Progress) -> dict[str, Any]:
    """How fast bfloat16 is here, and where that pays how far the bundle's own answers move.

    A fault of the bundle's reference will come again, so it is found like anything else.
    """
    gain = engine.gain(_NARROW)
    if gain < WORTH:
        return {"gain": gain}
    try:
        golden = load_golden(bundle)
        narrow = settle(bundle, row, engine.options, _NARROW)
        most = engine.options.max_expressions
        with open_graphs(bundle, narrow, most, progress=progress) as model:
            progress(_RECORD, "checking the masks in bfloat16", None)
            report, tolerance = check_model(model, golden), tolerance_of(model)
    except BundleError as error:
        return {"gain": gain, "fault": str(error)}
    return {
        "gain": gain,
        "mask_iou": report.mask_iou,
        "accepted": tolerance.mask_iou,
        "failures": list(report.failures),
        "flipped": report.flipped,
    }
