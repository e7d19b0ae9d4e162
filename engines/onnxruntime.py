"""ONNX Runtime: the portable default. Providers are explicit and checked after creation; nothing falls back unseen.

ONNX Runtime reads the bundle's graphs as they are, so there is nothing to compile. Only the CPU has been run so far;
"cuda" selects the CUDA provider and is refused where it is not really there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ris.engines.base import (
    Compiled,
    DeviceValue,
    Engine,
    EngineOptions,
    Graph,
    Progress,
    Session,
    SessionInfo,
    Value,
    first_line,
    silent,
)
from ris.engines.errors import EngineError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def _usable_cores() -> int:
    """The cores this process may use, which in a container are fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


class OnnxRuntimeSession(Session):
    """One InferenceSession. ONNX Runtime allows `run` from several threads."""

    def __init__(self, graph: Graph, info: SessionInfo, session: Any) -> None:
        super().__init__(graph, info)
        self._session = session
        self._outputs = [spec.name for spec in graph.outputs]

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        session = self._session
        if session is None:
            raise EngineError(f"{self.graph.stage}: the session is closed; load the bundle again")
        try:
            arrays = {k: v.numpy() if isinstance(v, DeviceValue) else v for k, v in feeds.items()}
            values = session.run(self._outputs, arrays)
        except Exception as error:
            raise EngineError(f"{self.graph.stage}: ONNX Runtime failed: {first_line(error)}") from error
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        self._session = None


class OnnxRuntimeEngine(Engine):
    """Opens ONNX files on the CPU or the CUDA provider."""

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        self._provider = _PROVIDERS[options.device]
        available = onnxruntime.get_available_providers()
        if self._provider not in available:
            raise EngineError(
                f"this onnxruntime has no {self._provider} (it has {', '.join(available)}); for a GPU install "
                '"ris-runtime[gpu]" in an environment without "ris-runtime[cpu]"'
            )

    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The graph's own file."""
        return Compiled(graph.path, {}, 0.0, built_now=False)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """Loads the graph and checks that the provider that was asked for is the one that runs."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # planning one block for all activations doubles SAM's memory (7.0 against 3.8 GB at full size, batch 1)
        options.enable_mem_pattern = False
        # idle threads of one graph would spin on the cores that the next graph and the host need
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.intra_op_num_threads = self.options.threads or _usable_cores()
        providers = [self._provider]
        if self.options.device != "cpu":
            if self.options.strict:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            else:
                providers.append("CPUExecutionProvider")  # shape arithmetic belongs there; the rest is checked below
        try:
            session = onnxruntime.InferenceSession(str(artifact), options, providers=providers)
        except Exception as error:
            raise EngineError(f"{graph.stage}: ONNX Runtime cannot open {artifact}: {first_line(error)}") from error
        running = tuple(session.get_providers())
        if running[0] != self._provider:
            raise EngineError(
                f"{graph.stage}: {self._provider} was asked for and did not start (running: {', '.join(running)}); "
                "check the GPU driver, or ask for --device cpu"
            )
        info = SessionInfo("onnxruntime", onnxruntime.__version__, self.options.device, running)
        return OnnxRuntimeSession(graph, info, session)


ENGINE = OnnxRuntimeEngine
