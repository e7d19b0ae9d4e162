"""Giving back to the system what the C library keeps of freed memory.

glibc keeps freed pictures in the heaps of the threads that freed them, so a server of many threads
and large pictures would seem to leak.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

EVERY = 256 << 20
"""Bytes of pictures and masks after which free memory is given back."""


def _trimmer() -> Callable[[int], int] | None:
    """glibc's malloc_trim; None where the C library has none."""
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    return found


class Heap:
    """Counts what is freed, and gives it back now and then.

    Several threads may use it. They do not lock, so some bytes may not be counted: a lock could be
    held while another thread forks.
    """

    def __init__(self, every: int = EVERY) -> None:
        """every: bytes between two times."""
        self._every, self._count = every, 0
        self._trim = _trimmer()

    def used(self, size: int) -> bool:
        """Counts bytes of a picture; whether memory was given back just now."""
        self._count += size
        if self._count < self._every or self._trim is None:
            return False
        self._count = 0
        self._trim(0)
        return True


HEAP = Heap()
"""The process's own."""
