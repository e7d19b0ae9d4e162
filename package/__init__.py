"""ris-runtime: image + "left man" -> mask, without PyTorch. `ris.runtime.load` opens a model.

The rooms stand beside this folder in the repository and are installed as `ris.runtime`,
`ris.engines` and so on.

Nothing leaves the machine unasked: whoever imports any part of `ris` has the telemetry of both CPU
engines off, unless its own setting says otherwise or the engine was imported before.
"""

import os
import sys
from typing import Any, cast

__version__ = "0.2.0.dev0"

INSTALLS_FROM = "."
"""What pip installs today: a checkout (`.`) or a wheel file. On an index it will be a name."""


def pip_install(*extras: str) -> str:
    """The command that installs these extras, for messages: pip install ".[cpu,export]"."""
    return f'pip install "{INSTALLS_FROM}[{",".join(extras)}]"'


def _silence_engines() -> None:
    """Switches the engines' telemetry off, which both read when they are imported."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    # OpenVINO has no setting but a file in HOME, and is silent where this package is missing
    cast("dict[str, Any]", sys.modules).setdefault("openvino_telemetry", None)


_silence_engines()
