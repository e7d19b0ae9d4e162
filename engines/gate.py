"""A gate for threads: closing it waits for those inside, and fork leaves it usable."""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from collections.abc import Callable

from ris.engines.errors import EngineError


class Gate:
    """Lets any number of threads in at once, until it is closed.

    A thread enters with `with`, as often as it likes: once inside it may enter again after `close`,
    so that what it has begun comes to its end.
    """

    abandoned: bool
    """Whether this process came from a fork while another thread was inside."""

    def __init__(self, closed: str) -> None:
        """closed: the sentence of the EngineError for those who come after `close`."""
        self.abandoned = False
        self._sentence = closed
        self._closed = False
        self._release: Callable[[], None] | None = None
        self._inside: dict[int, int] = {}  # thread -> how often it has entered
        # reentrant, as a signal's handler may close what its own thread enters
        self._changed = threading.Condition(threading.RLock())
        _GATES.add(self)

    def __enter__(self) -> None:
        thread = threading.get_ident()
        with self._changed:
            entered = self._inside.get(thread, 0)
            if self._closed and not entered:
                raise EngineError(self._sentence)
            self._inside[thread] = entered + 1

    def __exit__(self, *error: object) -> None:
        thread = threading.get_ident()
        with self._changed:
            self._inside[thread] -= 1
            if not self._inside[thread]:
                del self._inside[thread]
                if self._closed and not self._inside:
                    self._finish()

    def close(self, release: Callable[[], None]) -> None:
        """Lets nobody in any more and waits for those inside; may be called twice.

        A thread that is inside itself does not wait.

        Args:
            release: Called once, when the last thread has left.
        """
        with self._changed:
            if not self._closed:
                self._closed, self._release = True, release
            if threading.get_ident() not in self._inside:
                # threads that are left when Python ends never leave
                self._changed.wait_for(lambda: not self._inside or sys.is_finalizing())
            if not self._inside:
                self._finish()

    def _finish(self) -> None:
        """Releases, and wakes those that wait for it."""
        release, self._release = self._release, None
        if release is not None:
            release()
        self._changed.notify_all()

    def _after_fork(self) -> None:
        """Forgets the threads that the child of a fork does not have."""
        thread = threading.get_ident()
        own = self._inside.get(thread)
        self.abandoned = self.abandoned or len(self._inside) > (own is not None)
        self._inside = {thread: own} if own else {}
        # the old one may be locked for ever
        self._changed = threading.Condition(threading.RLock())


_GATES: weakref.WeakSet[Gate] = weakref.WeakSet()


def _after_fork() -> None:
    for gate in list(_GATES):
        gate._after_fork()


def _at_exit() -> None:
    """Waits for daemon threads: those that Python stops inside an engine crash the process."""
    for gate in list(_GATES):
        gate.close(lambda: None)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
