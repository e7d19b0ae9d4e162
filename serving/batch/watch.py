"""Ends a worker that does not come back from a step of its work."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ris.serving.watchdog import end_after, let_live

MAX_SECONDS = 900.0
"""Seconds that no step takes which is still to end.

It is sixteen times the slowest first mask that was measured, of LISA-7B on two cores.
"""

_LOOKED_FOR = 0.5  # seconds


class Watch:
    """Looks, from a thread of its own, at how long a step takes.

    A thread that is inside a library cannot be interrupted, so `late` is to end the process. A
    library that holds Python's lock meanwhile stops the looking thread, too: the watchdog, which
    needs no lock, then ends the process after the longest time that any step has.
    """

    def __init__(self, longest: float, late: Callable[[], None]) -> None:
        """Looks at nothing yet.

        Args:
            longest: Seconds that no step takes.
            late: Called from another thread where a step takes too long.
        """
        self._longest, self._late = longest, late
        self._end = math.inf
        self._lock = threading.Lock()  # a step that ends meanwhile is not late

    @contextmanager
    def on(self) -> Iterator[None]:
        """Looks for the block, which has the steps in it."""
        done = threading.Event()
        looking = threading.Thread(target=self._look, args=(done,), name="watch", daemon=True)
        looking.start()
        try:
            end_after(self._longest)
            yield
        finally:
            done.set()
            looking.join()
            let_live()

    @contextmanager
    def step(self, seconds: float) -> Iterator[None]:
        """A step that has so many seconds, alone and not inside another."""
        self._end = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:  # or what `late` does would be undone, until the process ends
                self._end = math.inf

    def _look(self, done: threading.Event) -> None:
        while not done.wait(_LOOKED_FOR):
            end_after(self._longest)
            with self._lock:
                if time.monotonic() > self._end:
                    self._late()
