"""The guard's two doors before a tritonserver that the test plays: slow and silent clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager

import pytest

from ris.serving.limits import Limits
from ris.serving.triton.guard import Address, Guarded, Room, Sockets
from serving_helpers import free_ports

INFER = "/inference.GRPCInferenceService/ModelInfer"
REQUEST = b"\x0a\x03ris"  # model_name: "ris"


def guarded(folder, seconds):
    """What the doors stand before: one message of gRPC is read at a time."""
    limits = Limits(image_bytes=1000, seconds=seconds, held_bytes=3_000_000)
    return Guarded(Sockets(folder), limits, 4, lambda: None)


def room_of(behind):
    return Room(behind.requests, behind.limits.held_bytes)


async def until(condition):
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def triton_http(behind, answer, status=200):
    web = pytest.importorskip("aiohttp.web")

    async def infer(request):
        await request.read()
        return web.Response(body=answer, status=status)

    application = web.Application()
    application.router.add_post("/v2/models/ris/infer", infer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.UnixSite(runner, str(behind.sockets.http)).start()
    try:
        yield
    finally:
        await runner.cleanup()


def test_a_client_too_slow_for_its_answer_gets_the_beginning_of_it_and_nothing_else(tmp_path):
    """Not an error in the midst of what was announced as the answer, on a connection that stays."""
    pytest.importorskip("aiohttp")
    from ris.serving.triton.guard_http import http_door

    length = 16_000_000  # more than the sockets hold
    behind = guarded(tmp_path, seconds=1)
    head = b"POST /v2/models/ris/infer HTTP/1.1\r\nHost: ris\r\nContent-Length: 2\r\n\r\n{}"

    async def run():
        address, room = Address("127.0.0.1", *free_ports(3)), room_of(behind)
        async with triton_http(behind, b"\0" * length), http_door(address, behind, room):
            reader, writer = await asyncio.open_connection(address.host, address.http, limit=1000)
            writer.write(head)
            await until(lambda: room._inside == 1)
            await until(lambda: room._inside == 0)  # it reads nothing meanwhile
            got = b""
            try:
                while piece := await reader.read(1 << 20):
                    got += piece
            except ConnectionResetError:
                pass
            writer.close()
            return got

    started, _, body = asyncio.run(run()).partition(b"\r\n\r\n")
    assert started.startswith(b"HTTP/1.1 200")
    assert f"Content-Length: {length}".encode() in started
    assert len(body) < length
    assert not body.strip(b"\0")


@asynccontextmanager
async def connected(behind, room, answer=b"{}"):
    """A client's connection to the guard's HTTP."""
    from ris.serving.triton.guard_http import http_door

    address = Address("127.0.0.1", *free_ports(3))
    async with triton_http(behind, answer), http_door(address, behind, room):
        reader, writer = await asyncio.open_connection(address.host, address.http)
        try:
            yield reader, writer
        finally:
            writer.close()


def ended(tmp_path, sent, trickled):
    """What a client gets that sends something, and then a byte now and then, until it is ended."""

    async def run():
        behind = guarded(tmp_path, seconds=60)
        room, answer = room_of(behind), b""
        async with connected(behind, room) as (reader, writer), asyncio.timeout(60):
            writer.write(sent)
            with contextlib.suppress(ConnectionError):
                while not reader.at_eof():
                    writer.write(trickled)
                    with contextlib.suppress(TimeoutError):
                        answer += await asyncio.wait_for(reader.read(10_000), 0.05)
            await until(lambda: room._inside == room._held == 0)
        return answer

    return asyncio.run(run())


HEAD = b"POST /v2/models/ris/infer HTTP/1.1\r\nHost: ris\r\nConnection: close\r\n"
GET = b"GET /v2/nothing HTTP/1.1\r\nHost: ris\r\n\r\n"


@pytest.mark.parametrize("trickled", [b"", b"G"], ids=["silent", "a byte now and then"])
@pytest.mark.parametrize("sent", [b"", HEAD, GET, GET + HEAD])
def test_a_head_that_does_not_come_ends_its_connection(tmp_path, monkeypatch, sent, trickled):
    pytest.importorskip("aiohttp")
    from ris.serving.triton import guard_connections

    for name in ("HEAD_SECONDS", "KEPT_SECONDS"):
        monkeypatch.setattr(guard_connections, name, 0.6)
    answer = ended(tmp_path, sent, trickled)
    assert answer.startswith(b"HTTP/1.1 403 ") == sent.startswith(GET)


@pytest.mark.parametrize("trickled", [b"", b"G"], ids=["silent", "a byte now and then"])
def test_a_body_that_does_not_come_gives_its_place_back(tmp_path, monkeypatch, trickled):
    pytest.importorskip("aiohttp")
    from ris.serving import arriving
    from ris.serving.triton import guard_connections

    monkeypatch.setattr(arriving, "SILENT_SECONDS", 0.6)
    for name in ("HEAD_SECONDS", "KEPT_SECONDS"):  # aiohttp waits for the rest of the body
        monkeypatch.setattr(guard_connections, name, 0.6)
    answer = ended(tmp_path, HEAD + b"Content-Length: 900\r\n\r\n", trickled)
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_slow_upload_is_answered_and_its_connection_goes_on(tmp_path, monkeypatch):
    pytest.importorskip("aiohttp")
    head = b"POST /v2/models/ris/infer HTTP/1.1\r\nHost: ris\r\nContent-Length: 12\r\n\r\n"

    async def run():
        behind = guarded(tmp_path, seconds=60)
        answers = []
        async with connected(behind, room_of(behind)) as (reader, writer), asyncio.timeout(60):
            for _ in range(2):
                for piece in (head[:20], head[20:], b'{"a"', b': "b', b'"}  '):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.05)
                answers.append(await reader.readuntil(b"{}"))
        return answers

    assert all(answer.startswith(b"HTTP/1.1 200 ") for answer in asyncio.run(run()))


@asynccontextmanager
async def triton_grpc(behind, refusal=None):
    grpc = pytest.importorskip("grpc")

    class Echo(grpc.GenericRpcHandler):
        def service(self, details):
            async def answer(message, context):
                if refusal:
                    await context.abort(grpc.StatusCode.INTERNAL, refusal)
                return message

            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server()
    server.add_generic_rpc_handlers([Echo()])
    server.add_insecure_port(behind.sockets.grpc)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


def test_a_caller_that_sends_nothing_is_not_waited_for_as_long_as_a_request(tmp_path, monkeypatch):
    """Where one message is read at a time, those behind it come to their turn.

    It takes no place from those who send something, over HTTP among others.
    """
    grpc = pytest.importorskip("grpc")
    from ris.serving.triton import guard_grpc

    monkeypatch.setattr(guard_grpc, "_ARRIVES", 1)
    behind = guarded(tmp_path, seconds=60)

    async def run():
        address, room = Address("127.0.0.1", *free_ports(3)), room_of(behind)
        async with (
            triton_grpc(behind),
            guard_grpc.grpc_door(address, behind, room),
            grpc.aio.insecure_channel(f"{address.name}:{address.grpc}") as channel,
        ):
            silent = channel.stream_stream(INFER)()
            await silent.wait_for_connection()
            await asyncio.sleep(0.3)  # its message is awaited now
            inside = room._inside
            answer = await channel.unary_unary(INFER)(REQUEST, timeout=30)
            return answer, await silent.code(), await silent.details(), inside

    answer, code, said, inside = asyncio.run(run())
    assert inside == 0
    assert answer == REQUEST
    assert code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert said == "504: the request did not arrive within 1 s"


SICK = "Stub process 'ris_0_0' is not healthy."


@pytest.mark.parametrize("said", [SICK, "bad input"])
def test_an_instance_that_does_not_react_is_heard_of_over_http(tmp_path, said):
    pytest.importorskip("aiohttp")
    import aiohttp

    from ris.serving.triton.guard_http import http_door

    behind = guarded(tmp_path, seconds=60)

    async def run():
        address, room = Address("127.0.0.1", *free_ports(3)), room_of(behind)
        url = f"http://{address.host}:{address.http}/v2/models/ris/infer"
        body = json.dumps({"error": said}).encode()
        async with (
            triton_http(behind, body, 500),
            http_door(address, behind, room),
            aiohttp.ClientSession() as client,
            client.post(url, data=b"{}") as answer,
        ):
            return answer.status, await answer.read() == body, room.sick

    assert asyncio.run(run()) == (500, True, said == SICK)


@pytest.mark.parametrize("said", [SICK, "bad input"])
def test_an_instance_that_does_not_react_is_heard_of_over_grpc(tmp_path, said):
    grpc = pytest.importorskip("grpc")
    from ris.serving.triton import guard_grpc

    behind = guarded(tmp_path, seconds=60)

    async def run():
        address, room = Address("127.0.0.1", *free_ports(3)), room_of(behind)
        async with (
            triton_grpc(behind, said),
            guard_grpc.grpc_door(address, behind, room),
            grpc.aio.insecure_channel(f"{address.name}:{address.grpc}") as channel,
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await channel.unary_unary(INFER)(REQUEST, timeout=30)
            return refused.value.details(), room.sick

    assert asyncio.run(run()) == (said, said == SICK)
