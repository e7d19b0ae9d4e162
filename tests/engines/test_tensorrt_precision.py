"""What precision a plan's layers have, as TensorRT tells it; and which of them are attentions."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ris.engines import Graph
from ris.engines.tensorrt_precision import (
    Layer,
    count_precisions,
    fused_attention,
    layers_from_json,
    layers_from_log,
)


@pytest.mark.parametrize("key", ["Datatype", "Format/Datatype"])
def test_layers_from_the_inspector(key):
    """TensorRT 11's JSON and 10's, as documented; neither can be made without a GPU."""
    half = "Half" if key == "Datatype" else "Row major linear FP16 format"
    entry = {
        "Name": "gemm_1",
        "LayerType": "gemm",
        "Inputs": [{"Name": "a", key: half}],
        "Outputs": [{"Name": "b", key: "Float"}],
        "Metadata": "[ONNX Layer: one]\x1e[ONNX Layer: two]",
    }
    expected = Layer(
        "gemm_1", "gemm", frozenset({"fp16"}), frozenset({"fp32"}), frozenset({"one", "two"})
    )
    assert layers_from_json(json.dumps({"Layers": [entry]})) == [expected]
    assert layers_from_json(json.dumps({"Layers": ["gemm_1"]})) == []  # names only
    assert layers_from_json("nothing") == []


def test_layers_from_the_log():
    line = (
        "Name: mm, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,4], Datatype: Float,"
        " Format: (Linear) x }], Constants: [ { Name: w, Datatype: Half }], Outputs: [ { Name: b,"
        " Datatype: Float }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: node_1]"
    )
    (layer,) = layers_from_log(f"Layers:\n{line}\n\nI/O Tensors:\n Name: a, IOMode: Input")
    assert layer == Layer(
        "mm", "gemm", frozenset({"fp32"}), frozenset({"fp32"}), frozenset({"node_1"})
    )
    graph = Graph("fusion", None, (), (), precision="fp16")
    assert count_precisions([layer], graph).unexpected == ("mm",)
    island = dataclasses.replace(graph, fp32_islands=frozenset({"node_1"}))
    assert count_precisions([layer], island) == count_precisions(
        [layer], dataclasses.replace(graph, precision="fp32")
    )
    cast = dataclasses.replace(layer, reads=frozenset({"fp16"}))
    assert not count_precisions([cast], graph).unexpected
    reformat = Layer("reformat", "reformat", frozenset({"fp32"}), frozenset({"fp32"}), frozenset())
    assert not count_precisions([reformat], graph).unexpected


FP32, FP16 = frozenset({"fp32"}), frozenset({"fp16"})


@pytest.mark.parametrize(
    ("name", "kind", "is_matrix"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to /neck/conv2d + bias", "Reformat", False),
        ("Reformatting CopyNode for Output Tensor 0 to node_MatMul_3", "NoOp", False),
        ("__myl_MoveReplConc_myl0_10", "kgen", False),
        ("__myl_ConvertCast_myl0_1", "kgen", False),
        ("node_Conv_18_myl0_3", "correlation", True),
        ("node_Conv_18", "CaskConvolution", True),
        ("node_MatMul_5", "CaskGemmMatrixMultiply", True),
        ("node_MatMul_5_myl0_4", "gemm", True),
        ("__myl_FcAddDivErfAddMulMul_myl0_15", "runtime_fusion", True),
        ("{ForeignNode[a...b]}", "Myelin", False),
    ],
)
def test_a_product_is_known_by_its_kind_and_not_by_the_name_of_its_neighbour(name, kind, is_matrix):
    layer = Layer(name, kind, FP32, FP32, frozenset())
    assert layer.is_matrix == is_matrix
    graph = Graph("fusion", None, (), (), precision="fp16")
    narrow = [Layer(f"gemm_{i}", "gemm", FP16, FP16, frozenset()) for i in range(3)]
    counted = count_precisions([layer, *narrow], graph)
    assert counted.unexpected == ((name,) if is_matrix else ())
    assert not counted.ignored
    assert count_precisions([layer], graph).ignored == is_matrix


def test_attention_in_one_layer_is_counted():
    nodes = frozenset({"node_MatMul_3", "node_Softmax_4", "node_matmul_5"})
    whole = Layer("__myl_FcMulSoftFc_myl0_3", "runtime_fusion", FP16, FP16, nodes)
    named = Layer("_gemm_mha_v2_myl0_7", "kgen", FP16, FP16, frozenset())
    half = Layer("__myl_MaxrSubExpSumDiv_myl0_4", "kgen", FP16, FP16, frozenset({"node_softmax"}))
    gemm = Layer("node_MatMul_9", "gemm", FP16, FP16, frozenset({"node_MatMul_9"}))
    assert fused_attention([whole, named, half, gemm]) == 2
