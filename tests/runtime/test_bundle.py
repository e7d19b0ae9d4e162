"""A bundle is what its schema says; all that is damaged is named at once and nothing is loaded."""

from __future__ import annotations

import json
import shutil

import jsonschema
import pytest

from conftest import REPO
from ris.runtime import BundleError, load, open_bundle
from ris.runtime.manifest import FORMAT_VERSION, manifest_from_dict


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
    schema = json.loads((REPO / "runtime" / "manifest.schema.json").read_text())
    text = (request.getfixturevalue(name) / "manifest.json").read_text()
    jsonschema.validate(json.loads(text), schema)
    manifest = manifest_from_dict(json.loads(text))
    assert manifest.to_json() == text  # nothing is lost on the way, and keys are sorted


def test_a_bundle_says_everything_a_reader_needs(tiny_bundle):
    manifest = open_bundle(tiny_bundle).manifest
    assert manifest.format_version == FORMAT_VERSION
    assert not manifest.source.trained
    assert manifest.source.seed == 0
    assert manifest.dense_prompt.grid == 12
    assert manifest.dense_prompt.target == 16
    assert manifest.dense_prompt.interpolation == "bicubic"
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
        (lambda m: m.pop("text"), "text is missing"),
        (lambda m: m["graphs"].pop("fusion"), "no graph fusion"),
        (
            lambda m: m.update(precision="fp8"),
            "precision should be 'fp32' or 'bf16' or 'fp16' or 'int8', found 'fp8'",
        ),
        (lambda m: m["dense_prompt"].update(grid="12"), "dense_prompt.grid should be a whole"),
        (lambda m: m["dense_prompt"].update(interpolation="nearest"), "'bilinear' or 'bicubic'"),
        (
            lambda m: m["preprocess"]["sam"].update(size=True),
            "preprocess.sam.size should be a whole number",
        ),
        (
            lambda m: m["graphs"]["fusion"].update(inputs={}),
            "graphs.fusion.inputs should be a list",
        ),
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
