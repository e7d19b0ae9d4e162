"""The guard's connections over HTTP: those that send nothing, or read nothing, are ended."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from aiohttp import web

from ris.serving.arriving import HEAD_SECONDS

KEPT_SECONDS = 75.0
"""Seconds that a client has to read a small answer, and to send its next request."""


class Connection(asyncio.Protocol):
    """aiohttp's protocol, with a limit on the time that a request's head takes.

    aiohttp waits for one without an end.
    """

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_kept = False  # whether a request was answered, and nothing has come since

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request that has its head, and is worked on; nothing is awaited meanwhile."""
        self._stop()
        try:
            yield
        finally:
            if self._transport is not None:
                self._await(KEPT_SECONDS, is_kept=True)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The first head is awaited."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._await(HEAD_SECONDS)

    def data_received(self, data: bytes) -> None:
        """Some bytes; those after an answer begin the next head."""
        self._inner.data_received(data)
        if self._is_kept:
            self._await(HEAD_SECONDS)

    def eof_received(self) -> bool | None:
        """The client sends no more."""
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        """The client reads slowly."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """The client has read."""
        self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop()
        self._transport = None
        self._inner.connection_lost(exc)

    def _await(self, seconds: float, is_kept: bool = False) -> None:
        assert self._transport is not None
        self._stop()
        self._is_kept = is_kept
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._transport.abort)

    def _stop(self) -> None:
        self._is_kept = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


@contextmanager
def at_work(request: web.BaseRequest) -> Iterator[None]:
    """A request while it is worked on."""
    transport = request.transport
    connection = transport.get_protocol() if transport is not None else None
    if isinstance(connection, Connection):
        with connection.request():
            yield
    else:
        yield
