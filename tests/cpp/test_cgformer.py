"""libris answers with CGFormer's bundles as Python does."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from made_up_exports import export_made_up

from conftest import GOLDEN
from golden import inputs
from golden.cgformer.inputs import EXPRESSIONS
from libris_helper import SCENES, mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.reference.cgformer.config import PRESETS
from ris.runtime import load

FIRST = 3_000_000  # of scenes that no other test draws


def asked(number: int) -> tuple[np.ndarray, list[str]]:
    """A drawn scene, and two expressions about it."""
    scene = make_scene(FIRST + number, "train", 160)
    return scene.image, [one.expression for one in make_samples(scene, FIRST + number, 2)]


GOLDEN_PICTURE = inputs.image(0), [text for text, _ in EXPRESSIONS.values()]


@pytest.fixture
def compared(libris):
    """Asks both about pictures; gives libris's answers, and the lowest IoU of masks with Python's.

    Each picture comes with its expressions; the answers are those about the last one.
    """

    def compare(bundle, pictures, **how):
        model, worst, answers = libris.open(bundle), 1.0, []
        with load(bundle, engine="onnxruntime") as python:
            for rgb, expressions in pictures:
                scene = libris.encode_image(model, rgb)
                answers = libris.ask(scene, expressions, **how)
                want = python.encode_image(rgb).segment_many(expressions, **how)
                for got, one in zip(answers, want, strict=True):
                    np.testing.assert_allclose(got["logits"], one.logits, atol=1e-4)
                    worst = min(worst, mask_iou(got["mask"], one.mask))
                libris.check(libris.abi.ris_free_scene(scene))
        libris.check(libris.abi.ris_close(model))
        return answers, worst

    return compare


@pytest.mark.parametrize("scenes", SCENES)
def test_its_masks_are_pythons(compared, cgformer_bundle, scenes):
    assert compared(cgformer_bundle, map(asked, range(scenes)))[1] >= 0.9999


@pytest.mark.parametrize("how", [{"seed": 5, "draws": 3}, {"seed": 2**31 - 1}, {}])
def test_so_are_those_of_drawn_places(compared, cgformer_sampled_bundle, how):
    """With the same noise, and the mean of several draws."""
    assert compared(cgformer_sampled_bundle, map(asked, range(10)), **how)[1] >= 0.9999


def test_the_golden_picture(compared, cgformer_bundle):
    """A photograph's size."""
    assert compared(cgformer_bundle, [GOLDEN_PICTURE])[1] >= 0.9999


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_the_golden_mask_at_full_size(compared, tmp_path):
    """What the authors' code gave, too: the made-up weights are those of its golden files."""
    folder = export_made_up(tmp_path, PRESETS["cgformer"], family="cgformer")
    golden = np.load(GOLDEN / "cgformer" / "e2e_seed0.npz")
    answers, worst = compared(folder, [GOLDEN_PICTURE])
    shutil.rmtree(folder)
    assert worst >= 0.9999
    for name, answer in zip(EXPRESSIONS, answers, strict=True):
        height, width = answer["mask"].shape
        bits = np.unpackbits(golden[f"{name}_expected_mask_bits"], count=height * width)
        assert (answer["mask"].ravel() != bits.astype(bool)).sum() <= 50
