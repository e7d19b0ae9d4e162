"""The counting of scenes by hand and against independent implementations, edges included."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from ris.evaluation.metrics import SCENES, Figures, Tally

HALF, FULL, EMPTY = np.array([[1, 0]], bool), np.array([[1, 1]], bool), np.zeros((1, 2), bool)


def figures(*rows):
    tally = Tally()
    for row in rows:
        tally.add(*row)
    return tally.figures()


# mask, truth, refused, targeted
ROWS = (
    (FULL, FULL, False, True),  # IoU 1
    (HALF, FULL, False, True),  # IoU 1/2: at the threshold
    (FULL, FULL, True, True),  # refused though it is there
    (HALF, EMPTY, True, False),  # rightly refused
    (HALF, EMPTY, False, False),  # should have been refused
)


def test_scenes_by_hand():
    """miou, oiou and precision are of the masks themselves; the others empty refused masks."""
    found = SCENES.score(figures(*ROWS))
    assert found["samples"] == 5
    assert found["miou"] == pytest.approx(2.5 / 3)
    assert found["oiou"] == pytest.approx(5 / 6)
    assert found["precision_0.5"] == 1.0
    assert found["giou"] == pytest.approx((1 + 0.5 + 0 + 1 + 0) / 5)
    # unions 2 + 2 + 2 (the truth alone) + 0 + 1
    assert found["ciou"] == pytest.approx(3 / 7)
    assert (found["n_acc"], found["t_acc"]) == (0.5, pytest.approx(2 / 3))


def test_edges():
    assert SCENES.score(figures()) == {"samples": 0}
    # an empty mask of a truth that vanished when it was resized: U = 0 scores 0
    vanished = SCENES.score(figures((EMPTY, EMPTY, False, True)))
    assert vanished["miou"] == vanished["giou"] == 0.0
    assert "oiou" not in vanished  # 0 / 0
    refused = SCENES.score(figures((EMPTY, EMPTY, True, False)))
    assert refused == {"samples": 1, "giou": 1.0, "n_acc": 1.0}
    # an empty mask that was not refused is still wrong
    assert SCENES.score(figures((EMPTY, EMPTY, False, False)))["n_acc"] == 0.0


@pytest.fixture(scope="module")
def predictions():
    """1,000 answers: blobs of all sizes, near misses, empty masks and truths, refusals."""
    rng = np.random.default_rng(5)
    rows = []
    y, x = np.mgrid[:24, :32]
    for _ in range(1000):
        centre, radius = rng.uniform((0, 0), (24, 32)), rng.uniform(1, 12)
        truth = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        moved = centre + rng.normal(0, 3, 2)
        mask = (y - moved[0]) ** 2 + (x - moved[1]) ** 2 < (radius * rng.uniform(0.5, 1.4)) ** 2
        targeted = bool(truth.any() and rng.random() < 0.7)
        mask = mask & (rng.random() > 0.05)
        rows.append((mask, truth & targeted, bool(rng.random() < 0.3), targeted))
    return rows


def mean(values):
    return sum(values) / len(values)


def naive(rows):
    """The definitions, one expression after the other, in plain Python."""
    own, gious, refused_rightly, kept = [], [], [], []
    pixels = {"own": [0, 0], "emptied": [0, 0]}
    for mask, truth, refused, targeted in rows:
        both, either = int(np.logical_and(mask, truth).sum()), int(np.logical_or(mask, truth).sum())
        left = np.zeros_like(mask) if refused else mask
        both_left, either_left = int((left & truth).sum()), int((left | truth).sum())
        pixels["emptied"][0] += both_left
        pixels["emptied"][1] += either_left
        if targeted:
            kept.append(not refused)
            own.append(both / either if either else 0.0)
            pixels["own"][0] += both
            pixels["own"][1] += either
            gious.append(both_left / either_left if either_left else 0.0)
        else:
            refused_rightly.append(refused)
            gious.append(1.0 if refused else 0.0)
    share = {name: both / either for name, (both, either) in pixels.items()}
    return {
        "miou": mean(own),
        "precision_0.5": mean([iou >= 0.5 for iou in own]),
        "oiou": share["own"],
        "giou": mean(gious),
        "ciou": share["emptied"],
        "n_acc": mean(refused_rightly),
        "t_acc": mean(kept),
    }


def test_scenes_on_a_thousand_predictions(predictions):
    found = SCENES.score(figures(*predictions))
    assert found == pytest.approx({"samples": 1000} | naive(predictions), abs=1e-12)
    assert list(found) == ["samples", *SCENES.metrics]


def test_iou_is_that_of_pycocotools_and_scikit_learn(predictions):
    found = figures(*predictions)
    for row, (mask, truth, _, _) in zip(found.iou, predictions, strict=True):
        if not (mask.any() or truth.any()):
            continue
        codes = [coco.encode(np.asfortranarray(m, np.uint8)) for m in (mask, truth)]
        assert row == pytest.approx(coco.iou(codes[:1], codes[1:], [False])[0, 0])
        assert row == pytest.approx(jaccard_score(truth.ravel(), mask.ravel()))


def test_accuracies_are_recalls_of_scikit_learn(predictions):
    refused, absent = [r for _, _, r, _ in predictions], [not t for _, _, _, t in predictions]
    found = SCENES.score(figures(*predictions))
    assert found["n_acc"] == pytest.approx(recall_score(absent, refused))
    assert found["t_acc"] == pytest.approx(recall_score(np.invert(absent), np.invert(refused)))
    shares = [sum(absent), 1000 - sum(absent)]
    both = np.average([found["n_acc"], found["t_acc"]], weights=shares)
    assert accuracy_score(absent, refused) == pytest.approx(both)


def test_parts_add_up(predictions):
    whole = figures(*predictions)
    part = whole.part(whole.targeted)
    assert isinstance(part, Figures)
    own = ("miou", "precision_0.5", "oiou", "t_acc")
    found, of_all = SCENES.score(part), SCENES.score(whole)
    assert [found[name] for name in own] == [of_all[name] for name in own]
    assert found["samples"] == whole.targeted.sum()
