"""A session over the doubles of CUDA and TensorRT: its fixtures, how it is opened, fed, looked at.

Files whose tests take the fixtures name it as a plugin of pytest.
"""

from __future__ import annotations

import numpy as np
import pytest

from cuda_double import Cuda, ICudaEngine, TensorRt
from ris.engines import Graph, SessionInfo, TensorSpec
from ris.engines.tensorrt_session import Plan, open_session


@pytest.fixture
def cuda():
    return Cuda()


@pytest.fixture
def engine(cuda, monkeypatch):
    engine = ICudaEngine(cuda)
    monkeypatch.setattr(TensorRt, "engine", engine, raising=False)
    return engine


@pytest.fixture
def graph(tmp_path):
    x = TensorSpec("x", "float32", ("images", 4))
    index = TensorSpec("index", "int32", ("expressions",))
    y = TensorSpec("y", "float32", ("images", 4))
    return Graph("fusion", tmp_path / "fusion.onnx", (x, index), (y,))


def open_it(cuda, graph, plan=b"good", refit=None, device="cuda", **options):
    info = SessionInfo("tensorrt", "10.16", device, ("TensorRT",))
    return open_session(TensorRt, cuda, graph, info, Plan(plan, refit, **options))


def feeds(n=1, index=1, fill=1.0):
    return {"x": np.full((n, 4), fill, np.float32), "index": np.array([index], np.int32)}


def buffers(cuda):
    """The number of the smallest blocks: inputs, outputs and kept values, no scratch memory."""
    return sum(len(block) == 512 for block in cuda.device.values())
