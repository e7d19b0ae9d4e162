"""Connections and bodies of hostile clients, and workers that cannot start."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

for needed in ("fastapi", "uvicorn", "prometheus_client", "fastapi_offline"):
    pytest.importorskip(needed, reason='not installed: pip install ".[http]"')

from uvicorn.config import STARTUP_FAILURE  # noqa: E402

from http_helper import serving, wait_until  # noqa: E402
from ris.engines.errors import EngineError  # noqa: E402
from ris.serving import arriving  # noqa: E402
from ris.serving.http import app, connections, turns  # noqa: E402
from ris.serving.http import server as served  # noqa: E402
from ris.serving.http.middleware import BODY_COPIES  # noqa: E402
from serving_helpers import picture_bytes  # noqa: E402

GET = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(running):
    return socket.create_connection(("127.0.0.1", running.port), timeout=60)


def received(raw):
    """Some bytes; none where the connection is closed."""
    try:
        return raw.recv(10_000)
    except ConnectionResetError:
        return b""


@pytest.fixture(scope="module")
def running(served_bundle):
    with serving(served_bundle) as server:
        yield server


@pytest.mark.parametrize("before", [b"", GET])
def test_a_head_that_does_not_come_ends_its_connection(running, monkeypatch, before):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with connected(running) as raw:
        raw.sendall(before)
        answer = b""
        while before and not answer.endswith(b'{"live":true}'):
            answer += received(raw)
        raw.sendall(GET[:-2])
        assert received(raw) == b""


def test_a_connection_that_sends_nothing_is_ended(running, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    with connected(running) as raw:
        assert received(raw) == b""


def test_a_body_in_chunks_is_booked_whole_whatever_length_it_says(running):
    service = running.service
    head = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
    head += b"Content-Type: application/json\r\n"
    with connected(running) as raw:
        raw.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        wait_until(lambda: service.door.requests == 1, 20)
        assert service.door.bytes == BODY_COPIES * service.settings.most_body
    wait_until(lambda: service.door.requests == service.door.bytes == 0)


@pytest.mark.parametrize("sent", [b"", b"x"], ids=["silent", "a byte now and then"])
def test_a_body_that_does_not_come_gives_its_place_back(running, monkeypatch, sent):
    monkeypatch.setattr(arriving, "SILENT_SECONDS", 0.3)
    service = running.service
    head = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n"
    with connected(running) as raw:
        raw.sendall(head + b"Content-Type: application/json\r\n\r\n")
        answer = b""
        while not answer:
            raw.sendall(sent)
            readable, _, _ = select.select([raw], [], [], 0.05)
            answer = received(raw) if readable else b""
        assert answer.startswith(b"HTTP/1.1 408 ")
    wait_until(lambda: service.door.requests == service.door.bytes == 0)


def test_a_labelling_configuration_has_a_limit_of_its_own(running):
    with connected(running) as raw:
        head = b"POST /label-studio/setup HTTP/1.1\r\nHost: x\r\nContent-Length: 2000001\r\n\r\n"
        raw.sendall(head)
        assert received(raw).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize("well", [True, False])
def test_after_several_failures_a_picture_of_its_own_decides(running, monkeypatch, well):
    def fail(image):
        raise EngineError("too little memory for this one")

    service, broken = running.service, []
    monkeypatch.setattr(service, "_faults", 0)
    monkeypatch.setattr(service.answerer, "scene", fail)
    monkeypatch.setattr(service.answerer, "is_well", lambda: well)
    monkeypatch.setattr(service, "when_broken", lambda: broken.append(True))
    for number in range(3):
        assert running.client().segment(picture_bytes(number), ["x"]).status == 500
    wait_until(lambda: service.live or broken)
    assert service.live == well
    assert broken == ([] if well else [True])


def test_an_engine_that_hangs_is_not_live_until_it_comes_back(running, monkeypatch):
    service, go, encode = running.service, threading.Event(), running.service.answerer.scene
    monkeypatch.setattr(service.answerer, "scene", lambda image: go.wait(60) and encode(image))
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(running.client().segment, picture_bytes(1), ["x"])
        wait_until(lambda: service.running == 1)
        assert service.live, "for a minute at least"
        monkeypatch.setattr(turns.Turn, "seconds", 3 * service.settings.limits.seconds + 1)
        assert (service.live, service.ready) == (False, False)
        go.set()
        assert asked.result().status == 200
    assert (service.live, service.ready) == (True, True)


@pytest.mark.parametrize(
    ("supervisor", "draining", "ends"),
    [(os.getppid(), False, True), (None, True, True), (None, False, False)],
    ids=["a worker", "the only process, asked to end", "the only process"],
)
def test_who_ends_a_process_whose_engine_hangs(monkeypatch, supervisor, draining, ends):
    """A worker is replaced; the only process is for whoever runs it, until it is asked to end."""
    killed = []
    monkeypatch.setattr(app, "_LOOKED_FOR", 0.01)
    monkeypatch.setattr(app.os, "kill", lambda *given: killed.append(given))
    service = SimpleNamespace(hangs=True, draining=draining)

    async def watched():
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                await app._watch(service, supervisor)

    asyncio.run(watched())
    assert set(killed) == ({(os.getpid(), signal.SIGKILL)} if ends else set())


class Worker:
    """A process of uvicorn's supervisor, as far as the supervisor looks at it."""

    made = 0

    def __init__(self, config, sockets):
        type(self).made += 1
        self.pid, self.exitcode = self.made, None

    def start(self):
        pass

    def is_alive(self, timeout):
        return self.exitcode is None

    def is_ready(self):
        return self.exitcode is None


@pytest.fixture
def supervisor(monkeypatch):
    monkeypatch.setattr(served, "Process", Worker)
    monkeypatch.setattr(served, "mark_process_dead", lambda pid: None)
    made = served._Supervisor.__new__(served._Supervisor)  # uvicorn's own takes over the signals
    made.config, made.sockets, made.should_exit = None, [], threading.Event()
    made.processes = [Worker(None, []), Worker(None, [])]
    return made


def test_a_worker_that_cannot_start_at_first_ends_all(supervisor):
    supervisor.processes[1].exitcode = STARTUP_FAILURE
    supervisor.keep_subprocess_alive()
    assert supervisor.should_exit.is_set()
    assert supervisor.failed


def test_a_worker_that_cannot_start_later_is_tried_again_after_a_pause(supervisor, monkeypatch):
    supervisor.keep_subprocess_alive()
    first, second = supervisor.processes
    second.exitcode = STARTUP_FAILURE
    supervisor.keep_subprocess_alive()
    assert supervisor.processes == [first, second]
    monkeypatch.setattr(served.time, "monotonic", lambda: supervisor._next_try + 1)
    supervisor.keep_subprocess_alive()
    assert supervisor.processes[0] is first
    assert supervisor.processes[1].exitcode is None
    assert not supervisor.should_exit.is_set()
    assert not supervisor.failed


def test_a_worker_that_dies_is_replaced_at_once(supervisor):
    supervisor.processes[0].exitcode = -9
    supervisor.keep_subprocess_alive()
    assert [one.exitcode for one in supervisor.processes] == [None, None]
