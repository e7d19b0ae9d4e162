"""The door in front of tritonserver: what it must not see does not reach it.

tritonserver listens on Unix sockets in a folder that is this user's alone. The guard listens at the
address that clients know, over HTTP and gRPC. It holds no more than `Limits` say, looks at the form
of each request (`guard_checks`), passes on what is asked of the model `ris`, and refuses the calls
that would change the server. It says "not ready" as soon as an instance has died, or tritonserver
has said that one does not react.

Answers that are large are taken from tritonserver at once and wait for a slow client on disk.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ris.engines.errors import RisError
from ris.serving.limits import LimitError, Limits

SMALL = 1_000_000
"""Bytes of an answer that waits in memory for its client; larger ones wait on disk."""

# tritonserver asks its Python instances for a sign of life, and refuses requests without one. This
# is the whole refusal: others may have a client's words in them
_SICK = re.compile(r"Stub process '\w+' is not healthy\.")


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str = "127.0.0.1"
    """The address to listen at; "0.0.0.0" lets other machines in."""

    http: int = 8000
    """The HTTP port."""

    grpc: int = 8001
    """The gRPC port."""

    metrics: int = 8002
    """The port of the metrics, over HTTP."""

    @property
    def name(self) -> str:
        """The host as it stands before a port: an IPv6 address is in brackets."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def reach(self) -> str:
        """The host to connect to from this machine, as it stands before a port."""
        return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(self.host, self.name)


@dataclass(frozen=True)
class Sockets:
    """Where tritonserver listens: Unix sockets in a folder that is this user's alone."""

    folder: Path
    """The folder."""

    @property
    def http(self) -> Path:
        """The socket of HTTP."""
        return self.folder / "http"

    @property
    def metrics(self) -> Path:
        """The socket of the metrics, over HTTP."""
        return self.folder / "metrics"

    @property
    def grpc(self) -> str:
        """gRPC's name of its socket; tritonserver adds a port to what it is told."""
        return f"unix:{self.folder / 'grpc'}:1"


@dataclass(frozen=True)
class Guarded:
    """What stands behind the guard."""

    sockets: Sockets
    """Where tritonserver listens."""

    limits: Limits
    """What a request may be, and how much of all of them is held."""

    requests: int
    """Requests that are taken in at once: those that wait, and those that are worked on."""

    ailing: Callable[[], str | None]
    """Says why the server is not ready although tritonserver may say so; None: it is well."""


class Room:
    """How many requests are inside at once, and how many bytes of them."""

    sick: bool
    """Whether tritonserver has said that an instance does not react any more."""

    def __init__(self, requests: int, held_bytes: int) -> None:
        self._requests, self._bytes = requests, held_bytes
        self._inside = self._held = 0
        self._closed = False
        self.sick = False

    def look_at(self, refusal: str) -> None:
        """Takes note of what tritonserver says where it refuses a request, without its code."""
        if _SICK.fullmatch(refusal):
            self.sick = True

    async def close(self, seconds: float) -> None:
        """Lets nobody in, and waits for those inside, at most so long."""
        self._closed = True
        end = time.monotonic() + seconds
        while self._inside and time.monotonic() < end:
            await asyncio.sleep(0.05)

    def check(self) -> None:
        """Raises LimitError where there is no place now."""
        if self._closed:
            raise LimitError("the server ends", 503)
        if self._inside >= self._requests:
            raise LimitError(
                f"the server is busy with {self._requests} requests; try again later", 503
            )

    @contextmanager
    def place(self) -> Iterator[Place]:
        """A place for a request, for the block. Raises LimitError where there is none."""
        self.check()
        self._inside += 1
        place = Place(self)
        try:
            yield place
        finally:
            place.hold(0)
            self._inside -= 1

    def take(self, more: int) -> None:
        """Holds so many bytes more, or fewer. Raises LimitError beyond the most."""
        if more > 0 and self._held + more > self._bytes:
            raise LimitError("the server holds as many bytes as it may; try again later", 503)
        self._held += more


class Place:
    """A request's place in the room."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._bytes = 0

    def hold(self, size: int) -> None:
        """How many bytes of the request are held from now on. Raises LimitError for too many."""
        self._room.take(size - self._bytes)
        self._bytes = size


class Guard:
    """The guard, in a thread with an event loop of its own."""

    def __init__(self, address: Address, behind: Guarded) -> None:
        self._address, self._behind = address, behind
        self._thread = threading.Thread(target=self._run, name="guard", daemon=True)
        self._listening = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self.problem: Exception | None = None
        """Why it could not listen, or ended."""

        self._patience = 0.0
        self._room = Room(behind.requests, behind.limits.held_bytes)

    @property
    def sick(self) -> bool:
        """Whether tritonserver has said that an instance does not react any more."""
        return self._room.sick

    def start(self) -> None:
        """Listens. Raises RisError where an address cannot be had."""
        self._thread.start()
        self._listening.wait()
        if self.problem is not None:
            raise RisError(
                f"{self._address.host} with the ports {self._address.http}, {self._address.grpc}"
                f" and {self._address.metrics} cannot be listened at: {self.problem}"
            )

    def stop(self, patience: float = 20) -> None:
        """Waits so many seconds for requests that are inside, and ends. May be called twice."""
        self._patience = patience
        if self._loop is not None and self._end is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._end.set)
            self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except Exception as error:
            self.problem = error
        finally:
            self._listening.set()

    async def _serve(self) -> None:
        from ris.serving.triton.guard_grpc import grpc_door
        from ris.serving.triton.guard_http import http_door

        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        room = self._room
        async with (
            http_door(self._address, self._behind, room),
            grpc_door(self._address, self._behind, room),
        ):
            self._listening.set()
            await self._end.wait()
            await room.close(self._patience)
