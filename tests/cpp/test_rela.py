"""libris answers with ReLA's bundle as Python does."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from made_up_exports import export_made_up

from golden import inputs
from libris_helper import REPO, SCENES, mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.reference.preprocess import resize_to_square
from ris.reference.rela.config import PRESETS
from ris.runtime import load
from ris.runtime.masks import mask_from_logits

FIRST = 2_000_000  # of scenes that no other test draws
NEVER, SOME = 1.0, 0.36  # thresholds: nothing is refused, and about half of the drawn questions


def compared(libris, model, python, rgb, expressions, threshold=NEVER):
    """libris's answers, and the lowest IoU of a mask with Python's."""
    scene = libris.encode_image(model, rgb)
    answers = libris.ask(scene, expressions, threshold=threshold)
    libris.check(libris.abi.ris_free_scene(scene))
    scene = python.encode_image(rgb)
    wanted = scene.segment_many(expressions, no_target_threshold=threshold)
    for got, want in zip(answers, wanted, strict=True):
        level = np.sqrt(np.square(want.logits).mean())
        np.testing.assert_allclose(got["logits"], want.logits, atol=max(1e-4, 1e-4 * level))
        assert got["no_target"] == pytest.approx(want.no_target, abs=1e-4)
        assert got["is_no_target"] == want.is_no_target
        assert bool(got["mask"].any()) != got["is_no_target"]
    pairs = zip(answers, wanted, strict=True)
    return answers, min(mask_iou(got["mask"], want.mask) for got, want in pairs)


@pytest.mark.parametrize("scenes", SCENES)
def test_its_masks_are_pythons(libris, rela_bundle, scenes):
    """On drawn scenes: logits, masks, and whether there is a target."""
    model = libris.open(rela_bundle)
    worst, refused = 1.0, set()
    with load(rela_bundle, engine="onnxruntime") as python:
        for number in range(FIRST, FIRST + scenes):
            scene = make_scene(number, "train", 160)
            expressions = [one.expression for one in make_samples(scene, number, 2)]
            threshold = SOME if number % 4 == 0 else NEVER
            answers, iou = compared(libris, model, python, scene.image, expressions, threshold)
            worst = min(worst, iou)
            refused |= {(threshold, one["is_no_target"]) for one in answers}
    libris.check(libris.abi.ris_close(model))
    assert worst >= 0.9999
    assert refused == {(NEVER, False), (SOME, False), (SOME, True)}


def test_the_golden_picture(libris, rela_bundle):
    """A photograph's size, and all of the golden expressions together."""
    expressions = [text for text, *_ in inputs.EXPRESSIONS.values()]
    model = libris.open(rela_bundle)
    with load(rela_bundle, engine="onnxruntime") as python:
        _, iou = compared(libris, model, python, inputs.image(0), expressions)
    libris.check(libris.abi.ris_close(model))
    assert iou >= 0.9999


@pytest.mark.full
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("size", ["tiny", "base"])
def test_the_golden_mask_at_full_size(libris, size, tmp_path):
    """What the authors' code gave, too: the made-up weights are those of its golden files.

    Their mask has 480x480 pixels, as a picture of that size gives it: it is not resized any more.
    """
    config = replace(PRESETS[f"rela-swin-{size}"], lang_weight="stored")
    folder = export_made_up(tmp_path, config, family="rela")
    golden = np.load(REPO / "tests" / "golden" / "rela" / f"e2e_swin_{size}_seed0.npz")
    want = np.unpackbits(golden["mask_bits"]).reshape(480, 480).astype(bool)
    model = libris.open(folder)
    with load(folder, engine="onnxruntime") as python:
        expressions = [inputs.EXPRESSIONS[0][0]]
        [wide], iou = compared(libris, model, python, inputs.image(0), expressions)
        square = resize_to_square(inputs.image(0), 480)
        [answer], other_iou = compared(libris, model, python, square, expressions)
    libris.check(libris.abi.ris_close(model))
    shutil.rmtree(folder)
    assert min(iou, other_iou) >= 0.9999
    assert mask_iou(mask_from_logits(wide["logits"], 480, 480), want) >= 0.9999
    assert mask_iou(answer["mask"], want) >= 0.9999
