"""Pillow's warnings, off while pictures are read.

They are of a picture's other parts, and of sizes, for which the reader has its own limit.
"""

from __future__ import annotations

import threading
import warnings
from types import TracebackType


class QuietPillow:
    """A context in which Pillow warns of nothing; other warnings are as the user has them.

    Threads may be in it at the same time. `warnings.catch_warnings` alone restores what the first
    of them changed when the second has already saved it, and so leaves it changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._caught = warnings.catch_warnings()

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._caught = warnings.catch_warnings()
                self._caught.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._caught.__exit__(kind, error, traceback)


quiet_pillow = QuietPillow()
"""The one that the readers share."""
