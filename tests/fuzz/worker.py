"""The process that reads inputs: `python -m fuzz.worker FOLDER`, a task a line of JSON on stdin.

A task is {"kind", "number", "seed"}, with "folder" where its files are there, "seconds" for another
limit, and "loose" for none of addresses. The answer is a `Verdict` a line. Each input may take
`SECONDS` of the processor, after which the process ends by SIGPROF, and `MEMORY` of addresses
beyond what the process has.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fuzz.kinds import load_kind, make_input
from fuzz.verdict import Verdict, judge

SECONDS = 10.0
"""Of the processor, not of the clock: the machine may do other things as well."""

MEMORY = 2_000_000_000
"""Bytes of addresses."""

TOO_MUCH = "too much memory"

PAGE = resource.getpagesize()


@contextlib.contextmanager
def limits(seconds: float, *, loose: bool) -> Iterator[None]:
    """Ends the process after so many seconds; memory beyond `MEMORY` is refused, if not `loose`."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    resource.setrlimit(resource.RLIMIT_AS, (hard if loose else used + MEMORY, hard))
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


class Memory:
    """How far the process grew since it was made."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        self._before = self._mark()

    def growth(self) -> int:
        """Bytes of resident memory."""
        return max(0, self._mark() - self._before)

    @staticmethod
    def _mark() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def work(task: dict[str, Any], scratch: Path) -> Verdict:
    """Makes or takes the input of a task, and judges it."""
    name, number = task["kind"], task["number"]
    kind, made = load_kind(name), make_input(name, task["seed"], number)
    folder = Path(task["folder"]) if task.get("folder") else _fresh(scratch / "input")
    if not task.get("folder"):
        made.write(folder)

    written, memory, start = _stderr_size(), Memory(), time.perf_counter()
    loose = task.get("loose", False)
    with limits(task.get("seconds", SECONDS), loose=loose):
        verdict = judge(kind, name, number, folder, made.expected, loose=loose)
    verdict.seconds = time.perf_counter() - start
    verdict.memory, verdict.stderr = memory.growth(), _stderr_size() - written
    if verdict.memory > MEMORY:
        verdict.outcome, verdict.what = "finding", TOO_MUCH
    return verdict


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _stderr_size() -> int:
    sys.stderr.flush()
    return os.fstat(2).st_size


def _leave_the_user_alone(scratch: Path) -> None:
    """No file of the user's is read or written; compiled plans are made under one key."""
    key = scratch / "plan-key"
    key.write_bytes(bytes(32))
    key.chmod(0o600)
    os.environ["RIS_PLAN_KEY"] = str(key)
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME"):
        os.environ[name] = str(scratch / name)


def main() -> None:
    """Answers until stdin ends."""
    scratch = Path(sys.argv[1])
    _leave_the_user_alone(scratch)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to stderr
    faulthandler.enable(all_threads=False)  # where it was when a signal ended it
    faulthandler.register(signal.SIGPROF, all_threads=False, chain=True)
    for done, line in enumerate(sys.stdin):
        verdict = work(json.loads(line), scratch)
        answers.write(json.dumps(verdict.to_dict()) + "\n")
        answers.flush()
        if done % 100 == 99:
            gc.collect()


if __name__ == "__main__":
    main()
