"""What `ris-doctor` finds out: this machine, the engines that run on it, and whether a bundle is
whole.

`examine` returns a report of plain dataclasses; `as_dict` makes it data without the home folder,
the user's and the machine's name, so that it may be pasted in an issue. Its keys are the fields
below.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.engines import TABLE, EngineSpec, create, select
from ris.engines.errors import RisError
from ris.engines.probe import Probe, probe_apart
from ris.runtime import system
from ris.runtime.bundle import STAGES, Bundle, open_bundle
from ris.runtime.loading import open_model
from ris.runtime.onnx_weights import count_weights
from ris.runtime.parity import ParityReport, check_model, load_golden
from ris.runtime.system import Cpu, Gpus, Memory


@dataclass(frozen=True)
class Problem:
    """Something for the user to fix, and the way out."""

    what: str
    way_out: str


@dataclass(frozen=True)
class EngineHealth:
    """A row of the engine table. installed: version by distribution; missing: why it cannot be
    tried, or None; probes: what came of a one-node graph, by device.
    """

    name: str
    installed: dict[str, str]
    precisions: tuple[str, ...]
    missing: str | None
    probes: tuple[Probe, ...]

    @property
    def works(self) -> bool:
        return any(p.problem is None for p in self.probes)


@dataclass(frozen=True)
class GraphHealth:
    """One graph. asked: the precision in the manifest; islands: number of nodes by the reason why
    they stay FP32, or the whole graph under "*"; weights: number by type, read from the file; runs:
    engine, device and providers that opened it here, or None; problem: why it could not be opened.
    """

    asked: str
    islands: dict[str, int]
    parameters: int
    weights: dict[str, int]
    runs: str | None
    problem: str | None


@dataclass(frozen=True)
class Parity:
    """Against the reference: relative error of the mask logits end to end, the worst stage with its
    relative error, and the masks' IoU; failures: rows out of tolerance.
    """

    end_to_end: float | None
    worst_stage: str | None
    worst: float | None
    mask_iou: float
    failures: tuple[str, ...]


@dataclass(frozen=True)
class BundleHealth:
    """A bundle. whole: every file is there with the hash of the export. recorded: parity at the
    export; checked: now, with `check`. Everything but path and whole is empty where the manifest
    cannot be read.
    """

    path: str
    whole: bool
    format_version: int | None
    writer: dict[str, str]
    source: dict[str, Any]
    preset: str | None
    query: str | None
    no_target_head: bool | None
    precision: str | None
    graphs: dict[str, GraphHealth]
    recorded: Parity | None
    checked: Parity | None


@dataclass(frozen=True)
class DoctorReport:
    """Everything. packages: version by distribution; export_packages: those that only ris-export
    needs; notes: worth knowing, nothing to fix; verdict: the last line. `healthy` where there are
    no problems.
    """

    packages: dict[str, str]
    export_packages: dict[str, str]
    system: dict[str, str]
    cpu: Cpu
    memory: Memory
    gpus: Gpus
    engines: tuple[EngineHealth, ...]
    bundle: BundleHealth | None
    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    healthy: bool
    verdict: str


def examine(bundle: str | Path | None = None, *, check: bool = False) -> DoctorReport:
    """Looks at everything. bundle: which one, or None for none; check: run its golden parity too
    (`ris-parity`).
    """
    problems: list[Problem] = []
    notes: list[str] = []
    cpu, memory, gpus = system.cpu(), system.memory(), system.gpus()
    engines = tuple(_engine(row.name) for row in TABLE)
    _judge_engines(engines, gpus, problems, notes)
    if cpu.quota is not None and cpu.quota < cpu.usable:
        cores = max(1, int(cpu.quota))
        notes.append(
            f"the container may spend {cpu.quota:g} of {cpu.usable} cores; --threads {cores} may be"
            " faster"
        )
    health = None
    if bundle is not None:
        health = _bundle(Path(bundle), any(e.works for e in engines), check, problems, notes)
    return DoctorReport(
        packages=system.versions((*system.RUNTIME_PACKAGES, *system.ENGINE_PACKAGES)),
        export_packages=system.versions(system.EXPORT_PACKAGES),
        system=system.operating_system(),
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        engines=engines,
        bundle=health,
        problems=tuple(problems),
        notes=tuple(notes),
        healthy=not problems,
        verdict=_verdict(engines, health, problems),
    )


def as_dict(report: DoctorReport) -> dict[str, Any]:
    """The report as plain data, with nothing in it that says whose machine this is."""
    data: dict[str, Any] = json.loads(private(json.dumps(dataclasses.asdict(report))))
    return data


def private(text: str) -> str:
    """Text (or JSON) with ~ for the home folder, and without the user's and the machine's name.

    A user name counts where it is a folder's name, a machine name where it is a word.
    """
    home = str(Path.home())
    if len(home) > 1:
        text = re.sub(re.escape(home) + r"(?![\w.-])", "~", text)
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = ""
    if user:
        text = re.sub(rf"(?<=/){re.escape(user)}(?=[/\s\"']|$)", "<user>", text)
    host = platform.node()
    if len(host) > 2 and host != "localhost":
        text = re.sub(rf"(?<![\w.-]){re.escape(host)}(?![\w-])", "<host>", text)
    return text


def _engine(name: str) -> EngineHealth:
    row = _row(name)
    missing = row.missing()
    probes = () if missing else tuple(probe_apart(name, device) for device in row.devices)
    return EngineHealth(name, row.installed(), row.precisions, missing, probes)


def _row(name: str) -> EngineSpec:
    """The row of the engine table, whether the engine is installed or not."""
    return next(row for row in TABLE if row.name == name)


def _judge_engines(
    engines: tuple[EngineHealth, ...], gpus: Gpus, problems: list[Problem], notes: list[str]
) -> None:
    for engine in engines:
        if conflict := _row(engine.name).conflict():
            what, _, way_out = conflict.partition("; ")
            problems.append(Problem(what, way_out))
        elif engine.missing is None and not engine.works and _row(engine.name).unusable():
            notes.append(
                f"{engine.name} is installed, but nothing here runs it: {engine.probes[0].problem}"
            )
        elif engine.missing is None and not engine.works:
            reasons = "; ".join(f"{p.device}: {p.problem}" for p in engine.probes)
            problems.append(
                Problem(
                    f"{engine.name} is installed but runs on no device ({reasons})",
                    "install the package again",
                )
            )
    if all(engine.missing for engine in engines):
        problems.append(
            Problem("no engine is installed", "; ".join(f"{e.name}: {e.missing}" for e in engines))
        )
    gpu_runs = any(p.device != "cpu" and p.problem is None for e in engines for p in e.probes)
    if gpus.found and not gpu_runs:
        notes.append(
            f"there is a GPU ({gpus.found[0].name}), but no engine that runs on it; everything uses"
            " the CPU"
        )


def _bundle(
    path: Path, can_run: bool, check: bool, problems: list[Problem], notes: list[str]
) -> BundleHealth:
    whole = True
    try:
        bundle = open_bundle(path)
    except RisError as error:
        whole = False
        what, _, way_out = str(error).rpartition(". " if ". Export" in str(error) else "; ")
        problems.append(Problem(what or str(error), way_out or "make one with ris-export"))
        try:
            bundle = open_bundle(path, verify=False)
        except RisError:
            return BundleHealth(
                str(path), False, None, {}, {}, None, None, None, None, {}, None, None
            )
    manifest = bundle.manifest
    graphs = {}
    for stage in STAGES:
        graphs[stage] = _graph(bundle, stage, can_run and whole)
        if problem := graphs[stage].problem:
            problems.append(Problem(problem, "export the bundle again, or ask for another engine"))
    if not manifest.source.trained:
        notes.append("the bundle has made-up weights: its masks mean nothing")
    if any("fp16" in g.weights and g.runs and " on cpu " in g.runs for g in graphs.values()):
        notes.append(
            "a CPU without FP16 computes fp16 graphs in fp32, or in bfloat16 where that will do"
        )
    recorded = _parity(ParityReport(manifest.parity, manifest.mask_iou, 0.0, ()))
    checked = None
    if check and can_run and whole and not any(g.problem for g in graphs.values()):
        try:
            with open_model(bundle) as model:
                checked = _parity(check_model(model, load_golden(bundle)))
        except RisError as error:
            problems.append(
                Problem(f"the self-check could not run: {error}", "export the bundle again")
            )
        if checked and checked.failures:
            what = f"the bundle is out of tolerance here: {'; '.join(checked.failures)}"
            problems.append(
                Problem(what, "try another engine, then export it again; report it with this text")
            )
    return BundleHealth(
        path=str(path),
        whole=whole,
        format_version=manifest.format_version,
        writer=manifest.writer,
        source=dataclasses.asdict(manifest.source),
        preset=_text(manifest.model.get("preset")),
        query=_text(manifest.model.get("query")),
        no_target_head=manifest.no_target,
        precision=manifest.precision,
        graphs=graphs,
        recorded=recorded,
        checked=checked,
    )


def _graph(bundle: Bundle, stage: str, run: bool) -> GraphHealth:
    """Opens one graph and closes it again, so that at most one is in memory."""
    entry = bundle.manifest.graphs[stage]
    islands: dict[str, int] = {}
    for node, reason in entry.fp32_islands.items():
        key = f"*: {reason}" if node == "*" else reason
        islands[key] = islands.get(key, 0) + 1
    weights: dict[str, int] = {}
    runs = problem = None
    try:
        weights = count_weights(bundle.file(entry.file))
        if run:
            graph, engine = bundle.graph(stage), create(select().name)
            with engine.open(graph, engine.compile(graph)) as session:
                info = session.info
                runs = f"{info.engine} {info.version} on {info.device} ({info.where})"
    except RisError as error:
        problem = str(error) if run else None
    return GraphHealth(entry.shown, islands, entry.parameters, weights, runs, problem)


def _parity(report: ParityReport) -> Parity:
    stages = {
        name: row.relative for name, row in report.rows.items() if not name.startswith("end_to_end")
    }
    worst = max(stages, key=lambda name: stages[name], default=None)
    end = report.rows.get("end_to_end.mask_logits")
    return Parity(
        end.relative if end else None,
        worst,
        stages[worst] if worst else None,
        report.mask_iou,
        report.failures,
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _verdict(
    engines: tuple[EngineHealth, ...], bundle: BundleHealth | None, problems: list[Problem]
) -> str:
    if problems:
        return f"{len(problems)} problem{'s' * (len(problems) > 1)} to fix, listed above"
    running = [
        f"{e.name} {p.version} on {p.device}"
        for e in engines
        for p in e.probes
        if p.problem is None
    ]
    text = f"Ready: {', '.join(running)}"
    if bundle is None:
        return f"{text}; no bundle was looked at (give one, or make ./ris-bundle with ris-export)"
    checked = ", parity holds here" if bundle.checked else ""
    return f"{text}; {bundle.path} is whole ({bundle.precision}){checked}"
