"""Python's own watchdog, which ends a process that does not come back."""

from __future__ import annotations

import faulthandler

_FOR_EVER = 1e6  # seconds; it takes no infinity
_STDERR = 2


def end_after(seconds: float) -> None:
    """Ends this process, with each thread's traceback, unless `let_live` is called before.

    It needs no lock of Python's, which a library may hold. There is one for a process: a later call
    takes the place of an earlier one.
    """
    bounded = seconds if seconds < _FOR_EVER else _FOR_EVER  # also where it is no number
    faulthandler.dump_traceback_later(bounded, exit=True, file=_STDERR)


def let_live() -> None:
    """The process is ended no more."""
    faulthandler.cancel_dump_traceback_later()
