"""How fast this machine multiplies matrices, by precision: the floor under a model's time.

Each library that is here multiplies matrices of a large layer's shape, 2048 x 1024 by 1024 x 4096:
numpy in FP32, OpenVINO and, where it is installed, PyTorch in FP32, bfloat16 and INT8. A library
that would compute in another precision than it was asked for, or in plain loops, is left out.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from ris.runtime.reference import pytorch_products

M, K, N = 2048, 1024, 4096
"""The shapes: [M, K] by [K, N]."""

OPERATIONS = 2 * M * K * N
"""The operations of one product: a multiplication and an addition for each pair of values."""

_REPEATS = 3

Product = Callable[[], Any]
"""A call that computes one product."""


def products(threads: int | None) -> dict[tuple[str, str], Product]:
    """A call for each precision and library that are here: ("bf16", "openvino"), ..."""
    rng = np.random.default_rng(0)
    left = rng.uniform(-1, 1, (M, K)).astype(np.float32)
    right = rng.uniform(-1, 1, (N, K)).astype(np.float32)
    across = np.ascontiguousarray(right.T)

    found: dict[tuple[str, str], Product] = {("fp32", "numpy"): lambda: left @ across}
    if importlib.util.find_spec("openvino"):
        for precision in ("fp32", "bf16", "int8"):
            if product := _openvino(precision, left, right, threads):
                found[precision, "openvino"] = product
    if importlib.util.find_spec("torch"):
        torch_products = pytorch_products().products(left, right, threads)
        found |= {(precision, "torch"): product for precision, product in torch_products.items()}
    return found


def measure(calls: dict[tuple[str, str], Product]) -> dict[str, dict[str, list[float]]]:
    """Operations a second, by precision and library, of a few products each."""
    found: dict[str, dict[str, list[float]]] = {}
    for (precision, library), product in calls.items():
        rates = found.setdefault(precision, {}).setdefault(library, [])
        for _ in range(_REPEATS):
            start = time.perf_counter()
            product()
            rates.append(OPERATIONS / (time.perf_counter() - start))
    return found


def _openvino(
    precision: str, left: np.ndarray, right: np.ndarray, threads: int | None
) -> Product | None:
    """OpenVINO's product; None where it does not compute in this precision here, or wrongly.

    Args:
        precision: "fp32", "bf16" or "int8".
        left: float32 [M, K].
        right: float32 [N, K].
        threads: CPU threads. None: all cores.
    """
    import openvino

    from ris.engines.openvino import int8_overflows, main_precision

    if precision == "int8" and int8_overflows():
        return None
    settings: dict[str, Any] = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    model = _openvino_model(right, quantised=precision == "int8")
    try:
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        if main_precision([compiled]) != precision:
            return None
        request = compiled.create_infer_request()
        request.infer({0: left}, share_inputs=True)
    except RuntimeError:
        return None
    return lambda: request.infer({0: left}, share_inputs=True, share_outputs=True)


def _openvino_model(right: np.ndarray, quantised: bool) -> Any:
    """A model of one product with `right`; both factors are quantised to INT8 where asked for."""
    import openvino
    from openvino import opset13 as ops

    given: Any = ops.parameter([M, K], np.float32)
    values, weights = given, ops.constant(right)
    if quantised:
        low, high = np.float32(-1), np.float32(1)
        values = ops.fake_quantize(given, low, high, low, high, 256)
        weights = ops.fake_quantize(weights, low, high, low, high, 255)
    return openvino.Model([ops.matmul(values, weights, False, True)], [given])
