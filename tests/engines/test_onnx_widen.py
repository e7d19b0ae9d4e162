"""An FP16 bundle on ONNX Runtime's CPU: the kernels of an FP32 one, with the FP16 weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from ris.engines.errors import EngineError
from ris.engines.onnx_widen import widened
from ris.engines.wire import raw_fields
from ris.runtime import load, open_bundle
from ris.runtime.parity import check_model, load_golden

HALF = ("sam_image_encoder", "clip_image_encoder", "fusion")


def kernels(model, tmp_path, folder=None):
    """What ONNX Runtime makes of a graph, by operator."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    if folder:
        entry = "session.model_external_initializers_file_folder_path"
        options.add_session_config_entry(entry, str(folder))
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx", load_external_data=False)
    return Counter(node.op_type for node in optimised.graph.node)


def half_weights(graph):
    half = onnx.TensorProto.FLOAT16
    return {tensor.name for tensor in graph.initializer if tensor.data_type == half}


@pytest.mark.parametrize("stage", HALF)
def test_the_kernels_are_those_of_fp32(tiny_bundle, tiny_fp16_bundle, tmp_path, stage):
    half = open_bundle(tiny_fp16_bundle).graph(stage)
    want = kernels(str(open_bundle(tiny_bundle).graph(stage).path), tmp_path)
    got = kernels(widened(half.path), tmp_path, half.path.parent)
    for operator in ("MatMul", "FusedMatMul", "Gemm", "Conv", "Softmax"):
        assert got[operator] == want[operator], operator
    norms = [count["LayerNormalization"] + count["SkipLayerNormalization"] for count in (got, want)]
    assert norms[0] == norms[1]
    assert got.total() < 1.1 * want.total()
    assert got["Cast"] < want["Cast"] + 5


def test_weights_are_the_fp16_ones(tiny_fp16_bundle):
    path = open_bundle(tiny_fp16_bundle).graph("sam_image_encoder").path
    before = onnx.load(path, load_external_data=False).graph
    after = onnx.load_from_string(widened(path)).graph
    assert half_weights(after) == {f"{name}.fp16" for name in half_weights(before)}
    casts = [node for node in after.node if node.op_type == "Cast"]
    targets = [a.i for cast in casts for a in cast.attribute if a.name == "to"]
    assert onnx.TensorProto.FLOAT16 not in targets


def test_the_masks_are_right(tiny_fp16_bundle):
    with load(tiny_fp16_bundle, engine="onnxruntime") as model:
        assert {info.precision for info in model.sessions.values()} == {"fp32"}
        report = check_model(model, load_golden(model.bundle))
        assert report.failures == ()
        # the weights are rounded
        assert 1e-5 < report.rows["sam_image_encoder.image_embeddings"].relative < 2e-3


def test_what_is_no_onnx(tmp_path):
    (tmp_path / "a.onnx").write_bytes(b"\x3a\xff\xff")
    with pytest.raises(EngineError, match=r"a\.onnx is not an ONNX file"):
        widened(tmp_path / "a.onnx")


def test_fields_are_given_back_byte_for_byte(tiny_fp16_bundle):
    data = open_bundle(tiny_fp16_bundle).graph("fusion").path.read_bytes()
    assert b"".join(raw for _, _, raw in raw_fields(data)) == data
    np.testing.assert_equal(list(raw_fields(b"")), [])
