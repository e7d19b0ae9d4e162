"""libris reads a bundle of format 1, and answers as with the built-in one."""

from __future__ import annotations

import numpy as np

from ris.runtime import BUILT_IN

ASKED = ["left man", "the red ball", "[PAD] tree"]


def test_a_bundle_of_format_1_answers_as_the_built_in_one(libris, format_1_bundle, picture):
    answers = []
    for path in (format_1_bundle, BUILT_IN):
        model = libris.open(path)
        scene = libris.encode_image(model, picture)
        answers.append(libris.ask(scene, ASKED))
        libris.check(libris.abi.ris_free_scene(scene))
        libris.check(libris.abi.ris_close(model))
    for old, new in zip(*answers, strict=True):
        np.testing.assert_array_equal(old["logits"], new["logits"])
        np.testing.assert_array_equal(old["mask"], new["mask"])
        assert (old["no_target"], old["notes"]) == (new["no_target"], new["notes"])
