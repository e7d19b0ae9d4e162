"""The server's log: a line of JSON for each request and each event, on standard error."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

from ris.engines.text import shown

FORMATS = ("json", "text")
"""How a line is written."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON; what it carries as `fields` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        data: dict[str, Any] = {
            "time": _time(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "process": record.process,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            data["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return shown(json.dumps(data, ensure_ascii=False, default=str))


class TextFormatter(logging.Formatter):
    """The same for people."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback under it."""
        fields = getattr(record, "fields", {})
        said = " ".join(f"{name}={value!r}" for name, value in fields.items())
        line = f"{_time(record.created)} {record.levelname:7} {record.getMessage()} {said}".rstrip()
        if record.exc_info:
            line += "\n" + "".join(traceback.format_exception(*record.exc_info))
        return shown(line)


def _time(seconds: float) -> str:
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{stamp}.{int(seconds % 1 * 1000):03}Z"


def logging_config(form: str, level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`, in each worker. uvicorn's own lines look alike.

    form: one of `FORMATS`; level: such as "info".
    """
    formatter = JsonFormatter if form == "json" else TextFormatter
    loggers = {
        name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
        for name in ("ris.http", "uvicorn", "uvicorn.error")
    }
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": formatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "stream": "ext://sys.stderr",
            }
        },
        "loggers": loggers,
    }
