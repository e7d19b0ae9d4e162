"""A GPU and TensorRT that are not there: plans that ONNX Runtime runs in the doubles' memory.

`tests/cuda_double.py` has the driver. A plan is a line of JSON with the graph's file and shapes, so
the session, its pool, padding, portions and CUDA graphs really run, and the masks are right.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

sys.path.append(str(Path(__file__).parent.parent))
import cuda_double
from ris.engines import cuda, table, tensorrt_build

_DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}


class OnnxEngine(cuda_double.ICudaEngine):
    """An engine whose execution is ONNX Runtime's on the CPU."""

    def __init__(self, runtime: Any, plan: dict[str, Any]) -> None:
        super().__init__(runtime)
        self._session = onnxruntime.InferenceSession(
            plan["onnx"], providers=["CPUExecutionProvider"]
        )
        self._specs = {name: tuple(spec) for name, spec in plan["specs"].items()}
        self._inputs = tuple(plan["inputs"])
        self._outputs = tuple(name for name in self._specs if name not in self._inputs)
        self._names = (*self._inputs, *self._outputs)
        self._largest = {name: tuple(plan["largest"][name]) for name in self._inputs}
        self.num_io_tensors = len(self._names)

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[tuple[int, ...]]:
        return [self._largest[name]] * 3

    def _output_shape(self, name: str, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
        """The shape of an output, whose first axis is that of an input."""
        axes = {
            axis: size
            for given, shape in shapes.items()
            for axis, size in zip(self._specs[given][1], shape, strict=True)
            if isinstance(axis, str)
        }
        return tuple(axes[a] if isinstance(a, str) else a for a in self._specs[name][1])

    def _compute(self, view: Any) -> None:
        feeds = {name: view(name, _DTYPES[self._specs[name][0]]) for name in self._inputs}
        found = self._session.run(list(self._outputs), feeds)
        for name, value in zip(self._outputs, found, strict=True):
            np.copyto(view(name, _DTYPES[self._specs[name][0]]), value)


def write_plan(request: Any, artifact: Path, progress: Any) -> dict[str, Any]:
    """Stands in for `build_plan`."""
    graph = request.graph
    shapes = tensorrt_build.profiles(graph, request.options)
    largest = {s.name: shapes[s.name][2] if s.name in shapes else s.shape for s in graph.inputs}
    plan = {
        "onnx": str(graph.path.resolve()),
        "inputs": [spec.name for spec in graph.inputs],
        "specs": {s.name: [s.dtype, s.shape] for s in (*graph.inputs, *graph.outputs)},
        "largest": largest,
    }
    artifact.write_text(json.dumps(plan), encoding="utf-8")
    return {"layers": {"double": 1}, "fused_attention": 0, "layers_from": "double", "notes": []}


def install() -> None:
    """Puts the doubles in the place of cuda-python and TensorRT, in this process."""
    runtime = cuda_double.Cuda()
    cuda.load = lambda: runtime
    cuda.driver_problem = table.driver_problem = lambda: None
    cuda.gpu_problem = lambda index: None

    class Runtime(cuda_double.Runtime):
        def deserialize_cuda_engine(self, serialized_engine: bytes) -> OnnxEngine:
            return OnnxEngine(runtime, json.loads(serialized_engine))

    module = types.ModuleType("tensorrt")
    module.__spec__ = importlib.machinery.ModuleSpec("tensorrt", None)
    module.__version__ = "0.0"  # type: ignore[attr-defined]
    module.Runtime = Runtime  # type: ignore[attr-defined]
    for name in ("ILogger", "ExecutionContextAllocationStrategy"):
        setattr(module, name, getattr(cuda_double.TensorRt, name))
    sys.modules["tensorrt"] = module
    importlib.import_module("ris.engines.tensorrt").build_plan = write_plan
