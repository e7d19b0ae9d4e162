"""What `ris-doctor` finds out: this machine, the engines that run on it, and a bundle's state.

`examine` returns the report as dataclasses. `as_dict` makes plain data of it, with the fields as
keys and without anything that names the user or the machine, so that it can be pasted in an issue.
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris.engines import TABLE, EngineSpec, SessionInfo
from ris.engines.errors import RisError
from ris.engines.probe import Probe, probe_apart
from ris.engines.trust import VARIABLE, user_key
from ris.engines.user_folders import home_folder
from ris.runtime import system
from ris.runtime.bundle import MANIFEST, Bundle, open_bundle
from ris.runtime.computing import Settled
from ris.runtime.from_json import read_json
from ris.runtime.loading import NOT_MEASURED, open_model, settle_as_measured, settle_for
from ris.runtime.onnx_weights import count_weights
from ris.runtime.parity import ParityReport, check_model, load_golden
from ris.runtime.system import Cpu, Gpus, Memory
from ris.runtime.tolerance import END_TO_END


@dataclass(frozen=True)
class Problem:
    """Something for the user to fix."""

    what: str
    """What is wrong."""

    way_out: str
    """What to do about it."""


@dataclass(frozen=True)
class EngineHealth:
    """A row of the engine table, and whether it runs here."""

    name: str
    """The engine's name in the table."""

    installed: dict[str, str]
    """The version of each of its distributions that is installed, by name."""

    precisions: tuple[str, ...]
    """The precisions of the graphs that it runs."""

    missing: str | None
    """Why it cannot be tried, None where it can."""

    probes: tuple[Probe, ...]
    """What a one-node graph showed, a probe for each device; empty where it cannot be tried."""

    @property
    def works(self) -> bool:
        """Whether it runs on one of its devices."""
        return any(p.problem is None for p in self.probes)


@dataclass(frozen=True)
class GraphHealth:
    """One graph of the bundle."""

    asked: str
    """Its precision in the manifest, for people."""

    islands: dict[str, int]
    """The number of nodes that stay FP32, by the reason; "*: " before it for a whole graph."""

    parameters: int
    """The number of its weights in the manifest."""

    operations: int | None
    """Those of one image and one expression; None where the bundle has not counted them."""

    weights: dict[str, int]
    """The number of its weights by type, read from the file."""

    runs: str | None
    """The engine, device and providers that opened it here; None where nothing did."""

    computes_in: str | None
    """What most of its products compute in here; None where nothing opened it or it is unknown."""

    problem: str | None
    """Why it could not be opened, None where it could or nobody tried."""


@dataclass(frozen=True)
class Parity:
    """How far a bundle is from its reference."""

    end_to_end: float | None
    """Relative error of the mask logits through all graphs; None where it was not measured."""

    worst_stage: str | None
    """The output of a graph or host step that is worst by itself; None where none was measured."""

    worst: float | None
    """Its relative error."""

    mask_iou: float
    """The smallest IoU of a mask with the reference's."""

    failures: tuple[str, ...]
    """A sentence for everything that is out of tolerance."""

    computes_in: tuple[str, ...] = ()
    """What the graphs computed in; empty where it is unknown."""


@dataclass(frozen=True)
class BundleHealth:
    """A bundle. Where its manifest cannot be read, everything after `whole` is empty."""

    path: str
    """Its folder."""

    whole: bool
    """Whether every file is there with the hash of the export."""

    format_version: int | None = None
    """The manifest's `format_version`."""

    writer: dict[str, str] = field(default_factory=dict)
    """The manifest's `writer`: versions by package."""

    source: dict[str, Any] = field(default_factory=dict)
    """The manifest's `source`: what the bundle was made from."""

    family: str | None = None
    """The manifest's `family`."""

    preset: str | None = None
    """The model's size, such as "vitb-vitl336"; None where its family has no such name."""

    query: str | None = None
    """What the model asks with, such as "cls" or "category"; None where its family has no such
    word."""

    no_target_head: bool | None = None
    """Whether the model can say that an expression names nothing."""

    precision: str | None = None
    """The manifest's `precision`."""

    graphs: dict[str, GraphHealth] = field(default_factory=dict)
    """The graphs by stage."""

    compute: dict[str, Any] | None = None
    """What the graphs compute in here and why (`Choice`); None where nothing can run them."""

    once_an_image: tuple[str, ...] = ()
    """The stages that run once an image; empty where each question costs the whole network."""

    recorded: Parity | None = None
    """Parity as the export measured it."""

    checked: Parity | None = None
    """Parity as it was measured now; None where nobody asked or the bundle cannot be run."""


@dataclass(frozen=True)
class DoctorReport:
    """Everything that `examine` found out."""

    packages: dict[str, str]
    """The version of each installed distribution that the runtime and its engines use, by name."""

    export_packages: dict[str, str]
    """The same for those that only `ris-export` needs."""

    system: dict[str, str]
    """Python, operating system, kernel and libc."""

    cpu: Cpu
    """The processor."""

    memory: Memory
    """The machine's memory."""

    gpus: Gpus
    """Its NVIDIA GPUs."""

    engines: tuple[EngineHealth, ...]
    """The rows of the engine table, in its order."""

    plan_key: str | None
    """The file of the key that vouches for compiled graphs, None where there is none."""

    bundle: BundleHealth | None
    """The bundle, None where none was looked at."""

    problems: tuple[Problem, ...]
    """What there is to fix."""

    notes: tuple[str, ...]
    """What is worth knowing and needs no fixing."""

    healthy: bool
    """Whether there are no problems."""

    verdict: str
    """All of it in one line."""


@dataclass
class _Findings:
    """What the steps of `examine` add to."""

    problems: list[Problem] = field(default_factory=list)
    """What there is to fix."""

    notes: list[str] = field(default_factory=list)
    """What is worth knowing."""

    def problem(self, what: str, way_out: str) -> None:
        self.problems.append(Problem(what, way_out))

    def note(self, text: str) -> None:
        self.notes.append(text)


def examine(bundle: str | Path | None = None, *, check: bool = False) -> DoctorReport:
    """Looks at the machine, the engines and a bundle.

    Args:
        bundle: The bundle's folder, or None to look at none.
        check: Measure the bundle's parity too, as `ris-parity` does.
    """
    findings = _Findings()
    cpu, memory, gpus = system.cpu(), system.memory(), system.gpus()
    engines = tuple(_engine(row) for row in TABLE)
    _judge_engines(engines, findings)
    _judge_gpus(engines, gpus, findings)
    _judge_quota(cpu, findings)
    plan_key = _plan_key(findings)

    health = None
    if bundle is not None:
        health = _bundle(Path(bundle), any(e.works for e in engines), check, findings)
    return DoctorReport(
        packages=system.versions((*system.RUNTIME_PACKAGES, *system.ENGINE_PACKAGES)),
        export_packages=system.versions(system.EXPORT_PACKAGES),
        system=system.operating_system(),
        cpu=cpu,
        memory=memory,
        gpus=gpus,
        engines=engines,
        plan_key=plan_key,
        bundle=health,
        problems=tuple(findings.problems),
        notes=tuple(findings.notes),
        healthy=not findings.problems,
        verdict=_verdict(engines, health, len(findings.problems)),
    )


def as_dict(report: DoctorReport) -> dict[str, Any]:
    """The report as plain data, without anything that names the user or the machine."""
    data: dict[str, Any] = json.loads(private(json.dumps(dataclasses.asdict(report))))
    return data


def private(text: str) -> str:
    """Text (or JSON) with ~ for the home folder, and without the user's and the machine's name.

    A user's name counts where it is the name of a folder, a machine's where it is a whole word.
    """
    home = str(home_folder() or "")
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


def _engine(row: EngineSpec) -> EngineHealth:
    missing = row.missing()
    probes = () if missing else tuple(probe_apart(row.name, device) for device in row.devices)
    return EngineHealth(row.name, row.installed(), row.precisions, missing, probes)


def _plan_key(findings: _Findings) -> str | None:
    """Where the key of compiled graphs is kept, None where no file can be used."""
    try:
        file = user_key().file
    except RisError as error:
        findings.problem(str(error), f"set {VARIABLE} to a key of yours, or unset it")
        return None
    if file is None:
        findings.note(
            "no folder keeps the key that vouches for compiled graphs, so they are compiled again"
            f" by each process; set {VARIABLE} or XDG_STATE_HOME"
        )
    return str(file) if file else None


def _judge_engines(engines: tuple[EngineHealth, ...], findings: _Findings) -> None:
    for row, engine in zip(TABLE, engines, strict=True):
        if conflict := row.conflict():
            what, _, way_out = conflict.partition("; ")
            findings.problem(what, way_out)
        elif engine.missing or engine.works:
            continue
        elif row.unusable():
            findings.note(
                f"{engine.name} is installed, but nothing here runs it: {engine.probes[0].problem}"
            )
        else:
            reasons = "; ".join(f"{p.device}: {p.problem}" for p in engine.probes)
            findings.problem(
                f"{engine.name} is installed but runs on no device ({reasons})",
                "install the package again",
            )
    if all(engine.missing for engine in engines):
        missing = "; ".join(f"{e.name}: {e.missing}" for e in engines)
        findings.problem("no engine is installed", missing)


def _judge_gpus(engines: tuple[EngineHealth, ...], gpus: Gpus, findings: _Findings) -> None:
    gpu_runs = any(p.device != "cpu" and p.problem is None for e in engines for p in e.probes)
    if gpus.found and not gpu_runs:
        findings.note(
            f"there is a GPU ({gpus.found[0].name}), but no engine that runs on it; everything uses"
            " the CPU"
        )


def _judge_quota(cpu: Cpu, findings: _Findings) -> None:
    if cpu.quota is not None and cpu.quota < cpu.usable:
        findings.note(
            f"the container may spend {cpu.quota:g} of {cpu.usable} cores; engines start"
            f" {math.ceil(cpu.quota)} threads unless told otherwise"
        )


def _bundle(path: Path, can_run: bool, check: bool, findings: _Findings) -> BundleHealth:
    """Examines the bundle; a damaged one is described as far as its manifest can be read.

    can_run: whether an engine works here.
    """
    bundle, whole = _open(path, findings)
    if bundle is None:
        return BundleHealth(str(path), whole=False)

    manifest = bundle.manifest
    settled = _settled(bundle, check, findings) if can_run and whole else None
    graphs = {stage: _graph(bundle, stage, settled) for stage in bundle.stages}
    _judge_graphs(bundle, graphs, findings)
    checked = None
    if check and can_run and whole and not any(g.problem for g in graphs.values()):
        checked = _check(bundle, findings)
    return BundleHealth(
        path=str(path),
        whole=whole,
        format_version=read_json(path / MANIFEST)["format_version"],  # as it was written
        writer=manifest.writer,
        source=dataclasses.asdict(manifest.source),
        family=manifest.family,
        preset=_text(manifest.model.get("preset")),
        query=_text(manifest.model.get("query")),
        no_target_head=manifest.no_target,
        precision=manifest.precision,
        graphs=graphs,
        compute=settled.choice.to_dict() if settled else None,
        once_an_image=bundle.wiring.image_stages,
        recorded=_parity(ParityReport(manifest.parity, manifest.mask_iou, 0.0, ())),
        checked=checked,
    )


def _open(path: Path, findings: _Findings) -> tuple[Bundle | None, bool]:
    """The bundle, None where its manifest cannot be read, and whether it is whole."""
    try:
        return open_bundle(path), True
    except RisError as error:
        a_sentence = any(way in str(error) for way in (". Export", ". Fetch"))
        what, _, way_out = str(error).rpartition(". " if a_sentence else "; ")
        findings.problem(what or str(error), way_out or "make one with ris-export")
    try:
        return open_bundle(path, verify=False), False
    except RisError:
        return None, False


def _judge_graphs(bundle: Bundle, graphs: dict[str, GraphHealth], findings: _Findings) -> None:
    for graph in graphs.values():
        if graph.problem:
            findings.problem(graph.problem, "export the bundle again, or ask for another engine")
    if not bundle.manifest.source.trained:
        findings.note("the bundle has made-up weights: its masks mean nothing")
    if any("fp16" in g.weights and g.runs and " on cpu " in g.runs for g in graphs.values()):
        findings.note(
            "a CPU computes fp16 graphs in fp32, or in bfloat16 where that pays and will do"
        )


def _check(bundle: Bundle, findings: _Findings) -> Parity | None:
    """Parity here and now; None where the bundle cannot be run."""
    try:
        with open_model(bundle) as model:
            checked = _parity(check_model(model, load_golden(bundle)), model.sessions)
    except RisError as error:
        findings.problem(f"the self-check could not run: {error}", "export the bundle again")
        return None
    if checked.failures:
        findings.problem(
            f"the bundle is out of tolerance here: {'; '.join(checked.failures)}",
            "try another engine, then export it again; report it with this text",
        )
    return checked


def _settled(bundle: Bundle, check: bool, findings: _Findings) -> Settled | None:
    """What the graphs compute in here, with their engines; None where none runs them."""
    # a measurement has all graphs in memory at once, so that only a check does it
    try:
        settled = settle_for(bundle)[0] if check else settle_as_measured(bundle)
    except RisError as error:
        findings.problem(str(error), "export the bundle again, or ask for another engine")
        return None
    if settled.choice.why == NOT_MEASURED:
        findings.note(f"{NOT_MEASURED}: run ris-compile; the graphs were opened in fp32")
    return settled


def _graph(bundle: Bundle, stage: str, settled: Settled | None) -> GraphHealth:
    """Opens one graph and closes it again, so that at most one is in memory.

    settled: what opens it; None: nothing does.
    """
    entry = bundle.manifest.graphs[stage]
    islands: dict[str, int] = {}
    for node, reason in entry.fp32_islands.items():
        key = f"*: {reason}" if node == "*" else reason
        islands[key] = islands.get(key, 0) + 1

    weights: dict[str, int] = {}
    runs = computes_in = problem = None
    try:
        weights = count_weights(bundle.file(entry.file))
        if settled is not None:
            with settled.engines[stage].load(bundle.graph(stage)) as session:
                info = session.info
                computes_in = info.precision
                runs = f"{info.engine} {info.version} on {info.device} ({info.where})"
    except RisError as error:
        problem = str(error) if settled is not None else None
    counts = entry.parameters, entry.operations.of(1, 1) if entry.operations else None
    return GraphHealth(entry.shown, islands, *counts, weights, runs, computes_in, problem)


def _parity(report: ParityReport, ran: Mapping[str, SessionInfo] | None = None) -> Parity:
    rows = report.rows
    alone = {name: row.relative for name, row in rows.items() if not name.startswith("end_to_end")}
    worst = max(alone, key=lambda name: alone[name], default=None)
    end = rows.get(END_TO_END)
    return Parity(
        end_to_end=end.relative if end else None,
        worst_stage=worst,
        worst=alone[worst] if worst else None,
        mask_iou=report.mask_iou,
        failures=report.failures,
        computes_in=tuple(sorted({one.precision for one in (ran or {}).values() if one.precision})),
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _verdict(engines: tuple[EngineHealth, ...], bundle: BundleHealth | None, problems: int) -> str:
    if problems:
        return f"{problems} problem{'s' * (problems > 1)} to fix, listed above"
    probes = [p for engine in engines for p in engine.probes if p.problem is None]
    text = f"Ready: {', '.join(f'{p.engine} {p.version} on {p.device}' for p in probes)}"
    if bundle is None:
        return f"{text}; no bundle was looked at (give one, or make ./ris-bundle with ris-export)"
    checked = ", parity holds here" if bundle.checked else ""
    return f"{text}; {bundle.path} is whole ({bundle.precision}){checked}"
