"""Runs the application: one process, or several workers under uvicorn's supervisor."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import uvicorn
from fastapi import FastAPI
from prometheus_client.multiprocess import mark_process_dead
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from ris.engines.errors import RisError
from ris.engines.processor import usable_cores
from ris.runtime import Model, load
from ris.runtime.commands.running import Running
from ris.serving.http.app import create_app
from ris.serving.http.connections import Connection
from ris.serving.http.logs import logging_config
from ris.serving.http.metrics import SHARED_FOLDER
from ris.serving.http.service import Service
from ris.serving.http.settings import HttpSettings

_log = logging.getLogger("ris.http")
_KEEP_ALIVE = 30  # seconds that an idle connection is kept
_HEALTH = 30  # seconds after which the supervisor kills a worker that does not move
_PAUSE = 10.0  # seconds before a worker that could not start is tried again


@dataclass(frozen=True)
class Serving:
    """A server that may be started; workers get it as it is."""

    bundle: str
    """The bundle, or its address on a Hub: opened at the start and at each reload."""

    running: Running
    """What runs it."""

    settings: HttpSettings
    """What requests may do."""

    host: str = "127.0.0.1"
    """Where to listen."""

    port: int = 8000
    """The port; 0 for any that is free."""

    workers: int = 1
    """Processes, each with a model, a cache and a queue."""

    drain_seconds: float = 30.0
    """Seconds that what was begun has to end, when the server is stopped."""

    log_format: str = "json"
    """One of `logs.FORMATS`."""

    log_level: str = "info"
    """The least level that is written."""

    def service(self) -> Service:
        """The service over the bundle, which is not opened yet."""
        return Service(self._open, self.settings)

    def _open(self) -> Model:
        running = self.running
        if self.workers > 1 and running.threads is None:
            cores = usable_cores()
            running = replace(running, threads=max(1, cores // self.workers))
        return load(self.bundle, **vars(running))


@dataclass(frozen=True)
class _Worker:
    """Makes the application in a worker."""

    serving: Serving
    """What is served."""

    supervisor: int
    """The process that started it."""

    def __call__(self) -> FastAPI:
        return create_app(self.serving.service(), self.supervisor)


def serve(serving: Serving, listening: socket.socket) -> None:
    """Serves until SIGTERM or SIGINT; what was begun is answered first.

    Raises:
        RisError: Where the bundle cannot be opened.
    """
    if serving.workers > 1:
        _serve_with_workers(serving, listening)
        return
    service = serving.service()
    server = _Server(uvicorn_config(serving, create_app(service)))
    try:
        server.run(sockets=[listening])
    except SystemExit:
        raise service.failure or RisError("the server did not start; its log says why") from None


def _serve_with_workers(serving: Serving, listening: socket.socket) -> None:
    with tempfile.TemporaryDirectory(prefix="ris-metrics-") as folder:
        os.environ[SHARED_FOLDER] = folder  # each worker writes its figures there
        config = uvicorn_config(serving, _Worker(serving, os.getpid()), factory=True)
        supervisor = _Supervisor(config, [listening])
        supervisor.run()
    if supervisor.failed:
        raise RisError("a worker could not start; its log says why")


def uvicorn_config(serving: Serving, app: Any, factory: bool = False) -> uvicorn.Config:
    """How uvicorn runs the application, or with `factory` what makes it."""
    settings = serving.settings
    inside = settings.limits.waiting + settings.parallel
    return uvicorn.Config(
        app,
        factory=factory,
        workers=serving.workers,
        http=Connection,  # over h11, which bounds the size of headers
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=logging_config(serving.log_format, serving.log_level),
        access_log=False,  # the middleware writes its own
        server_header=False,
        limit_concurrency=4 * inside + 200,  # connections, which cost memory too
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(serving.drain_seconds)),
        timeout_worker_healthcheck=_HEALTH,
    )


class _Server(uvicorn.Server):
    """A server that was asked to end has done what it should: exit code 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's, which would raise SIGTERM once more at the end."""
        with super().capture_signals():
            yield
            self._captured_signals = [
                number for number in self._captured_signals if number != signal.SIGTERM
            ]


class _Supervisor(Multiprocess):
    """uvicorn's, with a reload that replaces models and no processes."""

    failed = False
    """Whether it ended since a worker could not start."""

    _started = False  # whether all workers have been there at once
    _next_try = 0.0

    def handle_hup(self) -> None:
        """Each worker opens the bundle anew while it goes on answering."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)

    def terminate_all(self) -> None:
        """Nobody new is let in while the workers end what they have begun."""
        for one in self.sockets:
            one.close()
        super().terminate_all()

    def keep_subprocess_alive(self) -> None:
        """Starts workers that died anew, and forgets what the dead ones had running.

        uvicorn ends all of them where one cannot start. Here that holds until all have started
        once: afterwards the others go on, and the one is tried again after a pause.
        """
        for place, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if process.is_alive(timeout=_HEALTH):
                continue
            if process.exitcode is None:  # it hangs
                process.kill()
                process.join()
            if process.exitcode == STARTUP_FAILURE and not self._may_try_again(process):
                continue
            mark_process_dead(process.pid)
            _log.warning("a worker died", extra={"fields": {"pid": process.pid}})
            self.processes[place] = Process(self.config, self.sockets)
            self.processes[place].start()
        self._started = self._started or all(one.is_ready() for one in self.processes)

    def _may_try_again(self, process: Process) -> bool:
        """Whether a worker that could not start is to be started anew now."""
        if not self._started:
            self.failed = True
            self.should_exit.set()
            return False
        if not self._next_try:
            self._next_try = time.monotonic() + _PAUSE
            fields = {"pid": process.pid, "tried_again_after_seconds": _PAUSE}
            _log.error("a worker could not start", extra={"fields": fields})
        if time.monotonic() < self._next_try:
            return False
        self._next_try = 0.0
        return True


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises RisError where that is not possible."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        raise RisError(f"nothing can listen at {host}, port {port}: {error}") from None
