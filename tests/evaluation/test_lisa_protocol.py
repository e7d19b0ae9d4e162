"""LISA's way of counting: at the image's own size, and nothing is right where nothing is."""

from __future__ import annotations

import numpy as np
import pytest

from refer_files import write_refer
from ris.data.datasets.refer_files import read_files
from ris.evaluation.answers import sides_of
from ris.evaluation.metrics import Tally
from ris.evaluation.predictions import Prediction
from ris.evaluation.protocols.counting import lisa_metrics
from ris.evaluation.protocols.masks import from_logits, from_mask
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.protocols.truths import OWN
from ris.evaluation.scoring import compared_mask
from ris.runtime.masks import MaskRule, mask_from_logits


def filled(*part: slice) -> np.ndarray:
    mask = np.zeros((20, 30), np.bool_)
    if part:
        mask[part] = True
    return mask


def test_both_figures():
    """One half right, one of nothing and nothing said, one of nothing and something said."""
    tally, half = Tally(), filled(slice(0, 10))
    tally.add(filled(slice(0, 20)), half, refused=False, targeted=True)
    tally.add(filled(), filled(), refused=False, targeted=True)
    tally.add(half, filled(), refused=False, targeted=True)
    found = lisa_metrics(tally.figures())
    assert found["gIoU"] == pytest.approx(100 * (300 / (600 + 1e-5) + 1 + 0) / (3 + 1e-5), abs=1e-9)
    assert found["cIoU"] == pytest.approx(100 * 300 / 900, abs=1e-9)
    assert (found["cum_I"], found["cum_U"], found["count"]) == (300, 900, 3)


def test_a_models_own_mask_is_compared():
    """Not the one that CGFormer's evaluator makes of the same logits."""
    logits = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    rule, size = MaskRule(threshold=0.3), (37, 53)
    own = from_logits(logits, OWN, size, rule)
    np.testing.assert_array_equal(own, mask_from_logits(logits, *size, rule))
    image = from_logits(logits, None, size, rule)
    assert not np.array_equal(own, image)
    answer = Prediction((image,), refused=False, own=own)
    assert compared_mask(answer, OWN, size) is own
    assert compared_mask(answer, None, size) is image
    assert compared_mask(Prediction((image,), False), OWN, size) is image
    assert from_mask(np.ones((8, 8), np.bool_), OWN, size).shape == size
    assert OWN in sides_of("refcoco")


def test_an_object_without_an_outline_is_an_empty_truth(tmp_path):
    write_refer(tmp_path)
    files = read_files(tmp_path, "refcoco", "unc")
    rules = PROTOCOLS["lisa"].rules["refcoco"]
    asked = rules.asking("val").of(files, "val")
    question = asked.asked[0]
    assert question.text == question.text.strip().lower()
    assert rules.truth(question, files).any()
    (number,) = question.annotations
    files.annotations[number]["segmentation"] = []
    again = rules.asking("val").of(files, "val")
    assert question in again.asked
    assert not rules.truth(question, files).any()
    assert (
        question not in PROTOCOLS["cgformer"].rules["refcoco"].asking("val").of(files, "val").asked
    )
