"""Values that one graph hands to another in FP16, and are too large for it."""

from __future__ import annotations

import hashlib
import json
import shutil

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper
from PIL import Image

from ris.calibration.command import main
from ris.calibration.numerics import FP16_MAX, read_ranges
from ris.calibration.numerics.edges import EdgeRange, Edges, edge_sources

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
KEYS = "prefix_keys"


def graph_of(*nodes):
    """A model whose output `y` is FP16, and `z` FP32."""
    outputs = [
        helper.make_tensor_value_info(name, kind, ["n"])
        for name, kind in (("y", HALF), ("z", FULL))
    ]
    return helper.make_model(helper.make_graph(nodes, "g", [], outputs))


def test_what_becomes_fp16_is_found_behind_joins():
    model = graph_of(
        helper.make_node("Cast", ["a"], ["a.half"], to=HALF),
        helper.make_node("Cast", ["b"], ["b.half"], to=HALF),
        helper.make_node("Unsqueeze", ["b.half", "axes"], ["b.row"]),
        helper.make_node("Mul", ["c", "c"], ["c.half"]),
        helper.make_node("Concat", ["a.half", "b.row", "c.half"], ["y"], axis=0),
        helper.make_node("Mul", ["a", "b"], ["z"]),
    )
    assert {name: sorted(found) for name, found in edge_sources(model).items()} == {
        "y": ["a", "b", "c.half"]
    }


def test_the_sample_that_had_the_largest_is_named_and_nan_is_the_largest():
    edges = Edges({"y": ["a", "b"], "w": ["unknown"]}, ["a", "other", "b", "w"])
    for picture, seen in (("one", [1, 99, 2, 5]), ("two", [1, 99, 9, 4]), ("three", [3, 1, 3, 1])):
        edges.look(np.array(seen, float), picture)
    assert edges.found == {"y": EdgeRange(9.0, "two"), "w": EdgeRange(5.0, "one")}
    edges.look(np.array([np.nan, 0, 0, 0]), "four")
    edges.look(np.array([99.0, 0, 0, 0]), "five")
    assert edges.found["y"].picture == "four"


def scaled_keys(bundle, folder, factor):
    """A copy of a bundle of LISA's whose keys of a picture are that much larger, in one layer."""
    shutil.copytree(bundle, folder)
    path = folder / "graphs" / "language_prefix.onnx"
    model = onnx.load(path, load_external_data=False)
    makers = {name: node for node in model.graph.node for name in node.output}
    source = edge_sources(model)[KEYS][0]
    while (node := makers[source]).op_type != "MatMul":
        source = node.input[0]
    scale = makers[node.input[1]].input[1]  # of DequantizeLinear
    [tensor] = [one for one in model.graph.initializer if one.name == scale]
    place = {entry.key: entry.value for entry in tensor.external_data}
    data, offset = path.parent / place["location"], int(place["offset"])
    before = hashlib.sha256(data.read_bytes()).hexdigest()
    count = int(place["length"]) // 4
    np.memmap(data, np.float32, "r+", offset, (count,))[:] *= np.float32(factor)
    after = hashlib.sha256(data.read_bytes()).hexdigest()
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace(before, after))
    return folder


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Two, of which the second gives other keys."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, largest in (("dark.png", 2), ("bright.png", 256)):
        Image.fromarray(rng.integers(0, largest, (60, 80, 3), dtype=np.uint8)).save(name)
    return ["dark.png", "bright.png", "-e", "left man"]


def test_a_kept_value_beyond_fp16_is_named_with_its_picture_and_the_way_out(
    lisa_narrow_bundle, tmp_path, pictures
):
    """Of a bundle that computes in FP32."""
    wide = scaled_keys(lisa_narrow_bundle, tmp_path / "wide", 1e6)
    done = CliRunner().invoke(main, ["ranges", str(wide), *pictures, "--out", "ranges.json"])
    assert done.exit_code == 0, done.output
    edge = read_ranges(tmp_path / "ranges.json").edges["language_prefix"][KEYS]
    assert FP16_MAX < edge.largest < np.inf
    assert edge.picture in pictures[:2]
    assert (
        f"language_prefix: {KEYS} reaches {edge.largest:.4g} on {edge.picture} and is handed on in"
        " FP16, where it is infinite; export again with --fp32 language_prefix, which keeps it FP32"
    ) in done.output
    assert "prefix_values reaches" not in done.output


@pytest.mark.parametrize("precision", ["narrow", "half", "bf16"])
def test_kept_values_that_fp16_holds_are_not_named(request, precision, pictures):
    bundle = request.getfixturevalue(f"lisa_{precision}_bundle")
    done = CliRunner().invoke(main, ["ranges", str(bundle), *pictures, "--json"])
    assert done.exit_code == 0, done.output
    edges = json.loads(done.stdout)["edges"]
    assert set(edges) == {"language_prefix"}
    assert set(edges["language_prefix"]) == {KEYS, "prefix_values"}
    assert all(0 < edge["largest"] < FP16_MAX for edge in edges["language_prefix"].values())
    done = CliRunner().invoke(main, ["ranges", str(bundle), *pictures])
    assert "handed on in FP16" not in done.output
