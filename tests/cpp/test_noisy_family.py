"""libris draws the numbers that Python draws, and cuts its letterboxes."""

from __future__ import annotations

import ctypes
import json
import subprocess

import numpy as np
import pytest
from PIL import Image

from libris_helper import mask_iou
from ris.runtime import load

ASKED = ["left man", "the red ball", "second car from the right"]


@pytest.mark.parametrize(
    "how", [{}, {"seed": 0}, {"seed": 12345}, {"seed": 2**31 - 1}, {"draws": 5}]
)
def test_its_masks_are_pythons(libris, noisy_bundle, picture, how):
    model = libris.open(noisy_bundle)
    with load(noisy_bundle, engine="onnxruntime") as python:
        for rgb in (picture, np.ascontiguousarray(picture[:100]), picture[:, :90].copy()):
            scene = libris.encode_image(model, rgb)
            answers = libris.ask(scene, ASKED, **how)
            wanted = python.encode_image(rgb).segment_many(ASKED, **how)
            for got, want in zip(answers, wanted, strict=True):
                np.testing.assert_allclose(got["logits"], want.logits, atol=1e-4)
                assert mask_iou(got["mask"], want.mask) > 0.999
                assert got["score"] == pytest.approx(want.score, abs=1e-4)
            [alone] = libris.ask(scene, ASKED[2:], **how)
            np.testing.assert_allclose(alone["logits"], answers[2]["logits"], atol=1e-5)
            libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))


def test_what_draws_nothing_refuses_both(libris, toy_bundle, picture):
    model = libris.open(toy_bundle)
    scene = libris.encode_image(model, picture)
    for how in ({"seed": 0}, {"draws": 1}):
        with pytest.raises(AssertionError, match="this model draws no random numbers; leave seed"):
            libris.ask(scene, ASKED, **how)
    libris.check(libris.abi.ris_close(model))


@pytest.mark.parametrize(
    ("how", "said"),
    [({"draws": 1001}, "options.draws"), ({"seed": -1}, "options.seed")],
)
def test_what_is_out_of_range_is_refused(libris, noisy_bundle, picture, how, said):
    model = libris.open(noisy_bundle)
    scene = libris.encode_image(model, picture)
    with pytest.raises(AssertionError, match=said):
        libris.ask(scene, ASKED, **how)
    libris.check(libris.abi.ris_close(model))


def test_the_program_takes_every_seed(cpp_build, noisy_bundle, picture, tmp_path):
    Image.fromarray(picture).save(tmp_path / "photo.png")
    program = [cpp_build / "examples" / "ris-infer", noisy_bundle, tmp_path / "photo.png", "man"]

    def run(seed):
        more = ["--out", tmp_path / str(seed), "--seed", str(seed)]
        return subprocess.run([*program, *more], capture_output=True, text=True, check=False)

    assert run(2**31 - 1).returncode == 0
    masks = [next((tmp_path / str(2**31 - 1)).glob("*.mask.png")).read_bytes()]
    assert run(5).returncode == 0
    masks.append(next((tmp_path / "5").glob("*.mask.png")).read_bytes())
    assert masks[0] != masks[1]
    for seed in (2**31, -1):
        refused = run(seed)
        assert refused.returncode == 2
        assert "--seed needs a whole number from 0 to 2147483647" in refused.stderr


def test_info_says_whether_it_draws(libris, noisy_bundle, toy_bundle):

    for bundle, draws in ((noisy_bundle, True), (toy_bundle, False)):
        model, text = libris.open(bundle), ctypes.c_char_p()
        libris.check(libris.abi.ris_info(model, ctypes.byref(text)))
        assert json.loads(text.value)["draws"] is draws
        libris.check(libris.abi.ris_close(model))
