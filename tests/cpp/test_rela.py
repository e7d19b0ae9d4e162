"""libris answers with ReLA's bundle as Python does."""

from __future__ import annotations

import numpy as np
import pytest

from libris_helper import mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.runtime import load

FIRST = 2_000_000  # of scenes that no other test draws
SCENES = 100


def asked(number: int) -> tuple[np.ndarray, list[str]]:
    """A drawn scene, and two expressions about it."""
    scene = make_scene(FIRST + number, "train", 160)
    return scene.image, [one.expression for one in make_samples(scene, FIRST + number, 2)]


def test_its_masks_are_pythons(libris, rela_bundle):
    """On drawn scenes: logits, masks, and whether there is a target."""
    model = libris.open(rela_bundle)
    worst = 1.0
    with load(rela_bundle, engine="onnxruntime") as python:
        for i in range(SCENES):
            rgb, expressions = asked(i)
            scene = libris.encode_image(model, rgb)
            answers = libris.ask(scene, expressions)
            want = python.encode_image(rgb).segment_many(expressions)
            for got, one in zip(answers, want, strict=True):
                np.testing.assert_allclose(got["logits"], one.logits, atol=1e-4)
                worst = min(worst, mask_iou(got["mask"], one.mask))
                assert got["no_target"] == pytest.approx(one.no_target, abs=1e-4)
            libris.check(libris.abi.ris_free_scene(scene))
    libris.check(libris.abi.ris_close(model))
    assert worst >= 0.9999
