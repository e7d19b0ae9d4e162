"""What OpenVINO really runs: the precision of a compiled graph's layers, and by trial the rest.

That is whether INT8 overflows, and how fast bfloat16 is.
"""

from __future__ import annotations

import functools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as opset

# of precisions: theirs, ours
_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8", "i4": "int4", "u4": "int4"}
_SIDE, _TRIES = 1024, 10  # of the product that is timed
_NO_WORK = ("Input", "Output", "Const", "Reorder", "")

PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")
"""The kinds of layers that are matrix products and convolutions."""


@functools.cache
def int8_overflows() -> bool:
    """Whether OpenVINO's INT8 products on this CPU lose what does not fit into 16 bits.

    A product of 127s is tried.
    """
    rows, length, columns = 16, 64, 32
    x = opset.parameter([rows, length], np.float32)
    quantised = opset.fake_quantize(x, *(np.float32(end) for end in (-128, 127, -128, 127)), 256)
    weights = opset.convert(opset.constant(np.full((columns, length), 127, np.int8)), np.float32)
    scaled = opset.multiply(weights, np.ones((columns, 1), np.float32))
    product = opset.matmul(quantised, scaled, False, True)
    model = openvino.Model([product], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(np.full((rows, length), 127, np.float32))[0]
    return bool((found != length * 127 * 127).any())


@functools.cache
def bf16_gain() -> float:
    """How many times as fast as in FP32 one thread multiplies in bfloat16 on this CPU.

    The features do not say it: with AMX it is several times, with avx512_bf16 alone twice on some
    CPUs and slower than FP32 on others. So a product of a large layer's shape is timed, in turns.
    """
    rng = np.random.default_rng(0)
    left, right = (rng.uniform(-1, 1, (_SIDE, _SIDE)).astype(np.float32) for _ in range(2))
    x = opset.parameter([_SIDE, _SIDE], np.float32)
    model = openvino.Model([opset.matmul(x, opset.constant(right), False, True)], [x])
    requests = []
    for hint in ("f32", "bf16"):
        settings = {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": 1}
        compiled = openvino.Core().compile_model(model, "CPU", settings)
        requests.append(compiled.create_infer_request())
    seconds = []
    for _ in range(1 + _TRIES):  # the first of each is not counted
        for request in requests:
            start = time.perf_counter()
            request.infer({0: left}, share_inputs=True, share_outputs=True)
            seconds.append(time.perf_counter() - start)
    return min(seconds[2::2]) / min(seconds[3::2])


def layers(compiled: Sequence[Any], narrow_in: str | None = None) -> dict[str, int]:
    """The number of layers of compiled graphs by precision, most first.

    narrow_in: What layers compute in that OpenVINO calls INT8 or INT4 for their weights alone; None
        where it means what it says.
    """
    running = _running(compiled, narrow_in)
    return dict(Counter(precision for _, _, precision in running).most_common())


def main_precision(compiled: Sequence[Any], narrow_in: str | None = None) -> str | None:
    """The precision of most of the work in matrix products and convolutions; None without any.

    A layer's work is the number of its results. For a product it is multiplied by the length of
    each sum, that of its input's rows, where that is known. `narrow_in` is as in `layers`.
    """
    work: Counter[str] = Counter()
    for node, kind, precision in _running(compiled, narrow_in):
        if kind in PRODUCTS:
            sizes = [_size(node.output(0).get_partial_shape())]
            if kind in ("FullyConnected", "MatMul"):
                sizes.append(_size(node.input(0).get_partial_shape()[-1:]))
            work[precision] += int(np.prod(sizes, dtype=np.float64))
    return work.most_common(1)[0][0] if work else None


def _running(compiled: Sequence[Any], narrow_in: str | None) -> Iterator[tuple[Any, str, str]]:
    """The layers of compiled graphs that compute something: node, kind and precision."""
    for part in compiled:
        for node in part.get_runtime_model().get_ordered_ops():
            about = node.get_rt_info()
            kind = _text(about, "layerType")
            if kind in _NO_WORK:
                continue
            precision = _text(about, "runtimePrecision", "unknown")
            name = _NAMES.get(precision, precision)
            if narrow_in is not None and name in ("int8", "int4"):
                name = narrow_in
            yield node, kind, name


def _text(about: Any, name: str, otherwise: str = "") -> str:
    """An entry of a node's runtime information; `otherwise` where there is none."""
    return str(about[name].astype(str)) if name in about else otherwise


def _size(shape: Any) -> int:
    """The number of elements; axes of unknown length count as 1."""
    lengths = [1 if axis.is_dynamic else axis.get_length() for axis in shape]
    return int(np.prod(lengths, dtype=np.int64))
