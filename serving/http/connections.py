"""Connections: those that send nothing, or read nothing, are ended."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ris.serving.arriving import HEAD_SECONDS

_ABORT = "ris.abort"


class Connection(H11Protocol):
    """uvicorn's, with a limit on the time that a request's head takes.

    uvicorn counts connections, and answers 503 where there are too many: whoever opens them and
    says nothing would keep everybody out.
    """

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first head is awaited."""
        # scopes carry a copy of this state
        self.app_state = {**self.app_state, _ABORT: transport.abort}
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Some bytes; where they begin a head, or belong to an answered request, time counts."""
        super().data_received(data)
        if not self._owes:
            self._stop()
        elif self._timer is None:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._stop()
        super().connection_lost(exc)

    @property
    def _owes(self) -> bool:
        """Whether the client has begun something that nobody works on yet, or any more."""
        if self.conn.their_state is h11.SEND_BODY:
            return self.cycle is not None and self.cycle.response_complete
        return self.conn.their_state is h11.IDLE

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(HEAD_SECONDS, self._late)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        self._timer = None
        if self._owes:
            self.transport.abort()


def abort_connection(scope: MutableMapping[str, Any]) -> None:
    """Ends a request's connection at once; what its client has not read is thrown away."""
    abort = scope.get("state", {}).get(_ABORT)
    if abort:
        abort()
