"""Rewriting a model before OpenVINO compiles it: cut in two, and with its weights turned around."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino
from openvino import opset13 as opset


def turn_weights(model: Any) -> None:
    """Stores the weights of products transposed, as fully connected layers read them.

    OpenVINO makes such layers of products. Left to itself, it keeps the weights both ways.
    """
    turned: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_b"]:
            continue
        weight = node.input_value(1).get_node()
        stored = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
        if stored.get_type_name() != "Constant" or len(stored.get_output_shape(0)) != 2:
            continue

        # two products may share a weight
        name = weight.get_friendly_name()
        if name not in turned:
            dtype = weight.get_output_element_type(0).to_dtype()
            turned[name] = opset.constant(np.ascontiguousarray(_values(stored).T, dtype))
        transpose_a = node.get_attributes()["transpose_a"]
        product = opset.matmul(node.input_value(0), turned[name], transpose_a, True)
        _replace(node, product)


def hold_joins(model: Any) -> None:
    """Keeps what quantises joined values behind the Concat that joins them.

    OpenVINO 2026.4 quantises each of the values instead, as unsigned levels around 128, and a
    convolution of the joined levels then loses a third of its result; a Relu between does not keep
    it from that. Left where it is, the step is right, and the convolution is INT8 all the same. A
    maximum with the least number is what holds it: OpenVINO takes a Clamp or an addition of 0 for
    nothing.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "FakeQuantize" and _is_joined(node.input_value(0).get_node()):
            value = node.input_value(0)
            least = opset.constant(np.finfo(np.float32).min, value.get_element_type())
            node.input(0).replace_source_output(opset.maximum(value, least).output(0))


def has_as_many_heads_as_queries(model: Any) -> bool:
    """Whether a product of the model takes as many rows as there are heads.

    OpenVINO 2026.4 takes the one for the other in such an attention where every shape is known: the
    transposition of [n, queries, heads, d] is done twice or not at all, in bfloat16 or in FP32,
    depending on what stands before the product. With an open first axis it is right in both.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Transpose":
            continue
        shape, order = node.get_output_partial_shape(0), node.input_value(1).get_node()
        if shape.rank.is_dynamic or len(shape) != 4 or order.get_type_name() != "Constant":
            continue
        swaps = order.data.tolist() == [0, 2, 1, 3]
        if swaps and shape[1].is_static and shape[1] == shape[2] and shape[1].get_length() > 1:
            return True
    return False


def _is_joined(node: Any) -> bool:
    """Whether it is a Concat, or made of nothing but one and constants, by no product."""
    while node.get_type_name() not in ("Concat", "Convolution", "GroupConvolution", "MatMul"):
        made_of = [value.get_node() for value in node.input_values()]
        others = [one for one in made_of if one.get_type_name() != "Constant"]
        if len(others) != 1:
            return False
        [node] = others
    return bool(node.get_type_name() == "Concat")


def _values(constant: Any) -> np.ndarray:
    """The values of a constant; those of bfloat16, which numpy does not have, as float32."""
    values: np.ndarray = constant.data
    if constant.get_output_element_type(0) == openvino.Type.bf16:
        return (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return values


def _replace(node: Any, other: Any) -> None:
    """Gives the other node the names of `node` and everything that reads it."""
    other.set_friendly_name(node.get_friendly_name())
    other.output(0).set_names(node.output(0).get_names())
    for reader in node.output(0).get_target_inputs():
        reader.replace_source_output(other.output(0))


def split(model: Any, name: str) -> list[Any]:
    """The model in two parts, cut at the value called `name`.

    The first part is what that value depends on, and the outputs that do not depend on it. The
    second is the rest, which takes the value as an input of its name. Where the model has no such
    value, it is the only part.
    """
    ports = _ports(model, name)
    if not ports:
        return [model]

    rest = model.clone()
    [port] = _ports(rest, name)
    given = opset.parameter(port.get_partial_shape(), port.get_element_type(), name)
    for consumer in port.get_target_inputs():
        consumer.replace_source_output(given.output(0))
    given.output(0).set_names({name})

    after = given.get_friendly_name()
    later = [result for result in rest.get_results() if after in _ancestors(result)]
    names = {output for result in later for output in result.output(0).get_names()}
    before = [
        result for result in model.get_results() if names.isdisjoint(result.output(0).get_names())
    ]
    cut = opset.result(ports[0])
    return [
        _model([*before, cut], model.get_parameters()),
        _model(later, [*rest.get_parameters(), given]),
    ]


def _ports(model: Any, name: str) -> list[Any]:
    """The outputs of the model's nodes that have this name."""
    return [
        port
        for node in model.get_ordered_ops()
        for port in node.outputs()
        if name in port.get_names()
    ]


def _model(results: list[Any], parameters: list[Any]) -> Any:
    """A model of these results, with those of the parameters that they need."""
    needed = set().union(*(_ancestors(result) for result in results))
    return openvino.Model(results, [one for one in parameters if one.get_friendly_name() in needed])


def _ancestors(node: Any) -> set[str]:
    """The names of a node and of those it depends on."""
    found, left = set(), [node]
    while left:
        one = left.pop()
        if one.get_friendly_name() not in found:
            found.add(one.get_friendly_name())
            left += [source.get_source_output().get_node() for source in one.inputs()]
    return found
