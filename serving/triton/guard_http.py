"""The guard's HTTP: Triton's inference protocol, as far as clients may use it, and the metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
from aiohttp import web

from ris.serving.arriving import Arrival
from ris.serving.limits import LimitError
from ris.serving.triton.guard import SMALL, Address, Guarded, Place, Room
from ris.serving.triton.guard_checks import MODEL, check_http, largest_request
from ris.serving.triton.guard_connections import Connection, at_work

_VERSION = r"(?:/versions/\d+)?"
_READ = re.compile(rf"/v2(?:/health/(?:live|ready)|/models/(?:stats|\w+{_VERSION}(?:/\w+)?))?")
_INFER = re.compile(rf"/v2/models/{MODEL}{_VERSION}/infer")
_JSON_LENGTH = "Inference-Header-Content-Length"
_KEPT = ("Content-Type", _JSON_LENGTH)  # of the headers
_CHUNK = 1 << 18

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def http_door(address: Address, behind: Guarded, room: Room) -> AsyncIterator[None]:
    """Serves HTTP and the metrics for the block."""
    sockets = behind.sockets
    async with _session(sockets.http) as triton, _session(sockets.metrics) as metrics:
        door = _Door(behind, room, triton)

        async def numbers(request: web.Request) -> web.StreamResponse:
            return await _read_answer(metrics, "GET", "/metrics")

        async with (
            _listening(address.host, address.http, "/{path:.*}", door.handle),
            _listening(address.host, address.metrics, "/metrics", numbers),
        ):
            yield


def _session(socket: Path) -> aiohttp.ClientSession:
    """A client of tritonserver."""
    connector = aiohttp.UnixConnector(path=str(socket), limit=0)
    plain = {"Accept-Encoding": "identity"}  # Triton would compress for nobody
    return aiohttp.ClientSession(connector=connector, headers=plain, auto_decompress=False)


@asynccontextmanager
async def _listening(host: str, port: int, path: str, handler: Handler) -> AsyncIterator[None]:
    async def handle(request: web.Request) -> web.StreamResponse:
        with at_work(request):
            return await handler(request)

    application = web.Application()
    application.router.add_route("*", path, handle)
    # one that hangs up has its request cancelled
    runner = web.AppRunner(
        application,
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=1,
    )
    await runner.setup()
    served = runner.server
    assert served is not None
    loop = asyncio.get_running_loop()
    try:
        listening = await loop.create_server(lambda: Connection(served()), host, port, backlog=128)
        try:
            yield
        finally:
            listening.close()
    finally:
        await runner.cleanup()


class _Door:
    """What is done with a request over HTTP."""

    def __init__(self, behind: Guarded, room: Room, triton: aiohttp.ClientSession) -> None:
        self._behind, self._room, self._triton = behind, room, triton
        self._seconds = behind.limits.seconds

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answers any request."""
        try:
            path = request.path
            if request.method == "POST" and _INFER.fullmatch(path):
                return await self._infer(request)
            if request.method != "GET" or not _READ.fullmatch(path):
                raise LimitError("this part of the API is restricted", 403)
            if path.endswith("/ready") and self._behind.ailing():
                return web.Response(status=503)
            return await _read_answer(self._triton, "GET", path)
        except LimitError as error:
            return web.json_response({"error": f"{error.status}: {error}"}, status=error.status)
        except TimeoutError:
            said = f"504: the request took longer than {self._seconds:g} s in one of its steps"
            return web.json_response({"error": said}, status=504)
        except aiohttp.ClientError:
            said = "503: tritonserver does not answer; it starts, or has ended"
            return web.json_response({"error": said}, status=503)

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        if ill := self._behind.ailing():
            raise LimitError(ill, 503)
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise LimitError("send the request without compression; images have their own", 415)
        with self._room.place() as place:
            body = await self._body(request, place)
            check_http(body, request.headers.get(_JSON_LENGTH), self._behind.limits)
            return await self._ask(request, body, place)

    async def _body(self, request: web.Request, place: Place) -> bytes:
        """All of a request. Raises LimitError for more than is held, or what does not come."""
        most = largest_request(self._behind.limits)
        arrival = Arrival(self._seconds)
        size = request.content_length or 0
        body = bytearray()
        while True:
            if size > most:
                raise LimitError(f"at most {most / 1e6:g} MB are accepted", 413)
            place.hold(size)
            chunk = await arrival.next(request.content.readany(), len(body))
            if not chunk:
                return bytes(body)
            body += chunk
            size = max(size, len(body))

    async def _ask(self, request: web.Request, body: bytes, place: Place) -> web.StreamResponse:
        """What tritonserver answers: waiting for its turn, in its batch, and being worked on."""
        headers = {name: request.headers[name] for name in _KEPT if name in request.headers}
        asked = self._triton.post(
            f"http://triton{request.path}",
            data=body,
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=3 * self._seconds),
        )
        async with asked as answer:
            kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
            if (answer.content_length or SMALL + 1) <= SMALL:
                small = await answer.read()
                if answer.status == 500:
                    self._room.look_at(_refusal(small))
                return web.Response(status=answer.status, headers=kept, body=small)

            with tempfile.TemporaryFile() as file:
                async for chunk in answer.content.iter_chunked(_CHUNK):
                    file.write(chunk)
                place.hold(0)
                response = web.StreamResponse(status=answer.status, headers=kept)
                response.content_length = file.tell()
                file.seek(0)
                try:
                    async with asyncio.timeout(self._seconds):
                        await response.prepare(request)
                        while chunk := file.read(_CHUNK):
                            await response.write(chunk)
                        await response.write_eof()
                except TimeoutError:  # another answer would be read as the rest of this one
                    if request.transport is not None:
                        request.transport.abort()
                return response


def _refusal(body: bytes) -> str:
    """What tritonserver says where it refuses a request; "" where it says nothing."""
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(body)
        if isinstance(said, dict) and isinstance(said.get("error"), str):
            return str(said["error"])
    return ""


async def _read_answer(triton: aiohttp.ClientSession, method: str, path: str) -> web.Response:
    """A small answer of tritonserver's."""
    timeout = aiohttp.ClientTimeout(total=10)
    async with triton.request(method, f"http://triton{path}", timeout=timeout) as answer:
        kept = {name: answer.headers[name] for name in _KEPT if name in answer.headers}
        return web.Response(status=answer.status, headers=kept, body=await answer.read())
