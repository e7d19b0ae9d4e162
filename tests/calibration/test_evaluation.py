"""The metrics by hand, the samples, and `ris-eval` on a bundle and on the PyTorch model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from refer_files import write_refer

from ris.calibration.datasets import read_refer
from ris.calibration.evaluation.command import main
from ris.calibration.evaluation.metrics import Figures, iou
from ris.calibration.evaluation.run import Answer, evaluate
from ris.calibration.evaluation.samples import refer_images, scene_images

HALF, FULL, EMPTY = np.array([[1, 0]], bool), np.array([[1, 1]], bool), np.zeros((1, 2), bool)


def test_figures_by_hand():
    figures = Figures()
    figures.add(FULL, FULL, False, True)  # IoU 1
    figures.add(HALF, FULL, False, True)  # IoU 1/2: not above 0.5
    figures.add(FULL, FULL, True, True)  # refused though it is there
    figures.add(HALF, EMPTY, True, False)  # rightly refused
    figures.add(HALF, EMPTY, False, False)  # should have been refused
    found = figures.summary()
    assert found["samples"] == 5
    assert found["miou"] == pytest.approx(2.5 / 3)
    assert found["precision_0.5"] == pytest.approx(2 / 3)
    assert found["oiou"] == pytest.approx(5 / 6)
    assert (found["t_acc"], found["n_acc"]) == (pytest.approx(2 / 3), 0.5)
    assert found["giou"] == pytest.approx((1 + 0.5 + 0 + 1 + 0) / 5)
    # intersections 2 + 1 + 0 + 0 + 0; unions 2 + 2 + 2 (the truth alone) + 0 + 1
    assert found["ciou"] == pytest.approx(3 / 7)


def test_edges():
    assert Figures().summary() == {"samples": 0}
    assert iou(EMPTY, EMPTY) == 1.0
    assert iou(HALF, EMPTY) == 0.0
    only = Figures()
    only.add(EMPTY, EMPTY, True, False)
    assert only.summary() == {"samples": 1, "giou": 1.0, "ciou": 1.0, "n_acc": 1.0}


class Knows:
    """Answers everything with its truth, or, where `deaf`, with what the unmirrored expression means."""

    def __init__(self, images, deaf=False):
        self.answers = {}
        for image in images:
            for truth in image.truths:
                self.answers[image.rgb.tobytes(), truth.expression] = Answer(truth.mask, float(not truth.targeted))
            for truth in image.truths:
                if truth.mirrored:
                    text, mask = truth.mirrored
                    self.answers.setdefault((image.rgb.tobytes(), text), Answer(truth.mask if deaf else mask, 0.0))

    def answer(self, rgb, expressions, categories):
        return [self.answers[rgb.tobytes(), text] for text in expressions]


def test_a_perfect_model_scores_one_and_a_deaf_one_is_found_out():
    images = list(scene_images("heldout", 60))
    assert sum(len(image.truths) for image in images) == 60
    found = evaluate(Knows(images), images)
    assert set(found.kinds["all"].values()) == {60.0, 1.0}
    assert sum(figures["samples"] for figures in found.kinds.values()) == 120
    assert found.mirrored.pairs > 3
    assert (found.mirrored.right, found.mirrored.moved) == (1.0, 1.0)
    deaf = evaluate(Knows(images, deaf=True), images)
    assert deaf.mirrored.moved < 0.2
    assert deaf.mirrored.right == pytest.approx(0.5, abs=0.1)


def test_data_sets_come_at_their_own_size(tmp_path):
    write_refer(tmp_path, "grefcoco")
    images = list(refer_images(read_refer(tmp_path, "grefcoco", "val")))
    assert [image.name[-6:] for image in images] == ["02.jpg", "04.jpg", "06.jpg"]
    assert {truth.mask.shape for image in images for truth in image.truths} == {(96, 120)}
    assert {truth.targeted for truth in images[0].truths} == {True, False}


def run(*arguments):
    result = CliRunner().invoke(main, [*map(str, arguments), "--json"])
    return result.exit_code, result.stdout, result.stderr


def test_a_bundle_scores_what_its_reference_scores(tmp_path, tiny_bundle):
    """The same made-up weights through the runtime and through PyTorch: the same figures."""
    from ris.reference.config import PRESETS
    from ris.reference.deterministic import deterministic_model

    weights = tmp_path / "tiny.pth"
    model = deterministic_model(PRESETS["tiny"])
    torch.save({"model": model.state_dict(), "ris_config": PRESETS["tiny"].to_dict()}, weights)
    code, text, err = run(tiny_bundle, "--samples", 20)
    assert code == 0, err
    ours = json.loads(text)
    code, text, err = run("--pytorch", "--checkpoint", weights, "--samples", 20)
    assert code == 0, err
    theirs = json.loads(text)
    assert ours["kinds"].keys() == theirs["kinds"].keys()
    for kind, figures in ours["kinds"].items():
        assert figures == pytest.approx(theirs["kinds"][kind], abs=2e-3), kind


def test_a_category_bundle_on_a_data_set(tmp_path, tiny_category_bundle):
    write_refer(tmp_path)
    code, text, err = run(tiny_category_bundle, "--data", "refcoco", "--root", tmp_path)
    assert code == 0, err
    figures = json.loads(text)["kinds"]["all"]
    assert figures["samples"] == 12
    assert "n_acc" not in figures


def test_the_table_says_what_its_columns_mean(tiny_bundle):
    result = CliRunner().invoke(main, [str(tiny_bundle), "--samples", "8"])
    assert result.exit_code == 0, result.output
    assert "miou: mean IoU over targeted expressions" in result.output


def test_bad_input_is_a_sentence(tmp_path, tiny_bundle):
    for arguments, words in (
        ((tiny_bundle, "--pytorch"), "not both"),
        ((tiny_bundle, "--checkpoint", "x.pth"), "need --pytorch"),
        ((tiny_bundle, "--data", "refcoco"), "needs --root"),
        ((tiny_bundle, "--root", tmp_path), "draws its own images"),
        ((tiny_bundle, "--split", "testA"), "train and heldout"),
        (("--pytorch",), "no weight files were given"),
        ((tiny_bundle, "--data", "refcoco", "--root", tmp_path), "list of references is missing"),
    ):
        code, _, err = run(*arguments)
        assert (code, words in err) == (2, True), err
