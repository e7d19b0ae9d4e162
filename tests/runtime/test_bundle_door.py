"""What a bundle's reader refuses at the door: one sentence, and nothing of it is opened."""

from __future__ import annotations

import json
import shutil

import jsonschema
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import bad_manifests
from conftest import REPO
from ris.runtime import BundleError, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.dfam.format_1 import as_format_2
from ris.runtime.host import HostSide
from ris.runtime.onnx_weights import data_files, inputs_and_outputs


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("name", bad_manifests.CASES)
def test_one_sentence_for_each_bad_manifest(tmp_path, name, verify):
    case = bad_manifests.CASES[name]
    bundle = bad_manifests.write(case, tmp_path)
    if not case["expect"]:
        open_bundle(bundle, verify=verify)
        return
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle, verify=verify)
    message = str(caught.value)
    assert any(fragment in message for fragment in case["expect"]), message
    assert message.startswith(str(bundle))
    assert "\n" not in message
    assert len(message) < len(str(bundle)) + 1000
    message.encode()


def test_a_table_of_another_width_than_is_taken(tmp_path):
    bundle = bad_manifests.with_table(tmp_path, width=3, taken=4)
    opened = open_bundle(bundle, graphs=False)
    with pytest.raises(BundleError, match=r"categories\.npy has rows of 3 numbers, .* takes 4;"):
        HostSide(opened)
    features = np.ones((1, 4), np.float32)
    np.save(bundle / "categories.npy", features)
    np.testing.assert_array_equal(HostSide(opened).asked([0])["category_feature"], features)


IN_SCHEMA = ("hashed name: ", "unchanged", "a weight file of a part")
NAMES = [name for name in bad_manifests.CASES if name.startswith(IN_SCHEMA)]


@pytest.mark.parametrize("name", NAMES)
def test_the_schema_knows_the_same_names(tmp_path, name):
    schema = json.loads((REPO / "runtime" / "manifest.schema.json").read_text())
    case = bad_manifests.CASES[name]
    manifest = json.loads((bad_manifests.write(case, tmp_path) / "manifest.json").read_text())
    if manifest["format_version"] == 1:
        manifest = as_format_2(manifest)  # the schema is of this format alone
    assert jsonschema.Draft202012Validator(schema).is_valid(manifest) == (not case["expect"])


@pytest.fixture
def demo_copy(tmp_path):
    return shutil.copytree(bad_manifests.DEMO, tmp_path / "copy")


def keeps_a_tensor_in(model, location, place):
    """Has a graph name a data file, at one of the places where a tensor may lie."""
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    attribute = helper.make_attribute("value", helper.make_tensor("v", 1, [1], [0.0]))
    attribute.t.CopyFrom(tensor)
    inner = helper.make_graph([], "inner", [], [], [tensor])
    if place == "initialiser":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(onnx.NodeProto(op_type="Constant", attribute=[attribute]))
    elif place == "branch":
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=inner))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    elif place == "function":
        model.functions.add().node.append(onnx.NodeProto(attribute=[attribute]))


@pytest.mark.parametrize("place", ["initialiser", "constant", "branch", "sparse", "function"])
@pytest.mark.parametrize("location", ["../../secret", "/etc/hostname", "other.data", "./x", ""])
def test_a_graph_opens_only_data_files_that_were_hashed(demo_copy, place, location):
    path = demo_copy / "graphs" / "fusion.onnx"
    model = onnx.load(path, load_external_data=False)
    keeps_a_tensor_in(model, location, place)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((demo_copy / "manifest.json").read_text())
    entry = next(stage for stage in manifest["stages"] if stage["name"] == "fusion")
    entry["sha256"]["graphs/fusion.onnx"] = sha256_of(path)
    (demo_copy / "manifest.json").write_text(json.dumps(manifest))
    sentence = f"graphs/fusion.onnx keeps weights in {location!r}, which has no sha256"
    for verify in (True, False):
        with pytest.raises(BundleError) as caught:
            open_bundle(demo_copy, verify=verify)
        assert sentence in str(caught.value)


def test_the_data_files_of_a_graph(tmp_path):
    for path in (bad_manifests.DEMO / "graphs").glob("*.onnx"):
        assert data_files(path) == [f"{path.name}.data"]
    (tmp_path / "a.onnx").write_bytes(b"<net name='x'/>")
    with pytest.raises(BundleError, match="not an ONNX file"):
        data_files(tmp_path / "a.onnx")
    # a tag of more than 32 bits, which some readers cut to that of the graph
    (tmp_path / "a.onnx").write_bytes(b"\xba\x80\x80\x80\x10\x02\x08\x01")
    with pytest.raises(BundleError, match="not an ONNX file"):
        data_files(tmp_path / "a.onnx")


def test_the_inputs_and_outputs_of_a_graph(tmp_path):
    for path in (bad_manifests.DEMO / "graphs").glob("*.onnx"):
        graph = onnx.load(path, load_external_data=False).graph
        names = sorted(value.name for value in (*graph.input, *graph.output))
        assert inputs_and_outputs(path) == names
    (tmp_path / "a.onnx").write_bytes(b"<net name='x'/>")
    with pytest.raises(BundleError, match="not an ONNX file"):
        inputs_and_outputs(tmp_path / "a.onnx")


def test_a_bundle_of_links_opens(tmp_path):
    """As Hugging Face's cache lays bundles: every file is a link out of the folder."""
    copy = tmp_path / "linked"
    for path in bad_manifests.DEMO.rglob("*"):
        place = copy / path.relative_to(bad_manifests.DEMO)
        if path.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    assert open_bundle(copy).path == copy


def test_a_file_that_cannot_be_read_is_named(demo_copy):
    """A link to itself stands for what the file system refuses; root may read any file."""
    (demo_copy / "golden.npz").unlink()
    (demo_copy / "golden.npz").symlink_to("golden.npz")
    with pytest.raises(BundleError, match=r"golden\.npz (is missing|cannot be read)"):
        open_bundle(demo_copy)


def test_no_more_than_a_few_problems_are_said_in_full(demo_copy):
    manifest = json.loads((demo_copy / "manifest.json").read_text())
    manifest["files"] |= {f"{i}.bin": "0" * 64 for i in range(100)}
    (demo_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="; and 88 more") as caught:
        open_bundle(demo_copy)
    assert str(caught.value).count("is missing") == 12


def test_long_names_in_a_manifest_make_no_long_sentence(demo_copy):
    manifest = json.loads((demo_copy / "manifest.json").read_text())
    manifest["files"] |= {f"{i}\x1b" + "x" * 240: "0" * 64 for i in range(100)}
    manifest["writer"] = {f"{i}\n" + "x" * 10_000: i for i in range(100)}
    (demo_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"writer\.0.*; and \d+ more") as caught:
        open_bundle(demo_copy)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(demo_copy)) + 800
