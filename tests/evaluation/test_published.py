"""The published evaluators: equal to what their authors' code made of tests/golden/evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco

from ris.data.datasets.refer_files import assembled, read_files
from ris.evaluation.predictions import Predictions
from ris.evaluation.protocols.masks import from_mask
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.scoring import score

GOLDEN = Path(__file__).parent.parent / "golden" / "evaluation"
NAMES = {
    "LAVT": "lavt",
    "ReLA": "rela",
    "dfam": "released",
    "dfam-refzom": "released",
    "DMMI": "dmmi",
    "CGFormer": "cgformer",
}


def golden(name):
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


METRICS, QUESTIONS, TRUTH = golden("metrics.json"), golden("questions.json"), golden("truth.json")
CELLS = [(author, key) for author, keys in METRICS.items() for key in keys]


@pytest.fixture(scope="module")
def data_sets():
    """(data set, split-by) -> its files."""
    found = {}
    for _, key in CELLS:
        name, split_by, _ = key.split("/")
        if (name, split_by) not in found:
            found[name, split_by] = read_files(GOLDEN, name, split_by)
    return found


@pytest.fixture(scope="module")
def answers():
    """Data set -> its file of predictions."""
    names = {key.split("/")[0] for _, key in CELLS}
    return {name: Predictions(GOLDEN / f"predictions-{name}.jsonl") for name in names}


def decode(code):
    return coco.decode(code).astype(np.bool_)


@pytest.mark.parametrize(("author", "key"), CELLS)
def test_the_same_expressions_are_asked_in_the_same_order(author, key, data_sets):
    name, split_by, split = key.split("/")
    files = data_sets[name, split_by]
    asked = PROTOCOLS[NAMES[author]].rules[name].asking(split).of(files, split).asked
    wanted = QUESTIONS.get(author, {}).get(key) or METRICS[author][key]["samples"]
    ids = [(q.reference_id, q.sentence_id, q.image_id) for q in asked]
    assert ids == [(q["ref_id"], q["sent_id"], q["image_id"]) for q in wanted]
    if "text" in wanted[0]:
        assert [q.text for q in asked] == [q["text"] for q in wanted]
    if "category" in wanted[0]:
        assert [q.category for q in asked] == [q["category"] for q in wanted]
    if "targeted" in METRICS[author][key]["samples"][0]:
        targeted = [sample["targeted"] for sample in METRICS[author][key]["samples"]]
        assert [q.targeted for q in asked] == targeted


@pytest.mark.parametrize(
    ("made", "key"), [(made, key) for made, keys in TRUTH.items() for key in keys]
)
def test_every_truth_is_equal(made, key, data_sets):
    name, split_by, split = key.split("/")
    rules = PROTOCOLS[NAMES[made.split(" at ")[0]]].rules[name]
    files, wanted = data_sets[name, split_by], TRUTH[made][key]
    asked = rules.asking(split).of(files, split).asked
    assert {str(question.reference_id) for question in asked} == set(wanted)
    for question in asked:
        np.testing.assert_array_equal(
            rules.truth(question, files), decode(wanted[str(question.reference_id)])
        )


@pytest.mark.parametrize(("author", "key"), CELLS)
def test_every_answer_and_figure_is_equal(author, key, data_sets, answers):
    name, split_by, split = key.split("/")
    wanted = METRICS[author][key]
    found = score(data_sets[name, split_by], split, NAMES[author], answers[name])
    assert not found.missing
    assert not found.unreadable
    for i, sample in enumerate(wanted["samples"]):
        if "I" in sample:
            added = int(found.counted.intersection[i]), int(found.counted.union[i])
            assert added == (sample["I"], sample["U"])
        if "iou" in sample:
            assert found.counted.iou[i] == pytest.approx(sample["iou"], abs=1e-12)
        if "iou_1e-6" in sample:
            assert float(found.counted.iou[i]) == sample["iou_1e-6"]
        if sample.get("refused") is not None and found.protocol == "rela":
            assert bool(found.figures.refused[i]) == sample["refused"]
    for metric, value in wanted["metrics"].items():
        if not metric.startswith("sum_"):  # the released code's running sums
            assert found.metrics[metric] == pytest.approx(value, abs=1e-9), metric
    if "printed" in wanted:
        assert found.printed == wanted["printed"]


def test_masks_resized_as_cgformer_does_are_equal(data_sets, answers):
    for key, wanted in golden("cgformer-masks.json").items():
        name, split_by, _ = key.split("/")
        for row in wanted:
            image = data_sets[name, split_by].images[row["image_id"]]
            size = image["height"], image["width"]
            masks = answers[name].read((row["ref_id"], row["sent_id"], None), size).masks
            [square] = [mask for mask in masks if mask.shape == (480, 480)]
            np.testing.assert_array_equal(from_mask(square, None, size), decode(row["mask"]))


TROUBLE = golden("trouble.json")


@pytest.mark.parametrize("case", TROUBLE, ids=[case["name"] for case in TROUBLE])
def test_what_a_published_loader_cannot_read_is_left_out_with_a_reason(case):
    instances = {
        "images": case["images"],
        "annotations": case["annotations"],
        "categories": [{"id": 1, "name": "person"}],
    }
    files = assembled(case["data set"], "unc", case["references"], instances)
    for author, wanted in case["loaders"].items():
        rules = PROTOCOLS[NAMES[author]].rules[case["data set"]]
        found = rules.asking(case["split asked"]).of(files, case["split asked"])
        if "raises" in wanted:
            # a wider split and a split that is not there stop the whole loader
            whole = case["name"].startswith("split")
            assert whole or (not found.asked and found.left_out)
            continue
        assert [q.reference_id for q in found.asked] == [s["ref_id"] for s in wanted["samples"]]
        dropped = {reference["ref_id"] for reference in case["references"]}
        dropped -= {question.reference_id for question in found.asked}
        if case["name"] not in (
            "split asked that no reference has",
            "the same sent_id in two references",
        ):
            assert dropped == set(found.left_out)
        for question, sample in zip(found.asked, wanted["samples"], strict=True):
            if "truth" in sample:
                np.testing.assert_array_equal(rules.truth(question, files), decode(sample["truth"]))
