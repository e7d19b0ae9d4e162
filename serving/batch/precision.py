"""What a batch computes in, the same in all workers: decided once, where the batch is started.

Left to themselves, workers on CPUs of several kinds would take several precisions, and the masks of
one batch would differ at their boundaries by who made them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ris.engines.devices import kind_of
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.bundle import Bundle
from ris.runtime.choice import AUTO
from ris.runtime.commands.console import CompileProgress
from ris.runtime.commands.running import Running
from ris.runtime.computing import WHOLE, whole_of
from ris.runtime.loading import select_for, settle_for
from ris.serving.batch.parts import Job

_KEPT, _BECAUSE, _GRAPHS = "compute", "compute_because", "compute_graphs"  # names in the plan


def decide(job: Job, bundle: Path, running: Running) -> str:
    """What the workers compute in where `running` says nothing for the whole model.

    It is what the batch was begun in. At its beginning it is what is asked for here, also by the
    environment; else what `AUTO` takes on this machine. The plan keeps it. A machine that cannot
    run the bundle takes FP32.

    Raises:
        EngineError: For a precision that there is not.
        RisError: For another one than that of the parts that are done.
    """
    asked, plan = whole_of(running.compute), job.planned() or {}
    graphs = _of_graphs(running)
    if _KEPT in plan and next(job.folder.glob("part-*.parquet"), None) is not None:
        begun = str(plan[_KEPT]), plan.get(_GRAPHS, {})
        now = begun[0] if asked == AUTO else asked, graphs
        if begun != now:
            raise RisError(
                f"{job.folder} has parts that were computed in {_words(*begun)}, and {_words(*now)}"
                " is asked for now, whose masks differ at their boundaries; ask as before, use"
                " another --out, or --restart to throw the batch away"
            )
    kept = plan.get(_KEPT)
    if asked != AUTO:
        taken, why = asked, "it was asked for"
    elif kept and plan.get(_GRAPHS, {}) == graphs:
        return str(kept)
    else:
        taken, why = _settled(bundle, running)
    job.note(**{_KEPT: taken, _BECAUSE: why, _GRAPHS: graphs})
    return taken


def _settled(bundle: Path, running: Running) -> tuple[str, str]:
    """What `AUTO` takes on this machine, and why."""
    try:
        with CompileProgress() as progress:
            opened = open_bundle(bundle, verify=False)
            settled, _ = settle_for(opened, progress=progress, **asdict(running))
        return settled.choice.taken or AUTO, settled.choice.why
    except RisError as error:  # which each worker that has it too will say
        return "fp32" if running.device in (AUTO, "cpu") else AUTO, str(error)


def _of_graphs(running: Running) -> dict[str, str]:
    """What single graphs are asked to compute in."""
    compute = running.compute
    asked = compute if isinstance(compute, Mapping) else {}
    return {graph: str(taken) for graph, taken in asked.items() if graph != WHOLE}


def _words(whole: str, graphs: Mapping[str, str]) -> str:
    """A precision as --compute has it."""
    return ", ".join([whole, *(f"{graph}={taken}" for graph, taken in sorted(graphs.items()))])


def of_worker(running: Running, gpus: float) -> Running:
    """How a worker runs. One that Ray gave GPUs sees these alone, numbered from 0."""
    return replace(running, device=kind_of(running.device)) if gpus else running


def with_compute(running: Mapping[str, Any], bundle: Bundle, compute: str) -> dict[str, Any]:
    """What `open_model` takes, with the batch's precision where the engine leaves the choice.

    Args:
        running: What it takes otherwise.
        bundle: The bundle.
        compute: As `decide` returns it.

    Raises:
        EngineError: Where the engine cannot run the bundle here.
    """
    row = select_for(bundle, running.get("engine", AUTO), running.get("device", AUTO))
    asked = running.get("compute")
    single = dict(asked) if isinstance(asked, Mapping) else {WHOLE: asked}
    if "compute" not in row.options or single.get(WHOLE) not in (None, AUTO):
        return dict(running)
    return {**running, "compute": single | {WHOLE: compute}}
