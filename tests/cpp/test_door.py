"""What libris refuses at the door: what Python does, by the same list of bad manifests."""

from __future__ import annotations

import json
import re
import shutil

import onnx
import pytest
from onnx import TensorProto, helper

import bad_manifests
from ris.runtime import BundleError, open_bundle
from ris.runtime.bundle import sha256_of

CASES = [case for case in bad_manifests.CASES.values() if not case.get("python_only")]
OWN_FORM = [case for case in CASES if case.get("format") == 2 and case["expect"]]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_bad_manifests_are_refused_as_in_python(libris, tmp_path, case, verify):
    sentence = libris.refusal(bad_manifests.write(case, tmp_path), verify=verify)
    if case["expect"]:
        assert any(fragment in sentence for fragment in case["expect"]), sentence
        assert len(sentence) < len(str(tmp_path)) + 1500
        assert "\n" not in sentence
    else:
        assert sentence == ""


def said(message):
    """What is wrong with a manifest, less what each language quotes in its own way."""
    [damage] = re.fullmatch(r".* is damaged: (.*); export the bundle again", message).groups()
    return [sentence.split(", found ")[0] for sentence in damage.split("; ")]


@pytest.mark.parametrize("case", OWN_FORM, ids=lambda case: case["name"])
def test_the_sentences_are_pythons(libris, tmp_path, case):
    bundle = bad_manifests.write(case, tmp_path)
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert said(libris.refusal(bundle)) == said(str(caught.value))


def test_a_table_of_another_width_than_is_taken(libris, tmp_path):
    bundle = bad_manifests.with_table(tmp_path, width=3, taken=4)
    path = bundle / "categories.npy"
    wanted = f"{path} has rows of 3 numbers, the stage 'text_encoder' takes 4; export the bundle"
    assert wanted in libris.refusal(bundle)


def demo_with_fusion(folder, content):
    """A copy of the demo with these bytes for a graph, and their hash in the manifest."""
    bundle = shutil.copytree(bad_manifests.DEMO, folder / "copy")
    path = bundle / "graphs" / "fusion.onnx"
    path.write_bytes(content)
    manifest = json.loads((bundle / "manifest.json").read_text())
    [fusion] = [stage for stage in manifest["stages"] if stage["name"] == "fusion"]
    fusion["sha256"]["graphs/fusion.onnx"] = sha256_of(path)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    return bundle


@pytest.mark.parametrize("location", ["../../secret", "/etc/hostname", "other.data", "./x", ""])
@pytest.mark.parametrize("place", ["initialiser", "constant", "branch", "sparse", "function"])
def test_a_graph_opens_only_data_files_that_were_hashed(libris, tmp_path, place, location):
    model = onnx.load(bad_manifests.DEMO / "graphs" / "fusion.onnx", load_external_data=False)
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    attribute = helper.make_attribute("value", helper.make_tensor("v", 1, [1], [0.0]))
    attribute.t.CopyFrom(tensor)
    if place == "initialiser":
        model.graph.initializer.append(tensor)
    elif place == "constant":
        model.graph.node.append(onnx.NodeProto(op_type="Constant", attribute=[attribute]))
    elif place == "branch":
        inner = helper.make_graph([], "inner", [], [], [tensor])
        model.graph.node.append(helper.make_node("If", ["c"], ["o"], then_branch=inner))
    elif place == "sparse":
        model.graph.sparse_initializer.add().values.CopyFrom(tensor)
    else:
        model.functions.add().node.append(onnx.NodeProto(attribute=[attribute]))
    bundle = demo_with_fusion(tmp_path, model.SerializeToString())
    for verify in (True, False):
        sentence = libris.refusal(bundle, verify=verify)
        assert f"graphs/fusion.onnx keeps weights in '{location}', which has no" in sentence


def nested(depth):
    """An ONNX file with graphs in graphs."""
    content = b""

    def field(number, data):
        size, head = len(data), bytes([number << 3 | 2])
        while size > 127:
            head, size = head + bytes([size & 127 | 128]), size >> 7
        return head + bytes([size]) + data

    for _ in range(depth):
        content = field(1, field(5, field(6, content)))  # node, attribute, graph
    return field(7, content)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<net name='x'/>",
        b"\xba\x80\x80\x80\x10\x02\x08\x01",  # a tag of more than 32 bits
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",  # a length of 2**63
        nested(20000),
    ],
    ids=["empty", "text", "a long tag", "a long message", "deep"],
)
def test_what_is_no_graph_is_one_sentence(libris, tmp_path, content):
    sentence = libris.refusal(demo_with_fusion(tmp_path, content))
    assert "fusion.onnx" in sentence
    assert "\n" not in sentence
