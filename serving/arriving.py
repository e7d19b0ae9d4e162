"""Callers that send nothing, or next to nothing: how long a server waits for what they begin."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TypeVar

from ris.serving.limits import LimitError

T = TypeVar("T")

HEAD_SECONDS = 10.0
"""Seconds from a connection, or from the first byte of its next request, to the whole head."""

SILENT_SECONDS = 10.0
"""Seconds that the next bytes of a body may take."""

LEAST_RATE = 1000
"""Bytes a second that a body comes in, after its first `SILENT_SECONDS`: a slow modem's."""


class Arrival:
    """A body on its way.

    It keeps a place, and maybe memory, until it is there: a caller who sends a byte now and then
    would keep others out.
    """

    def __init__(self, seconds: float) -> None:
        """seconds: that all of it may take."""
        self._seconds = seconds
        self._began = time.monotonic()

    def left(self, received: int) -> float:
        """Seconds that the next bytes may take. received: bytes that have come."""
        passed = time.monotonic() - self._began
        slowest = SILENT_SECONDS + received / LEAST_RATE
        return max(min(SILENT_SECONDS, slowest - passed, self._seconds - passed), 0.0)

    async def next(self, piece: Awaitable[T], received: int) -> T:
        """Waits for the next bytes.

        Args:
            piece: Brings them.
            received: Bytes of the body that have come.

        Raises:
            LimitError: Where they do not come in time.
        """
        try:
            async with asyncio.timeout(self.left(received)):
                return await piece
        except TimeoutError:
            raise LimitError(
                f"the body did not arrive: it may take {self._seconds:g} s, be silent for"
                f" {SILENT_SECONDS:g} s, and has to bring {LEAST_RATE} bytes a second",
                408,
            ) from None
