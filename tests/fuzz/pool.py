"""Workers that live as long as their inputs let them, and the verdict on an input that ends one."""

from __future__ import annotations

import json
import os
import queue
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any

from fuzz.kinds import group_of
from fuzz.verdict import OUT_OF_MEMORY, Verdict, place_in_dump
from fuzz.worker import MEMORY, PAGE, SECONDS, TOO_MUCH

WAIT = 12 * SECONDS
"""Seconds of the clock after which a worker hangs without using the processor."""

TESTS = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
ENVIRONMENT |= {"RAYON_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}


class Worker:
    """A process that judges inputs, started anew where one ended it."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._group = ""
        self._said = 0
        self._process: subprocess.Popen[str] | None = None
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)

    def judge(self, task: dict[str, Any]) -> Verdict:
        """The verdict on one task.

        Where an allocation was refused, the task is done again without that limit: what counts is
        the memory that is used. The process is ended where it uses too much.
        """
        verdict = self._ask(task)
        return self._ask(task | {"loose": True}) if verdict.what == OUT_OF_MEMORY else verdict

    def _ask(self, task: dict[str, Any]) -> Verdict:
        self._be_ready(group_of(task["kind"]))
        process, start = self._process, time.monotonic()
        self._said = (self.scratch / "stderr").stat().st_size
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(task) + "\n")
        process.stdin.flush()
        wrong = self._watch(process.stdout, process.pid)
        line = "" if wrong else process.stdout.readline()
        if line.endswith("\n"):
            return Verdict(**json.loads(line))
        what, message = self._end(wrong)
        return Verdict(
            task["kind"],
            task["number"],
            "finding",
            what,
            place_in_dump(message),
            message[-2000:],
            time.monotonic() - start,
        )

    def _watch(self, answers: IO[str], process: int) -> str:
        """Waits for an answer or the end of the process; returns why it must be ended by force."""
        before, end = _resident(process), time.monotonic() + WAIT
        while not select.select([answers], [], [], 0.02)[0]:
            if _resident(process) - before > MEMORY:
                return TOO_MUCH
            if time.monotonic() > end:
                return "hang"
        return ""

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._end("")

    def _be_ready(self, group: str) -> None:
        if self._process is not None and self._group == group:
            return
        self.close()
        self._group = group
        with (self.scratch / "stderr").open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "fuzz.worker", str(self.scratch)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=os.environ | ENVIRONMENT,
            )

    def _end(self, wrong: str) -> tuple[str, str]:
        """Ends the process by force, or it has ended itself: why, and what it wrote about it."""
        process, self._process = self._process, None
        assert process is not None
        if wrong:
            process.send_signal(signal.SIGPROF)  # it writes where it is, and ends
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        with (self.scratch / "stderr").open("rb") as errors:
            errors.seek(self._said)
            said = errors.read().decode("utf-8", "replace")
        if process.returncode > 0 and "fuzz/worker.py" in said:
            raise RuntimeError(f"the worker itself failed:\n{said}")
        if process.returncode == -signal.SIGPROF:
            wrong = wrong or "hang"
        code = process.returncode
        return wrong or (signal.Signals(-code).name if code < 0 else f"exit code {code}"), said


def _resident(process: int) -> int:
    """Bytes of memory that a process has; 0 where it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * PAGE
    except (OSError, IndexError):
        return 0


def run(
    tasks: Iterable[dict[str, Any]],
    scratch: Path,
    done: Callable[[dict[str, Any], Verdict, Path], None],
    workers: int = 2,
) -> None:
    """Judges all tasks, in order, in so many processes at a time.

    Args:
        tasks: What `worker.work` takes.
        scratch: A folder for the workers' inputs.
        done: Called, one at a time, with each task, its verdict and the folder of its files.
        workers: The number of processes.

    Raises:
        RuntimeError: Where a thread failed, as one of `done`.
    """
    waiting: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    for task in tasks:
        waiting.put(task)
    lock, failures = threading.Lock(), []

    def serve(number: int) -> None:
        worker = Worker(scratch / str(number))
        try:
            while not failures:
                task = waiting.get_nowait()
                verdict = worker.judge(task)
                with lock:
                    done(task, verdict, worker.scratch / "input")
        except queue.Empty:
            pass
        except BaseException as error:
            failures.append(error)
        finally:
            worker.close()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        failures.append(KeyboardInterrupt())
        raise
    if failures:
        raise RuntimeError("the inputs could not be judged") from failures[0]
