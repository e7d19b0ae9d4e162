"""What happens to every request before and behind its route.

It gets an id, is let in or sent away before its body is read, is ended when its client goes, has an
answer whatever is raised, and is logged and counted.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import hmac
import json
import logging
import re
import time
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ris.engines.errors import RisError
from ris.serving.arriving import Arrival
from ris.serving.http.connections import abort_connection
from ris.serving.http.service import Service
from ris.serving.http.settings import BODY_COPIES
from ris.serving.http.turns import BusyError, Held
from ris.serving.limits import LimitError, status_of

_log = logging.getLogger("ris.http")

OPEN_PATHS = re.compile(
    r"/(?:health|ready|docs.*|redoc|openapi\.json|static/[\w.-]+|examples(?:/\d+\.png)?)?"
)
"""What needs no token: it tells nothing of anybody's pictures, and asks the model nothing."""

_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_CHUNK = 64 * 1024  # bytes; uvicorn waits for slow clients between chunks
_SMALL = 16_000  # bytes; what is not about a picture needs no place
_SETUP_PATH = "/label-studio/setup"
_SETUP = 2_000_000  # bytes; its body is a labelling configuration
_GONE = 499  # as nginx has it


class NotFetchedError(Exception):
    """A client that does not read its answer."""


class Visit:
    """One request on its way; routes find it as `visit_of(request)`."""

    def __init__(self, scope: Scope) -> None:
        self.began = time.monotonic()
        given = _header(scope, b"x-request-id")
        self.request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        self.held: Held | None = None
        self.status = 0
        self.sent = 0
        self.received = 0
        self.fields: dict[str, Any] = {}

    @property
    def seconds(self) -> float:
        """How long ago it came."""
        return time.monotonic() - self.began

    def hold(self, size: int) -> None:
        """Takes so many bytes from now on. Raises BusyError where there are not as many."""
        if self.held:
            self.held.resize(size)


def visit_of(scope: MutableMapping[str, Any]) -> Visit:
    """The visit of a request's scope; one of its own where no middleware made it."""
    visit = scope.get("ris.visit")
    return visit if isinstance(visit, Visit) else Visit(scope)


def error_body(status: int, message: str, request_id: str) -> bytes:
    """What an error looks like everywhere."""
    error = {"status": status, "message": message, "request_id": request_id}
    return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")


def error_headers(error: RisError) -> list[tuple[bytes, bytes]]:
    """What a client that is sent away may go by."""
    if isinstance(error, BusyError):
        return [(b"retry-after", str(error.retry_after).encode())]
    if isinstance(error, LimitError) and error.status == 401:
        return [(b"www-authenticate", b"Bearer")]
    return []


class Visits:
    """The outermost middleware."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; lifespan and websockets pass through."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, self._without_traceback(send))
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope["ris.visit"] = Visit(scope)
        outgoing = _Outgoing(visit, send, self._service.settings.limits.seconds)
        try:
            self._check_token(scope)
            with self._let_in(scope, visit) as size:
                incoming = _Incoming(visit, receive, size, self._service)
                await self._until_gone(scope, incoming, outgoing)
        except RisError as error:
            await outgoing.refuse(error, scope["method"])
        except ClientDisconnect:
            visit.status = visit.status or _GONE
        except NotFetchedError:
            visit.fields["error"] = "the client did not fetch the answer"
            abort_connection(scope)
        except asyncio.CancelledError:
            # the server's time to shut down is over; better a word than a cut line
            with contextlib.suppress(Exception):
                await outgoing.refuse(BusyError("the server is shutting down"), scope["method"])
            raise
        except Exception:
            _log.exception("internal error", extra={"fields": {"request_id": visit.request_id}})
            await outgoing.fail()
        finally:
            self._count(scope, visit)

    def _without_traceback(self, send: Send) -> Send:
        """A bundle that cannot be opened is one sentence in the log."""

        async def told(message: Message) -> None:
            failed = message["type"] == "lifespan.startup.failed"
            if failed and self._service.failure:
                message = {**message, "message": str(self._service.failure)}
            await send(message)

        return told

    def _check_token(self, scope: Scope) -> None:
        token = self._service.settings.token
        if token is None or OPEN_PATHS.fullmatch(scope["path"]):
            return
        # each is compared, however the first ends
        right = [hmac.compare_digest(given, token.encode()) for given in _tokens(scope)]
        if not any(right):
            raise LimitError("send the server's token: Authorization: Bearer ...", 401)

    def _most(self, scope: Scope) -> int:
        """The most bytes of this request's body."""
        if _is_small(scope):
            return _SMALL
        most = self._service.settings.most_body
        return min(most, _SETUP) if scope["path"] == _SETUP_PATH else most

    @contextmanager
    def _let_in(self, scope: Scope, visit: Visit) -> Iterator[int]:
        """A place for what has a body, by the size that it says; nothing of it is read yet.

        Yields the bytes of body that there is a place for.
        """
        length = _header(scope, b"content-length")
        most = self._most(scope)
        # what comes in chunks says no length, whatever another header says
        known = not _header(scope, b"transfer-encoding")
        known = known and length.isdecimal() and len(length) < 20
        size = int(length) if known else most
        if size > most:
            raise LimitError(
                f"the request has {size / 1e6:.1f} MB, at most {most / 1e6:.1f} MB are accepted",
                413,
            )
        if _is_small(scope):
            place: Any = nullcontext(None)
        else:
            client = scope["client"][0] if scope.get("client") else ""
            retry_after = self._service.retry_after
            place = self._service.door.enter(client, BODY_COPIES * size, retry_after)
        with place as visit.held:
            self._service.metrics.refresh()
            yield size

    async def _until_gone(self, scope: Scope, incoming: _Incoming, send: Send) -> None:
        """Runs the route, and cancels it when the client goes."""
        route = asyncio.ensure_future(self._app(scope, incoming, send))
        gone = asyncio.ensure_future(incoming.gone())
        try:
            await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not route.done():
                route.cancel()
                await asyncio.wait({route})
                if route.cancelled():
                    raise ClientDisconnect
            await route
        finally:
            gone.cancel()
            if not route.done():
                route.cancel()
                await asyncio.wait({route})

    def _count(self, scope: Scope, visit: Visit) -> None:
        route = getattr(scope.get("route"), "path", None) or "other"
        metrics = self._service.metrics
        metrics.refresh()  # each worker tells of itself, whoever is asked
        metrics.requests.labels(route, str(visit.status)).inc()
        metrics.request_seconds.labels(route).observe(visit.seconds)
        level = logging.DEBUG if route in ("/health", "/ready", "/metrics") else logging.INFO
        fields = {
            "request_id": visit.request_id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": visit.status,
            "seconds": round(visit.seconds, 6),
            "received": visit.received,
            "sent": visit.sent,
            **visit.fields,
        }
        _log.log(level, "request", extra={"fields": fields})


class _Incoming:
    """`receive`, with a limit on bytes and time; it knows when the client goes."""

    def __init__(self, visit: Visit, receive: Receive, most: int, service: Service) -> None:
        self._visit, self._receive, self._most = visit, receive, most
        self._arrival = Arrival(service.settings.limits.seconds)
        self._whole = asyncio.Event()
        self._left = asyncio.Event()

    async def __call__(self) -> Message:
        """The next piece of the body."""
        if self._whole.is_set():
            await self._left.wait()
            return {"type": "http.disconnect"}
        message = await self._arrival.next(self._receive(), self._visit.received)
        if message["type"] == "http.request":
            self._visit.received += len(message.get("body", b""))
            if self._visit.received > self._most:
                raise LimitError(f"at most {self._most / 1e6:.1f} MB are accepted", 413)
            if not message.get("more_body", False):
                self._whole.set()
        else:
            self._whole.set()
            self._left.set()
        return message

    async def gone(self) -> None:
        """Ends when the client has gone, after it sent everything."""
        await self._whole.wait()
        while not self._left.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._left.set()


class _Outgoing:
    """`send`, with the request's id, in pieces; it knows what was sent."""

    def __init__(self, visit: Visit, send: Send, seconds: float) -> None:
        self._visit, self._send, self._seconds = visit, send, seconds
        self._started = False

    async def __call__(self, message: Message) -> None:
        """The head, or a piece of the body."""
        if message["type"] == "http.response.start":
            self._started = True
            self._visit.status = message["status"]
            message = {**message, "headers": [*message.get("headers", []), *self._headers()]}
            await self._send(message)
            return

        body, more = message.get("body", b""), message.get("more_body", False)
        self._visit.sent += len(body)
        # a client that does not read must not keep the answer in memory for ever
        try:
            async with asyncio.timeout(self._seconds):
                for start in range(0, max(len(body), 1), _CHUNK):
                    last = start + _CHUNK >= len(body)
                    piece = body if last and not start else body[start : start + _CHUNK]
                    await self._send(
                        {"type": message["type"], "body": piece, "more_body": more or not last}
                    )
        except TimeoutError:
            raise NotFetchedError from None

    def _headers(self) -> list[tuple[bytes, bytes]]:
        return [
            (b"x-request-id", self._visit.request_id.encode()),
            (b"x-content-type-options", b"nosniff"),
        ]

    async def refuse(self, error: RisError, method: str) -> None:
        """Answers with the error, where nothing was answered yet."""
        status = status_of(error)
        self._visit.fields["error"] = str(error)
        await self._answer(status, str(error), error_headers(error), method)

    async def fail(self) -> None:
        """Answers that it is our fault."""
        said = "an internal error; the server's log has it under this request_id"
        await self._answer(500, said, [])

    async def _answer(
        self, status: int, message: str, headers: list[tuple[bytes, bytes]], method: str = ""
    ) -> None:
        if self._started:
            return
        body = error_body(status, message, self._visit.request_id)
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *headers,
        ]
        await self({"type": "http.response.start", "status": status, "headers": head})
        await self({"type": "http.response.body", "body": b"" if method == "HEAD" else body})


def _is_small(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD", "OPTIONS") or scope["path"] == "/v1/reload"


def _tokens(scope: Scope) -> Iterator[bytes]:
    """What may be the token: that of Bearer, and what labelling tools can send.

    Label Studio knows Basic alone, where the password is taken; X-AnyLabeling has a header `Token`.
    """
    kind, _, given = _header(scope, b"authorization").partition(" ")
    if kind.lower() == "bearer":
        yield given.strip().encode("latin-1")
    elif kind.lower() == "basic":
        with contextlib.suppress(ValueError):
            yield binascii.a2b_base64(given.strip().encode("latin-1")).partition(b":")[2]
    if other := _header(scope, b"token"):
        yield other.strip().encode("latin-1")


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope.get("headers", []):
        if key == name:
            return bytes(value).decode("latin-1")
    return ""
