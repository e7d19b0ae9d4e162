"""Who may come in, and whose turn it is: the two queues of a server.

`Door` counts the requests in the house, and their bytes, before a body is read. `Turns` hands the
model to a few of them at a time, whose pictures fit into memory together.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from ris.serving.limits import LimitError

_LONGEST_WAIT = 60  # seconds that a client is sent away for, at most


class BusyError(LimitError):
    """A request that cannot be taken now; the same request later is welcome."""

    retry_after: int
    """Seconds after which to come again."""

    def __init__(self, message: str, status: int = 503, retry_after: int = 1) -> None:
        super().__init__(message, status)
        self.retry_after = retry_after


class Held:
    """What one request takes of the house: a place, and bytes."""

    def __init__(self, door: Door, size: int) -> None:
        self._door, self.size = door, size

    def resize(self, size: int) -> None:
        """Takes so many bytes from now on.

        Raises BusyError where there are not as many more, and LimitError where there never are.
        """
        more = size - self.size
        if more > 0 and size > self._door.most_bytes:
            raise LimitError(
                "the request, or its answer, takes more memory than all of them may together", 413
            )
        if more > 0 and self._door.bytes + more > self._door.most_bytes:
            raise BusyError(
                "requests, and answers that their clients have not fetched yet, fill the memory"
            )
        self._door.bytes += more
        self.size = size


class Door:
    """Counts the requests in the house. Belongs to one event loop."""

    requests: int
    """Requests that are in."""

    bytes: int
    """Bytes that they hold."""

    def __init__(self, requests: int, size: int, per_client: int | None = None) -> None:
        """requests, size: the most that are in at once; per_client: the same of one address."""
        self.requests = self.bytes = 0
        self.most_bytes = size
        self._most, self._per_client = requests, per_client
        self._clients: Counter[str] = Counter()

    @contextmanager
    def enter(self, client: str, size: int, retry_after: int) -> Iterator[Held]:
        """A place for one request, which is free again at the end of the block.

        Args:
            client: The address that asks.
            size: Bytes that the request may take.
            retry_after: What a client that is sent away is told.

        Raises:
            BusyError: Where the house is full, or has as many requests of this client as it may.
        """
        if self._per_client is not None and self._clients[client] >= self._per_client:
            raise BusyError(
                f"{self._per_client} requests of this client are waiting already", 429, retry_after
            )
        if self.requests >= self._most:
            raise BusyError(f"{self.requests} requests are waiting already", 503, retry_after)
        if self.bytes + size > self.most_bytes and self.requests:
            raise BusyError("the requests that are waiting fill the memory", 503, retry_after)

        held = Held(self, size)
        self.requests += 1
        self.bytes += size
        self._clients[client] += 1
        try:
            yield held
        finally:
            self.requests -= 1
            self.bytes -= held.size
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]


class Turn:
    """The right to use the model, until `release`."""

    def __init__(self, turns: Turns, size: int) -> None:
        self._turns, self._size = turns, size
        self._began = time.monotonic()
        self._over = False

    def release(self) -> None:
        """Gives the turn to the next; may be called twice."""
        if not self._over:
            self._over = True
            self._turns._give_back(self, self._size)

    @property
    def seconds(self) -> float:
        """How long it has been taken."""
        return time.monotonic() - self._began


class Turns:
    """First come, first served, a few at a time. Belongs to one event loop."""

    def __init__(self, most: int, size: int) -> None:
        """most: turns at once; size: bytes of all of them together."""
        self._taken: set[Turn] = set()
        self._most, self._free = most, size
        self._size = size
        self._waiting: deque[tuple[asyncio.Future[Turn], int]] = deque()
        self._seconds = 1.0  # of a turn, a running mean

    @property
    def running(self) -> int:
        """How many have a turn now."""
        return len(self._taken)

    @property
    def longest(self) -> float:
        """Seconds of the turn that has been taken for longest; 0 where there is none."""
        return max((turn.seconds for turn in self._taken), default=0.0)

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(not future.done() for future, _ in self._waiting)

    def retry_after(self, before: int) -> int:
        """Whole seconds until a newcomer may hope for a turn, with so many before it."""
        seconds = math.ceil(before * self._seconds / self._most)
        return min(max(seconds, 1), _LONGEST_WAIT)

    async def turn(self, size: int) -> Turn:
        """Waits for a turn. Whoever is cancelled while it waits leaves the queue.

        size: bytes that it takes; more than there are counts as all of them.
        """
        size = min(size, self._size)
        future: asyncio.Future[Turn] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, size))
        self._hand_out()
        try:
            return await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():  # handed over and cancelled at once
                future.result().release()
            self._hand_out()  # it may have stood before a smaller one
            raise

    def _hand_out(self) -> None:
        while self._waiting:
            future, size = self._waiting[0]
            if future.done():
                self._waiting.popleft()
                continue
            # a large one is not overtaken by smaller ones for ever: nobody overtakes
            if self.running >= self._most or size > self._free:
                return
            self._waiting.popleft()
            turn = Turn(self, size)
            self._taken.add(turn)
            self._free -= size
            future.set_result(turn)

    def _give_back(self, turn: Turn, size: int) -> None:
        self._taken.discard(turn)
        self._free += size
        self._seconds += 0.1 * (turn.seconds - self._seconds)
        self._hand_out()
