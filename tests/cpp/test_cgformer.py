"""libris answers with CGFormer's bundles as Python does."""

from __future__ import annotations

import numpy as np
import pytest

from libris_helper import mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.runtime import load

FIRST = 3_000_000  # of scenes that no other test draws


def asked(number: int) -> tuple[np.ndarray, list[str]]:
    """A drawn scene, and two expressions about it."""
    scene = make_scene(FIRST + number, "train", 160)
    return scene.image, [one.expression for one in make_samples(scene, FIRST + number, 2)]


@pytest.fixture
def compared(libris):
    """Asks both about drawn scenes; gives the lowest IoU of their masks."""

    def compare(bundle, scenes, **how):
        model, worst = libris.open(bundle), 1.0
        with load(bundle, engine="onnxruntime") as python:
            for i in range(scenes):
                rgb, expressions = asked(i)
                scene = libris.encode_image(model, rgb)
                answers = libris.ask(scene, expressions, **how)
                want = python.encode_image(rgb).segment_many(expressions, **how)
                for got, one in zip(answers, want, strict=True):
                    np.testing.assert_allclose(got["logits"], one.logits, atol=1e-4)
                    worst = min(worst, mask_iou(got["mask"], one.mask))
                libris.check(libris.abi.ris_free_scene(scene))
        libris.check(libris.abi.ris_close(model))
        return worst

    return compare


def test_its_masks_are_pythons(compared, cgformer_bundle):
    assert compared(cgformer_bundle, 100) >= 0.9999


def test_so_are_those_of_drawn_places(compared, cgformer_sampled_bundle):
    """With the same noise, and the mean of several draws."""
    assert compared(cgformer_sampled_bundle, 10, seed=5, draws=3) >= 0.9999
