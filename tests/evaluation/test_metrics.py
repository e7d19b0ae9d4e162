"""Every protocol by hand and against independent implementations, edge cases included."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from sklearn.metrics import accuracy_score, jaccard_score, recall_score

from ris.evaluation.metrics import PROTOCOLS, Figures, Tally

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


def test_refcoco_by_hand():
    """Targeted expressions alone, refusals ignored; at least the threshold counts."""
    found = figures(*ROWS).score("refcoco")
    assert found["samples"] == 5
    assert found["miou"] == pytest.approx(2.5 / 3)
    assert found["oiou"] == pytest.approx(5 / 6)
    assert found["precision_0.5"] == 1.0
    assert found["precision_0.6"] == found["precision_0.9"] == pytest.approx(2 / 3)


def test_grefcoco_by_hand():
    """As in ReLA: what a refused mask covers stays in the union of a targeted expression."""
    found = figures(*ROWS, (HALF, FULL, True, True)).score("grefcoco")
    assert found["giou"] == pytest.approx((1 + 0.5 + 0 + 1 + 0 + 0) / 6)
    # intersections 2 + 1 + 0 + 0 + 0 + 0; unions 2 + 2 + 2 + 0 (refused rightly) + 1 (the mask) + 2
    assert found["ciou"] == pytest.approx(3 / 9)
    assert (found["n_acc"], found["t_acc"]) == (0.5, 0.5)
    assert found["precision_0.7"] == 0.25
    # a refused mask beside the truth: 2 pixels of union there, 1 where it is emptied first
    beside = figures((np.array([[0, 1]], bool), HALF, True, True), (FULL, FULL, False, True))
    assert beside.score("grefcoco")["ciou"] == pytest.approx(2 / 4)
    assert beside.score("grefcoco-released")["ciou"] == pytest.approx(2 / 3)


def test_released_by_hand():
    found = figures(*ROWS).score("grefcoco-released")
    assert found["giou"] == pytest.approx((1 + 0.5 + 0 + 1 + 0) / 5)
    # unions 2 + 2 + 2 (the truth alone) + 0 + 1
    assert found["ciou"] == pytest.approx(3 / 7)
    assert found["precision_0.7"] == pytest.approx(1 / 3)


def test_ref_zom_by_hand():
    """An untargeted expression is right where the mask is empty, by refusal or by itself."""
    found = figures(*ROWS, (EMPTY, EMPTY, False, False)).score("ref-zom")
    assert found["acc"] == pytest.approx(2 / 3)
    assert found["miou"] == pytest.approx(1.5 / 3)
    assert found["oiou"] == pytest.approx(3 / 6)


def test_edges():
    nothing = figures()
    for protocol in PROTOCOLS:
        assert nothing.score(protocol) == {"samples": 0}
    # an empty mask of a truth that vanished when it was resized: U = 0 scores 0, as in LAVT, ReLA
    vanished = figures((EMPTY, EMPTY, False, True))
    assert vanished.score("refcoco")["miou"] == vanished.score("grefcoco")["giou"] == 0.0
    assert "oiou" not in vanished.score("refcoco")  # 0 / 0
    refused = figures((EMPTY, EMPTY, True, False))
    assert refused.score("grefcoco") == {"samples": 1, "giou": 1.0, "n_acc": 1.0}
    # an empty mask that was not refused is still wrong for gRefCOCO and right for Ref-ZOM
    silent = figures((EMPTY, EMPTY, False, False))
    assert silent.score("grefcoco")["n_acc"] == 0.0
    assert silent.score("ref-zom")["acc"] == 1.0


def test_the_threshold_itself_counts():
    exact = figures((np.arange(10)[None] < 7, np.ones((1, 10), bool), False, True))
    below = figures((np.arange(100)[None] < 69, np.ones((1, 100), bool), False, True))
    for protocol in ("refcoco", "grefcoco", "grefcoco-released"):
        assert exact.score(protocol)["precision_0.7"] == 1.0
        assert below.score(protocol)["precision_0.7"] == 0.0


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


def precision(ious):
    return {f"precision_{x}": mean([v >= x for v in ious]) for x in (0.5, 0.6, 0.7, 0.8, 0.9)}


def naive(rows):
    """The published definitions, one expression after the other, in plain Python."""
    sums = {"targeted": 0, "untargeted": 0, "n": 0, "t": 0, "empty": 0}
    own, refusable, gious, released = [], [], [], []
    pixels = {name: [0, 0] for name in ("refcoco", "rela", "released", "zom")}
    for mask, truth, refused, targeted in rows:
        both, either = int(np.logical_and(mask, truth).sum()), int(np.logical_or(mask, truth).sum())
        left = np.zeros_like(mask) if refused else mask
        both_left, either_left = int((left & truth).sum()), int((left | truth).sum())
        pixels["released"][0] += both_left
        pixels["released"][1] += either_left
        if targeted:
            sums["targeted"] += 1
            sums["t"] += not refused
            own.append(both / either if either else 0.0)
            pixels["refcoco"][0] += both
            pixels["refcoco"][1] += either
            pixels["zom"][0] += both_left
            pixels["zom"][1] += either_left
            hit = 0 if refused else both
            pixels["rela"][0] += hit
            pixels["rela"][1] += either
            refusable.append(hit / either if either else 0.0)
            gious.append(refusable[-1])
            released.append(both_left / either_left if either_left else 0.0)
        else:
            sums["untargeted"] += 1
            sums["n"] += refused
            sums["empty"] += not left.any()
            pixels["rela"][1] += 0 if refused else either
            gious.append(1.0 if refused else 0.0)
            released.append(gious[-1])
    share = {name: both / either for name, (both, either) in pixels.items()}
    accuracies = {"n_acc": sums["n"] / sums["untargeted"], "t_acc": sums["t"] / sums["targeted"]}
    precisions, strict = precision(own), precision(refusable)
    for name in ("precision_0.5", "precision_0.6"):  # gRefCOCO's start at 0.7
        strict.pop(name)
    return {
        "refcoco": {
            "miou": mean(own),
            "oiou": share["refcoco"],
            **precisions,
        },
        "grefcoco": {"giou": mean(gious), "ciou": share["rela"], **accuracies, **strict},
        "grefcoco-released": {
            "giou": mean(released),
            "ciou": share["released"],
            **accuracies,
            **strict,
        },
        "ref-zom": {
            "miou": mean(refusable),
            "oiou": share["zom"],
            "acc": sums["empty"] / sums["untargeted"],
        },
        "scenes": {
            "miou": mean(own),
            "precision_0.5": precisions["precision_0.5"],
            "oiou": share["refcoco"],
            "giou": mean(released),
            "ciou": share["released"],
            **accuracies,
        },
    }


def test_all_protocols_on_a_thousand_predictions(predictions):
    found, want = figures(*predictions), naive(predictions)
    assert set(want) == set(PROTOCOLS)
    for protocol, scores in want.items():
        expected = pytest.approx({"samples": 1000} | scores, abs=1e-12)
        assert found.score(protocol) == expected, protocol
        assert list(found.score(protocol)) == list(PROTOCOLS[protocol].metrics), protocol


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
    found = figures(*predictions).score("grefcoco")
    assert found["n_acc"] == pytest.approx(recall_score(absent, refused))
    assert found["t_acc"] == pytest.approx(recall_score(np.invert(absent), np.invert(refused)))
    shares = [sum(absent), 1000 - sum(absent)]
    both = np.average([found["n_acc"], found["t_acc"]], weights=shares)
    assert accuracy_score(absent, refused) == pytest.approx(both)


def test_parts_add_up(predictions):
    whole = figures(*predictions)
    part = whole.part(whole.targeted)
    assert isinstance(part, Figures)
    samples = {"samples": float(whole.targeted.sum())}
    assert part.score("refcoco") == whole.score("refcoco") | samples
