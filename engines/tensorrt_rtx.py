"""TensorRT-RTX: the code of `tensorrt` with the module `tensorrt_rtx`.

It compiles without a GPU, for every GPU it runs on. The kernels are made for the GPU at hand when a
plan first runs.
"""

from __future__ import annotations

from typing import ClassVar

from ris.engines.tensorrt import TensorRtEngine


class TensorRtRtxEngine(TensorRtEngine):
    """Compiles ahead of time; opening a plan still needs a driver."""

    name: ClassVar[str] = "tensorrt-rtx"
    title: ClassVar[str] = "TensorRT-RTX"
    package: ClassVar[str] = "tensorrt_rtx"
    ahead_of_time: ClassVar[bool] = True


ENGINE = TensorRtRtxEngine
