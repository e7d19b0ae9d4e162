"""The guard's gRPC: messages are passed on as they are, once their form was looked at."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import grpc

from ris.serving.arriving import HEAD_SECONDS
from ris.serving.limits import LimitError
from ris.serving.triton.guard import SMALL, Address, Guarded, Place, Room
from ris.serving.triton.guard_checks import check_grpc, largest_request

_SERVICE = "/inference.GRPCInferenceService/"
_INFER = f"{_SERVICE}ModelInfer"
# what says "not ready" by a field that is not there, or by NOT_SERVING
_READY = {
    f"{_SERVICE}ServerReady": b"",
    f"{_SERVICE}ModelReady": b"",
    "/grpc.health.v1.Health/Check": b"\x08\x02",
}
_READ = {
    f"{_SERVICE}{name}"
    for name in ("ServerLive", "ServerMetadata", "ModelMetadata", "ModelConfig", "ModelStatistics")
}
_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    403: grpc.StatusCode.PERMISSION_DENIED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
_ARRIVES = 10.0
"""Seconds that a request's message has to arrive; few are read at once, and the others wait."""

_LARGE_AT_ONCE = 4  # answers that are read back from disk and sent
_IDLE = 64  # calls beyond those that have a place, which are told so


@asynccontextmanager
async def grpc_door(address: Address, behind: Guarded, room: Room) -> AsyncIterator[None]:
    """Serves gRPC for the block."""
    most = largest_request(behind.limits)
    channel = grpc.aio.insecure_channel(
        behind.sockets.grpc,
        options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
    )
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", most),
            ("grpc.max_send_message_length", -1),
            ("grpc.per_message_decompression", 0),  # a small message may unpack to anything
            ("grpc.so_reuseport", 0),  # or another server could have the port, too
            ("grpc.server_handshake_timeout_ms", round(1000 * HEAD_SECONDS)),
        ],
        maximum_concurrent_rpcs=behind.requests + _IDLE,
    )
    server.add_generic_rpc_handlers([_Door(behind, room, channel)])
    server.add_insecure_port(f"{address.name}:{address.grpc}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(1)
        await channel.close()


class _Door(grpc.GenericRpcHandler):
    """What is done with a call. Each is handled as a stream, which is read when there is room."""

    def __init__(self, behind: Guarded, room: Room, channel: Any) -> None:
        self._behind, self._room, self._channel = behind, room, channel
        self._seconds = behind.limits.seconds
        together = behind.limits.held_bytes // largest_request(behind.limits)
        self._reading = asyncio.Semaphore(max(1, together))
        self._sending = asyncio.Semaphore(_LARGE_AT_ONCE)

    def service(self, details: Any) -> Any:
        """The handler of a call."""
        return grpc.stream_stream_rpc_method_handler(partial(self._call, str(details.method)))

    async def _call(self, method: str, requests: Any, context: Any) -> None:
        try:
            if method == _INFER:
                await self._infer(context)
            elif method in _READY or method in _READ:
                await self._read(method, context)
            else:
                raise LimitError("this part of the API is restricted", 403)
        except LimitError as error:
            await context.abort(_CODES[error.status], f"{error.status}: {error}")
        except TimeoutError:
            said = f"504: the request took longer than {self._seconds:g} s in one of its steps"
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, said)
        except grpc.aio.AioRpcError as error:
            self._room.look_at(error.details() or "")
            await context.abort(error.code(), error.details())

    async def _read(self, method: str, context: Any) -> None:
        """What changes nothing and is small."""
        message = await self._message(context)
        if method in _READY and self._behind.ailing():
            await context.write(_READY[method])
        else:
            await context.write(await self._ask(method, message))

    async def _infer(self, context: Any) -> None:
        if ill := self._behind.ailing():
            raise LimitError(ill, 503)
        self._room.check()
        # whoever sends nothing takes no place: how much of a message has come is not known
        async with asyncio.timeout(self._seconds), self._reading:
            message = await self._message(context)
        with self._room.place() as place:
            place.hold(len(message))
            check_grpc(message, self._behind.limits)
            # no name for the answer here, so that one that waits on disk is not in memory, too
            await self._send(context, await self._ask(_INFER, message), place)

    async def _message(self, context: Any) -> bytes:
        seconds = min(_ARRIVES, self._seconds)
        try:
            async with asyncio.timeout(seconds):
                message = await context.read()
        except TimeoutError:
            raise LimitError(f"the request did not arrive within {seconds:g} s", 504) from None
        if message is grpc.aio.EOF:
            raise LimitError("there is no request", 400)
        return bytes(message)

    async def _ask(self, method: str, message: bytes) -> bytes:
        """What tritonserver answers: waiting for its turn, in its batch, and being worked on."""
        call = self._channel.unary_unary(method)
        return bytes(await call(message, timeout=3 * self._seconds))

    async def _send(self, context: Any, answer: bytes, place: Place) -> None:
        """Sends an answer; a large one waits on disk while others are sent."""
        if len(answer) <= SMALL:
            await context.write(answer)
            return
        place.hold(0)
        with tempfile.TemporaryFile() as file:
            file.write(answer)
            del answer
            async with asyncio.timeout(self._seconds), self._sending:
                file.seek(0)
                await context.write(file.read())
