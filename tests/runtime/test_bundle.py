"""A bundle is what its schema says; all that is damaged is named at once and nothing is loaded."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jsonschema
import numpy as np
import pytest
from stages import BF16_STAGES, STAGES

from conftest import REPO
from ris.engines import TensorSpec
from ris.runtime import BUILT_IN, BundleError, load, manifest, open_bundle
from ris.runtime.manifest import FORMAT_VERSION, Resize, manifest_from_dict
from ris.runtime.manifest_kinds import Taken
from ris.runtime.manifest_source import ComponentFile, Published
from ris.runtime.manifest_weights import StoredWeights
from ris.runtime.parity import check_model, load_golden

SCHEMA = json.loads((REPO / "runtime" / "manifest.schema.json").read_text())


def edit(bundle, change):
    path = bundle / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name",
    [
        "tiny_bundle",
        "tiny_bf16_bundle",
        "tiny_fp16_bundle",
        "tiny_category_bundle",
        "tiny_supplement_bundle",
    ],
)
def test_manifests_follow_the_schema(name, request):
    text = (request.getfixturevalue(name) / "manifest.json").read_text()
    jsonschema.validate(json.loads(text), SCHEMA)
    # nothing is lost on the way, and keys are sorted
    assert manifest_from_dict(json.loads(text)).to_json() == text


def test_the_schema_and_the_reader_know_the_same_fields():
    """And the same of them may be absent."""
    definitions = SCHEMA["$defs"]
    host = SCHEMA["properties"]["host"]["properties"]
    source = SCHEMA["properties"]["source"]
    kinds = {
        manifest.Manifest: SCHEMA,
        manifest.Host: SCHEMA["properties"]["host"],
        manifest.Text: host["text"],
        manifest.Categories: host["categories"]["anyOf"][1],
        manifest.Resize: host["resizes"]["additionalProperties"],
        manifest.Drawn: host["drawn"]["additionalProperties"],
        manifest.HostImage: definitions["image"],
        manifest.GraphEntry: definitions["stage"],
        StoredWeights: definitions["stage"]["properties"]["weights"]["anyOf"][1],
        manifest.Answer: SCHEMA["properties"]["answer"],
        manifest.Source: source,
        ComponentFile: source["properties"]["components"]["items"],
        Published: source["properties"]["published"]["anyOf"][1],
        Taken: definitions["input"],
        TensorSpec: definitions["output"],
    }
    for kind, schema in kinds.items():
        fields = dataclasses.fields(kind)
        assert {field.name for field in fields} == set(schema["properties"]), kind
        none = dataclasses.MISSING
        required = {f.name for f in fields if f.default is f.default_factory is none}
        assert required == set(schema["required"]), kind


def test_a_manifest_of_format_1_is_one_of_format_2(format_1_bundle):
    """Written again it follows the schema, and says the same."""
    read = open_bundle(format_1_bundle).manifest
    text = read.to_json()
    jsonschema.validate(json.loads(text), SCHEMA)
    assert manifest_from_dict(json.loads(text)) == read
    assert read.format_version == FORMAT_VERSION
    assert read.family == "dfam"
    assert tuple(read.graphs) == tuple(s for s in STAGES if s != "image_features")
    assert tuple(s.name for s in read.stages if s.bfloat16) == BF16_STAGES
    assert read.host.images["sam_image"].mean == pytest.approx((123.675, 116.28, 103.53))


def test_a_bundle_of_format_1_answers_as_the_built_in_one(format_1_bundle, picture):
    """To the bit, and it carries its own reference."""
    expressions = ["left man", "the red ball", "[PAD] tree"]
    answers = []
    for path in (format_1_bundle, BUILT_IN):
        with load(path, engine="onnxruntime") as model:
            assert not check_model(model, load_golden(model.bundle)).failures
            answers.append(model.encode_image(picture).segment_many(expressions))
    for old, new in zip(*answers, strict=True):
        np.testing.assert_array_equal(old.logits, new.logits)
        assert (old.no_target, old.notes) == (new.no_target, new.notes)


def test_a_bundle_says_everything_a_reader_needs(tiny_bundle):
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.format_version == FORMAT_VERSION
    assert not manifest.source.trained
    assert manifest.source.seed == 0
    assert manifest.family == "dfam"
    assert manifest.host.resizes == {"dense_embedding": Resize("dense_prompt", 16, "bicubic")}
    assert manifest.graphs["fusion"].outputs[0].shape[2:] == (12, 12)
    assert manifest.graphs["text_encoder"].inputs[0].dtype == "int32"
    assert manifest.graphs["mask_decoder"].outputs[0].shape == ("expressions", 1, 64, 64)
    assert manifest.mask_iou >= 0.9999
    files = {p.relative_to(tiny_bundle).as_posix() for p in tiny_bundle.rglob("*") if p.is_file()}
    # engines keep what they compile beside the bundle's own files
    own = {name for name in files if not name.startswith("engines/")}
    assert own == set(open_bundle(tiny_bundle).hashes()) | {"manifest.json"}


def test_missing_and_flipped_files_are_reported_together(bundle_copy):
    (bundle_copy / "graphs" / "fusion.onnx").unlink()
    data = bundle_copy / "graphs" / "sam_image_encoder.onnx.data"
    raw = bytearray(data.read_bytes())
    raw[1000] ^= 1
    data.write_bytes(raw)
    with pytest.raises(BundleError) as caught:
        load(bundle_copy)
    message = str(caught.value)
    assert "graphs/fusion.onnx is missing" in message
    assert "graphs/sam_image_encoder.onnx.data is not the file that was exported" in message
    assert "\n" not in message


def test_swapped_files(bundle_copy):
    graphs = bundle_copy / "graphs"
    (graphs / "fusion.onnx").rename(graphs / "x")
    (graphs / "mask_decoder.onnx").rename(graphs / "fusion.onnx")
    (graphs / "x").rename(graphs / "mask_decoder.onnx")
    both = r"fusion\.onnx is not the file.*mask_decoder\.onnx is not the file"
    with pytest.raises(BundleError, match=both):
        load(bundle_copy)


def test_hashes_are_skipped_only_on_request(bundle_copy):
    (bundle_copy / "golden.npz").write_bytes(b"changed")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        load(bundle_copy)
    load(bundle_copy, verify=False).close()
    (bundle_copy / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"golden\.npz is missing"):
        load(bundle_copy, verify=False)


def test_a_newer_format_says_what_to_do(bundle_copy):
    edit(bundle_copy, lambda m: m.update(format_version=FORMAT_VERSION + 1, something_new={}))
    with pytest.raises(BundleError, match="upgrade ris-runtime"):
        load(bundle_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["host"].pop("text"), "host.text is missing"),
        (
            lambda m: m["stages"].pop(STAGES.index("fusion")),
            "the stage 'mask_decoder' takes the value 'sparse_prompt', which nothing gives",
        ),
        (
            lambda m: m.update(precision="fp8"),
            "precision should be 'fp32' or 'bf16' or 'fp16' or 'int8', found 'fp8'",
        ),
        (
            lambda m: m["host"]["resizes"]["dense_embedding"].update(size="16"),
            "host.resizes.dense_embedding.size should be a whole",
        ),
        (
            lambda m: m["host"]["resizes"]["dense_embedding"].update(interpolation="nearest"),
            "'bilinear' or 'bicubic'",
        ),
        (
            lambda m: m["host"]["images"]["sam_image"].update(size=True),
            "host.images.sam_image.size should be a whole number",
        ),
        (lambda m: m["stages"][3].update(inputs={}), "stages.3.inputs should be a list"),
        (lambda m: m["files"].update({"../outside": "0" * 64}), "the name of a file inside"),
    ],
)
def test_a_damaged_manifest_names_the_field(bundle_copy, change, message):
    edit(bundle_copy, change)
    with pytest.raises(BundleError, match=message):
        load(bundle_copy)


def test_what_is_no_bundle(tmp_path, bundle_copy):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    cases = {"nothing": "no such bundle", "file": "is a file", "folder": "has no manifest.json"}
    for name, message in cases.items():
        with pytest.raises(BundleError, match=message):
            load(tmp_path / name)
    (bundle_copy / "manifest.json").write_text('{"format_version": 1,')
    with pytest.raises(BundleError, match="cannot be read"):
        load(bundle_copy)
    (bundle_copy / "manifest.json").write_text("[]")
    with pytest.raises(BundleError, match="should be an object"):
        load(bundle_copy)


def test_a_bundle_may_be_moved_and_read_only(tiny_bundle, tmp_path):
    copy = shutil.copytree(tiny_bundle, tmp_path / "elsewhere" / "b")
    for path in copy.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    load(copy).close()
