"""The parts of the check, one after the other, within a time limit."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris.engines import TABLE
from tests.gpu_check.report import Finding, Report

REPO = Path(__file__).resolve().parent.parent.parent
PRECISIONS = ("fp16", "fp32", "bf16")
"""Of the bundles that are exported, the most important first."""

SHORTEST = 3.0
"""Seconds below which a part is not started any more."""


@dataclass(frozen=True)
class Part:
    """One process of the check."""

    name: str
    """Its name in the report."""

    kind: str
    """The function of `worker` that it runs."""

    limit: float
    """The most seconds that it may take."""

    given: dict[str, Any] = field(default_factory=dict)
    """That function's arguments."""


def parts(options: argparse.Namespace) -> list[Part]:
    """All parts in their order: what decides most comes first."""
    work = Path(f"{options.out}-bundles")
    found = [Part("machine", "machine", 30)]
    bundles = {Path(bundle).name: str(bundle) for bundle in options.bundle}
    if not options.no_export:
        for precision in PRECISIONS:
            bundle = work / f"demo-{precision}"
            given = {"precision": precision, "out": str(bundle)}
            found.append(Part(f"export {bundle.name}", "export", 90, given))
            bundles[bundle.name] = str(bundle)
        quantised = work / "demo-int8"
        given = {"bundle": str(work / "demo-fp32"), "out": str(quantised)}
        found.append(Part(f"calibrate {quantised.name}", "calibrate", 90, given))
        bundles[quantised.name] = str(quantised)

    engines = [row.name for row in TABLE if "cuda" in row.devices]
    engines = [name for name in engines if not options.engine or name in options.engine]
    for name, bundle in bundles.items():
        for engine in engines:
            given = {"engine": engine, "bundle": bundle, "runs": options.runs}
            given["device"] = options.device
            found.append(Part(f"{engine}, {name}", "engine", options.limit, given))
    if bundles and not options.no_pytorch:
        name, bundle = next(iter(bundles.items()))
        given = {"bundle": bundle, "runs": options.runs, "device": options.device}
        for compiled in (False,) if options.double else (False, True):
            form = "torch.compile" if compiled else "PyTorch eager"
            more = given | {"compiled": compiled}
            found.append(Part(f"{form}, {name}", "pytorch", options.limit, more))
    if not options.no_tests:
        found.append(Part("tests", "tests", options.limit))
    return [part for part in found if not options.only or part.kind in options.only]


def run(part: Part, seconds: float, double: bool) -> Finding:
    """One part in a process of its own, which has `seconds`."""
    command = [sys.executable, "-m", "tests.gpu_check.worker", part.kind, json.dumps(part.given)]
    environment = os.environ | {"RIS_GPU_CHECK_DOUBLE": "1" if double else ""}
    start = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=REPO,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its children end with it
    )
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    said: list[str] = []
    assert process.stdout is not None
    assert process.stderr is not None
    readers = [
        threading.Thread(target=_read, args=(process.stdout, lines.put), daemon=True),
        threading.Thread(target=_read, args=(process.stderr, said.append), daemon=True),
    ]
    for reader in readers:
        reader.start()
    problem = None
    try:
        code = process.wait(max(seconds, SHORTEST))
        if code:
            problem = f"its process ended with {_how(code)}"
    except subprocess.TimeoutExpired:
        problem = f"it took more than {seconds:.0f} s"
    finally:
        _end(process)
    for reader in readers:
        reader.join(2)
    sections = _sections(lines)
    if problem:
        last = [line.strip() for line in said if line.strip()][-1:]
        problem = "; ".join([problem, *last])
    return Finding(part.name, part.kind, time.monotonic() - start, problem, sections)


def _read(stream: Any, take: Any) -> None:
    for line in stream:
        take(line)


def _sections(lines: queue.SimpleQueue[str]) -> list[dict[str, Any]]:
    """What the process printed, a section a line; what is none is left out."""
    found = []
    while not lines.empty():
        try:
            section = json.loads(lines.get())
        except ValueError:
            continue
        if isinstance(section, dict) and "section" in section:
            found.append(section)
    return found


def _how(code: int) -> str:
    return f"exit code {code}" if code > 0 else f"signal {-code} ({signal.strsignal(-code)})"


def _end(process: subprocess.Popen[str]) -> None:
    """Ends a process and its children."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def check(options: argparse.Namespace) -> Report:
    """Runs the parts and writes the report after each of them."""
    begin = time.monotonic()
    report = Report(double=options.double)
    for part in parts(options):
        left = options.minutes * 60 - (time.monotonic() - begin)
        if left < SHORTEST:
            finding = Finding(part.name, part.kind, 0.0, "not run: no time was left", [])
        else:
            finding = run(part, min(part.limit, left), options.double)
        report.findings.append(finding)
        print(finding.line(), file=sys.stderr, flush=True)
        report.write(options.out)
    return report


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="gpu-check", description="What only a GPU can show.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-check"), metavar="PREFIX")
    parser.add_argument("--minutes", type=float, default=9.5, help="for all parts together")
    parser.add_argument("--limit", type=float, default=150, help="seconds of an engine's part")
    parser.add_argument("--runs", type=int, default=20, help="of each timing")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--engine", action="append", default=[], help="may be repeated")
    parser.add_argument(
        "--bundle", action="append", default=[], type=Path, help="also this one, before the demo"
    )
    parser.add_argument("--no-export", action="store_true", help="only the bundles of --bundle")
    parser.add_argument("--no-pytorch", action="store_true")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--only", action="append", default=[], help="kinds of parts")
    parser.add_argument("--double", action="store_true", help="a dry run without a GPU")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with 1 where a part failed or nothing was compared; the report is written all the same.

    Where --only leaves the comparison out, nobody asked for it.
    """
    options = parse(arguments)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    report = check(options)
    for file in report.write(options.out):
        print(f"wrote {file}")
    wanted = not options.only or "engine" in options.only
    if wanted and not report.compared:
        print("no engine ran a bundle here, so nothing was shown", file=sys.stderr)
        return 1
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
