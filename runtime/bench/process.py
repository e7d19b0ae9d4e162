"""A process of a benchmark, from outside; `worker` is what runs in it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

from ris.engines.errors import CheckpointError, RisError


class WorkerError(RisError):
    """A process that cannot go on, and why."""


class Worker:
    """A process that answers requests; use it in a `with` block."""

    def __init__(self, spec: dict[str, Any], threads: int | None, limit: float) -> None:
        """Starts the process.

        Args:
            spec: What it runs, as JSON (`worker.KINDS`).
            threads: CPU threads. None: all cores.
            limit: Seconds that one answer may take.
        """
        environment = dict(os.environ)
        if threads is not None:  # numpy's library takes it from here alone
            environment |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        # -P keeps the current folder off sys.path: its files may have the names of our imports
        command = [sys.executable, "-P", "-m", "ris.runtime.bench.worker"]

        self._limit = limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [*command, json.dumps(spec | {"started": time.monotonic()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        # a pipe cannot be read with a time limit, a queue can
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Puts each line of the process into the queue, and "" after the last."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """The answer to one request.

        Args:
            do: The method of the worker's class.
            **more: Its argument, `count`, where it takes one.

        Raises:
            WorkerError: Where the process fails, ends, or takes longer than its limit.
            CheckpointError: For weight files that are not the bundle's. That is the user's mistake,
                so the rest is not measured without them.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | more) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._limit)
        except queue.Empty:
            raise WorkerError(f"no answer within {self._limit:.0f} seconds") from None
        except OSError:
            line = ""
        if not line:
            raise WorkerError(self._death())

        answer: dict[str, Any] = json.loads(line)
        if answer.get("checkpoint"):
            raise CheckpointError(answer["error"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _death(self) -> str:
        """How the process ended, and the last line of its errors."""
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        how = f"exit code {code}"
        if code == -9:  # Linux ends a process like this when memory runs out
            how = f"signal {-code}, which may be for want of memory"
        return "; ".join([f"its process ended with {how}", *said])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(wait=0.1 if exception[0] else 20)

    def close(self, wait: float = 20) -> None:
        """Ends the process, by force after `wait` seconds. May be called twice."""
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()  # ends its loop
        try:
            self._process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()
