"""libris answers with EVF-SAM's bundles as Python does."""

from __future__ import annotations

import numpy as np
import pytest

from golden import inputs
from libris_helper import SCENES, mask_iou
from ris.data.scenes import make_samples, make_scene
from ris.runtime import load

FIRST = 4_000_000  # of scenes that no other test draws
SIZES = ((480, 640), (613, 427), (97, 200), (1200, 801))


def asked(number: int) -> tuple[np.ndarray, list[str]]:
    """A drawn scene, every other one cut to a portrait, and two expressions about it."""
    scene = make_scene(FIRST + number, "train", 160)
    image = scene.image[:, : 100 + number] if number % 2 else scene.image
    samples = make_samples(scene, FIRST + number, 2)
    return np.ascontiguousarray(image), [one.expression for one in samples]


@pytest.fixture
def compared(libris):
    """Asks both about pictures; gives the lowest IoU of libris's masks with Python's."""

    def compare(bundle, pictures):
        model, worst = libris.open(bundle), 1.0
        with load(bundle, engine="onnxruntime") as python:
            for rgb, expressions in pictures:
                scene = libris.encode_image(model, rgb)
                answers = libris.ask(scene, expressions)
                want = python.encode_image(rgb).segment_many(expressions)
                for got, one in zip(answers, want, strict=True):
                    np.testing.assert_allclose(got["logits"], one.logits, atol=1e-3)
                    worst = min(worst, mask_iou(got["mask"], one.mask))
                    assert one.no_target is None
                    assert (got["no_target"], got["is_no_target"]) == (-1, False)
                libris.check(libris.abi.ris_free_scene(scene))
        libris.check(libris.abi.ris_close(model))
        return worst

    return compare


@pytest.mark.parametrize("scenes", SCENES)
@pytest.mark.parametrize("version", ["evfsam", "evfsam2"])
def test_its_masks_are_pythons(compared, version, scenes, request):
    bundle = request.getfixturevalue(f"{version}_bundle")
    assert compared(bundle, map(asked, range(scenes))) >= 0.9999


@pytest.mark.parametrize("version", ["evfsam", "evfsam2"])
def test_so_are_those_of_larger_pictures(compared, version, request):
    """Landscape and portrait, smaller and larger than the letterbox."""
    bundle, words = request.getfixturevalue(f"{version}_bundle"), ["left man", "[semantic] sky"]
    pictures = [(inputs.image(2, *size), words) for size in SIZES]
    assert compared(bundle, pictures) >= 0.9999
