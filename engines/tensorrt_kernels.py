"""What TensorRT-RTX compiles at run time, kept from process to process.

Its plans hold no kernels for a GPU: they are made when shapes are first used, in seconds. Kernels
are code, so a file of them is believed only where this user's key vouches for it (`trust`), as for
a plan. Keeping them is no more than a saving of time: where it fails nothing is said.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from ris.engines.errors import EngineError
from ris.engines.temporary import write_atomically
from ris.engines.trust import distrust, seal, unsafe_owner
from ris.engines.user_folders import make

_LONGEST_LINE = 4096


class Kernels:
    """The kernels of one loaded plan; nothing for TensorRT, whose plans have theirs."""

    runtime_config: Any
    """The IRuntimeConfig that every context of the plan is made with; None for TensorRT."""

    def __init__(self, trt: Any, engine: Any, file: Path | None) -> None:
        """Makes the configuration and gives it what the file has.

        Args:
            trt: The module `tensorrt` or `tensorrt_rtx`.
            engine: The plan's ICudaEngine.
            file: Where they are kept; None keeps nothing.
        """
        self.runtime_config = None
        self._runtime_cache: Any = None
        self._file, self._size, self._new = file, 0, False
        if not hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
            return

        # by default kernels are made in the background; a captured graph would keep the slow ones
        # that a context starts with
        runtime_config = engine.create_runtime_config()
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        runtime_config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        user_managed = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        runtime_config.set_execution_context_allocation_strategy(user_managed)
        self.runtime_config = runtime_config
        if file is not None:
            runtime_cache = runtime_config.create_runtime_cache()
            data = read_kernels(file)
            if data and runtime_cache.deserialize(data):
                self._size = len(data)
            if runtime_config.set_runtime_cache(runtime_cache):
                self._runtime_cache = runtime_cache

    def keep_later(self) -> None:
        """New shapes will run, for which kernels are made."""
        self._new = True

    def keep(self) -> None:
        """Writes the file, where kernels were made since."""
        if not self._new or self._runtime_cache is None or self._file is None:
            return
        self._new = False
        data = bytes(self._runtime_cache.serialize())
        if len(data) != self._size:
            self._size = len(data)
            write_kernels(self._file, data)


def read_kernels(file: Path) -> bytes | None:
    """What `write_kernels` wrote; None where there is nothing, or nothing to be trusted."""
    try:
        with file.open("rb") as source:
            if unsafe_owner(os.fstat(source.fileno())):
                return None
            about = json.loads(source.readline(_LONGEST_LINE))
            data = source.read()
        if not isinstance(about, dict) or about.get("name") != file.name or distrust(about):
            return None
    except (OSError, ValueError, RecursionError, EngineError):
        return None
    return data if hashlib.sha256(data).hexdigest() == about.get("sha256") else None


def write_kernels(file: Path, data: bytes) -> None:
    """Writes the kernels, with a line before them that this user's key vouches for.

    Writes nothing where the folder cannot be written.
    """
    about = {"name": file.name, "sha256": hashlib.sha256(data).hexdigest()}
    with contextlib.suppress(OSError, EngineError):
        line = json.dumps(seal(about)).encode() + b"\n"
        make(file.parent)
        write_atomically(file, lambda target: target.write(line + data))
        file.chmod(0o600)
