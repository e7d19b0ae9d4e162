"""Validation by the published evaluators, and the sheet of answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from refer_files import write_refer
from ris.data.datasets.refer_files import read_files
from ris.engines.errors import RisError
from ris.evaluation.metrics import Tally
from ris.runtime.orientation import turned_mask
from ris.training import measure
from ris.training.initialise import fresh_model
from ris.training.loading import Loading
from ris.training.measure import Answer, Asker, BatchValidation, Share
from ris.training.pictures import COLUMNS, SIDE, Tile, sheet
from ris.training.published import PublishedValidation
from ris.training.reading import read_for_training
from ris.training.refer_source import ReferSubset
from training_runs import TINY


@pytest.fixture(scope="module")
def model():
    return fresh_model(TINY, 0)


def validation(root, name, tokenizer, count=None, protocol=None):
    """On the val split of a small data set."""
    if not (root / name).exists():
        write_refer(root, name)
    data = read_for_training(name, "val", root=root, skipped=lambda sentence: None)
    subset = ReferSubset(data, TINY.sam.image_size, count)
    return PublishedValidation(subset, read_files(root, name), "val", tokenizer, protocol)


def answers(found, model, share=None):
    asker = Asker(model, None, Loading(workers=0), share or Share())
    return list(found.answers(asker, pytest.fail))


@pytest.fixture
def truthful(monkeypatch):
    """Answers are what is right; what has no target is refused."""

    def asked(asker, batch):
        masks = batch.targets.union[:, None].float()
        low = torch.nn.functional.interpolate(masks, (128, 128), mode="area")[:, 0]
        return (low - 0.5).numpy(), ~batch.targets.targeted.numpy()

    monkeypatch.setattr(measure, "_asked", asked)


@pytest.mark.parametrize(
    ("name", "protocol", "figure"),
    [
        ("refcoco", None, "mIoU"),
        ("refcoco", "cgformer", "mIoU"),
        ("grefcoco", None, "gIoU"),
        ("grefcoco", "released", "gIoU"),
    ],
)
def test_right_answers_score_as_the_evaluator_counts(
    tmp_path, tokenizer, model, truthful, name, protocol, figure
):
    found = validation(tmp_path, name, tokenizer, protocol=protocol)
    assert found.metric == figure
    assert figure in found.metrics
    tally = Tally()
    given = answers(found, model)
    for answer in given:
        tally.add(answer.mask, answer.truth, answer.refused, answer.targeted)
    scores = found.score(tally.figures())
    assert scores[figure] > 93
    assert scores["count"] == len(given)
    if name == "grefcoco" and protocol is None:
        assert scores["N_acc"] == scores["T_acc"] == 1
    else:
        assert not any(answer.refused for answer in given) or protocol == "released"


def test_the_questions_are_a_fixed_random_subset_that_processes_share(
    tmp_path, tokenizer, model, truthful
):
    every = [a.expression for a in answers(validation(tmp_path, "grefcoco", tokenizer), model)]
    few = validation(tmp_path, "grefcoco", tokenizer, count=7)
    first, second = (answers(few, model) for _ in range(2))
    assert [a.expression for a in first] == [a.expression for a in second]
    assert len(first) == 7 < len(every)
    assert {a.expression for a in first} <= set(every)

    whole = validation(tmp_path, "grefcoco", tokenizer)
    whole.steps, whole.source._group = 6, 2  # so that there are batches to share
    shared = [answers(whole, model, Share(i, 2)) for i in range(2)]
    assert [a.expression for part in shared for a in part] == every
    numbers = [a.number for part in shared for a in part]
    assert len(set(numbers)) == len(numbers) == 12
    assert sorted(numbers) == numbers


def test_an_evaluator_of_other_data_is_refused(tmp_path, tokenizer):
    with pytest.raises(RisError, match="protocol lavt does not count grefcoco"):
        validation(tmp_path, "grefcoco", tokenizer, protocol="lavt")


@pytest.mark.parametrize("protocol", [None, "cgformer", "lavt", "released"])
def test_a_malformed_reference_of_the_split_stops_nothing(tmp_path, tokenizer, protocol):
    write_refer(tmp_path, "refcoco")
    data = read_for_training("refcoco", "val", root=tmp_path, skipped=lambda sentence: None)
    subset, files = ReferSubset(data, TINY.sam.image_size), read_files(tmp_path, "refcoco")
    bad = [
        {"ref_id": 90, "split": "val", "sentences": []},
        {"ref_id": 91, "split": "val", "image_id": None, "ann_id": [[]], "sentences": None},
    ]
    whole = replace(files, references=(*bad, *files.references))
    each = [PublishedValidation(subset, f, "val", tokenizer, protocol) for f in (files, whole)]
    assert each[0]._questions == each[1]._questions


def test_pictures_come_from_the_files_where_features_are_stored(
    tmp_path, tokenizer, model, truthful
):
    found = validation(tmp_path, "refcoco", tokenizer)
    assert answers(found, model)[0].picture().shape == (96, 120, 3)
    plain = BatchValidation(found.source, found.steps, tokenizer)
    assert answers(plain, model)[0].picture().shape == (96, 120, 3)


def test_a_turned_picture_is_shown_with_its_masks_turned():
    stored = np.zeros((30, 40), bool)
    stored[:, :10] = True
    picture = np.zeros((40, 30, 3), np.uint8)
    answer = Answer(
        number=0,
        kind="expression",
        mask=stored,
        truth=stored,
        refused=False,
        targeted=True,
        expression="left man",
        picture=lambda: picture,
        orientation=6,
    )
    tile = measure._tile(answer)
    upright = turned_mask(stored, 6)
    assert tile.mask.shape == picture.shape[:2]
    assert (tile.mask == upright).all()
    assert (tile.truth == upright).all()
    assert tile.mask[:10].all()


def test_a_sheet_shows_answers_red_and_what_is_right_green():
    grey = np.full((50, 80, 3), 128, np.uint8)
    mask, truth = np.zeros((2, 40, 40), bool)
    mask[:, :20] = True
    truth[10:30, 25:35] = True
    page = sheet([Tile(grey, mask, truth, f"a very long question {i} " * 4) for i in range(5)])
    assert page.shape[1] == COLUMNS * SIDE
    left, right = page[SIDE // 2, SIDE // 4], page[SIDE // 2, SIDE - 10]
    assert int(left[0]) > int(left[1]) + 20
    assert right.tolist() == [128, 128, 128]
    red, green, _ = page[:SIDE, :SIDE].reshape(-1, 3).astype(int).T
    assert (green > red + 20).any()
    assert Image.fromarray(page).size[1] > 2 * SIDE
