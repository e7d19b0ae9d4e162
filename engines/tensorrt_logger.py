"""What TensorRT says while it builds and runs, kept for messages; nothing is printed."""

from __future__ import annotations

from collections import deque
from typing import Any


def make_logger(trt: Any, kept: int | None = None) -> Any:
    """A logger of the module `trt`, with what it heard as attributes.

    kept: the errors that are kept, the last ones; None: all, which a session that lives for months
    cannot afford.

    `layers` is the list of the built engine's layers, from the verbose messages of a build, and
    `errors_in_a_line()` joins the last errors for a message.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: deque[str] = deque(maxlen=kept)
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            elif "LayerType: " in message:
                self.layers = message

        def errors_in_a_line(self) -> str:
            return "; ".join(dict.fromkeys(self.errors)) or "it gave no reason"

    return Logger()
