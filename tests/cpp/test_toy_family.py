"""libris answers for a family that it has never heard of, as Python does."""

from __future__ import annotations

import json
import shutil

import numpy as np

from libris_helper import mask_iou
from ris.runtime import load, open_bundle
from ris.runtime.cost import expressions_at_once

ASKED = ["left man", "the red ball", "second car from the right [PAD]"]


def test_its_masks_are_pythons(libris, toy_bundle, picture):
    model = libris.open(toy_bundle)
    with load(toy_bundle, engine="onnxruntime") as python:
        for rgb in (picture, np.ascontiguousarray(picture[:100, ::-1])):
            scene = libris.encode_image(model, rgb)
            answers = libris.ask(scene, ASKED)
            for got, want in zip(
                answers, python.encode_image(rgb).segment_many(ASKED), strict=True
            ):
                np.testing.assert_allclose(got["logits"], want.logits, atol=1e-4)
                assert mask_iou(got["mask"], want.mask) > 0.9999
                assert got["notes"].splitlines() == list(want.notes)
                assert got["no_target"] == -1
            libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_what_it_would_not_open_libris_does_not_either(libris, toy_bundle, tmp_path):
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for file in toy_bundle.iterdir():
        (bundle / file.name).symlink_to(file)
    data = json.loads((toy_bundle / "manifest.json").read_text())
    data["stages"][1]["inputs"][0]["value"] = "features"
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(json.dumps(data))
    said = libris.refusal(bundle)
    assert "is also taken as it is" in said


def test_as_many_expressions_at_once_as_python(internals, toy_bundle, tmp_path):
    """Where the user does not say: a model of 10^12 operations or more a question takes one."""
    data = json.loads((toy_bundle / "manifest.json").read_text())
    [*others, last] = data["stages"]
    folder = tmp_path / "bundle"
    shutil.copytree(toy_bundle, folder)
    for counted, want in ((None, 8), (10**12 - 10**6, 8), (10**12, 1), (1 << 62, 1)):
        operations = counted and {"fixed": 0, "image": 0, "expression": counted}
        data["stages"] = [{**each, "operations": None} for each in others]
        data["stages"] += [{**last, "operations": operations}]
        (folder / "manifest.json").write_text(json.dumps(data))
        manifest = open_bundle(folder, verify=False).manifest
        assert expressions_at_once(manifest) == want
        assert internals.test_expressions_at_once(bytes(folder)) == want
