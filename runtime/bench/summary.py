"""From the answers of the processes to a report."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ris.engines.errors import RisError
from ris.runtime import system
from ris.runtime.bench.plan import Alternative, Plan, Workload
from ris.runtime.bench.report import FORMAT_VERSION, BenchReport, Inputs, Measured, Spread
from ris.runtime.bundle import Bundle

Answer = dict[str, Any]
"""What a method of a `worker` class returned, and the process's peak memory."""


@dataclass
class Measurements:
    """What was measured so far; most of it by the name of an alternative."""

    turns: dict[str, list[Answer]] = field(default_factory=dict)
    """The answers of the measured rounds."""

    starts: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """Seconds of each cold start, by `cold_start`, `imports` and `load`."""

    about: dict[str, Answer] = field(default_factory=dict)
    """What each process really runs."""

    failed: dict[str, str] = field(default_factory=dict)
    """Why an alternative, or "photo", could not be measured to the end."""

    compile: dict[str, float] = field(default_factory=dict)
    """Seconds of a load that compiled."""

    memory: dict[str, int] = field(default_factory=dict)
    """Peak memory in bytes, without batches."""

    batch_memory: dict[str, int] = field(default_factory=dict)
    """Peak memory in bytes after the batches."""

    batches: dict[str, dict[str, dict[int, list[float]]]] = field(default_factory=dict)
    """Seconds each of "images" and "expressions", by how many went through together."""

    rates: list[dict[str, dict[str, list[float]]]] = field(default_factory=list)
    """Operations a second of each round's matrix products, by precision and library."""

    photo: dict[str, list[float]] = field(default_factory=dict)
    """Seconds from a photo to what the graphs take, by "exact" and "draft"."""


def describe_machine() -> dict[str, Any]:
    """`BenchReport.machine`, before anything is measured."""
    cpu, memory = system.cpu(), system.memory()
    return {
        "cpu": cpu.model,
        "cores": cpu.usable,
        "features": list(cpu.features),
        "memory": memory.total,
        "versions": system.versions((*system.RUNTIME_PACKAGES, *system.ENGINE_PACKAGES, "torch")),
        "load_before": _load_average(),
    }


def make_report(
    bundle: Bundle,
    alternatives: Sequence[Alternative],
    workload: Workload,
    plan: Plan,
    machine: dict[str, Any],
    found: Measurements,
) -> BenchReport:
    """The report of all that was measured.

    Args:
        bundle: The one that says what the model is.
        alternatives: The ways of running it, in the report's order.
        workload: What they were asked.
        plan: How much was to be measured.
        machine: What `describe_machine` said before.
        found: What was measured.

    Raises:
        RisError: Where not a single alternative was measured.
    """
    measured = [_measured(a, found) for a in alternatives if found.turns[a.name]]
    if not measured:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.failed.items())
        raise RisError(f"nothing could be measured: {reasons}")
    return BenchReport(
        format_version=FORMAT_VERSION,
        inputs=_inputs(workload, bundle),
        machine=machine | {"load_after": _load_average()},
        rounds=plan.rounds,
        anew=plan.anew,
        per_expression=bundle.wiring.question_stages,
        once_an_image=bundle.wiring.image_stages,
        rates=_all_rates(found),
        alternatives=tuple(measured),
        failed=found.failed,
        photo={name: Spread.of(seconds) for name, seconds in found.photo.items()},
    )


def _inputs(workload: Workload, bundle: Bundle) -> Inputs:
    model = json.dumps(bundle.manifest.model, sort_keys=True)
    return Inputs(
        image=hashlib.sha256(np.ascontiguousarray(workload.rgb).tobytes()).hexdigest(),
        height=workload.rgb.shape[0],
        width=workload.rgb.shape[1],
        expressions=workload.expressions,
        categories=workload.categories,
        model=hashlib.sha256(model.encode()).hexdigest(),
        threads=workload.threads,
    )


def _all_rates(found: Measurements) -> dict[str, dict[str, Spread]]:
    """The matrix products of all rounds, by precision and library."""
    collected: dict[str, dict[str, list[float]]] = {}
    for turn in found.rates:
        for precision, libraries in turn.items():
            for library, values in libraries.items():
                collected.setdefault(precision, {}).setdefault(library, []).extend(values)
    return {
        precision: {library: Spread.of(values) for library, values in libraries.items()}
        for precision, libraries in collected.items()
    }


def _measured(alternative: Alternative, found: Measurements) -> Measured:
    name = alternative.name
    turns, about, starts = found.turns[name], found.about[name], found.starts[name]
    batches = found.batches.get(name, {"images": {}, "expressions": {}})
    names = turns[0]["stages"]
    return Measured(
        name=name,
        engine=about["engine"],
        bundle=alternative.bundle if alternative.kind == "bundle" else None,
        bundle_precision=about["bundle_precision"],
        precision=about["precision"],
        operations=about["operations"],
        first_mask=Spread.of([turn["first_mask"] for turn in turns]),
        next_expression=Spread.of([turn["next_expression"] for turn in turns]),
        host=_spread(turns, "host"),
        stages={stage: Spread.of([turn["stages"][stage] for turn in turns]) for stage in names},
        cold_start=_spread(starts, "cold_start"),
        imports=_spread(starts, "imports"),
        load=_spread(starts, "load"),
        images={size: Spread.of(values) for size, values in batches["images"].items()},
        expressions={size: Spread.of(values) for size, values in batches["expressions"].items()},
        compile=found.compile.get(name),
        peak_memory=found.memory.get(name),
        peak_memory_batches=found.batch_memory.get(name),
    )


def _spread(answers: Sequence[dict[str, Any]], key: str) -> Spread | None:
    """The spread of one figure; None where no answer has it."""
    values = [answer[key] for answer in answers if answer.get(key) is not None]
    return Spread.of(values) if values else None


def _load_average() -> float | None:
    """The load average of the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None
