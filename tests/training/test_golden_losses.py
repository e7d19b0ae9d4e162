"""The released losses against the values, costs, matches and gradients of the released code."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs
from golden.training import losses_inputs as made
from golden.training.cases import (
    FULL,
    OUTPUTS,
    SMALL,
    UNWEIGHTED,
    GivenPoints,
    leaf,
    targets_of,
)
from ris.training.losses import dfam_losses, main_losses, released_losses
from ris.training.matching import DfamOutput, match, query_costs
from ris.training.points import RandomPoints, uncertain
from ris.training.recipe import RECIPES
from ris.training.terms import no_target_loss

WEIGHTS = RECIPES["released"].weights
REFCOCO = RECIPES["released"].for_data("refcoco").weights
CASES = [*SMALL, *FULL]


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "training" / "losses.npz") as file:
        return dict(file)


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return made_up(request.param)


def made_up(name):
    """The case's outputs as leaves of a graph, with its targets and points."""
    return SimpleNamespace(
        name=name,
        outputs=[
            DfamOutput(
                masks=leaf(made.query_masks(name, output)),
                sentences=leaf(made.sentence_logits(name, output)),
                classes=leaf(made.class_logits(name, output)),
            )
            for output in OUTPUTS
        ],
        mask_logits=leaf(made.mask_logits(name)),
        no_target_logits=leaf(made.no_target_logits(name))
        if made.CASES[name]["no_target"]
        else None,
        targets=targets_of(name),
        points=GivenPoints(name),
    )


def objects_of(case):
    return [masks.float() for masks in case.targets.objects]


def terms(case, points, weights=WEIGHTS):
    return dfam_losses(case.outputs, case.targets, weights, case.targets.count, points)


def close(found, wanted, relative=1e-5):
    assert found.item() == pytest.approx(float(wanted), rel=relative, abs=1e-12)


def test_terms_at_the_same_points(case, golden):
    found = terms(case, case.points)
    for output, own in zip(OUTPUTS, found, strict=True):
        for theirs, ours in UNWEIGHTED.items():
            close(own[ours], golden[f"{case.name}.{theirs}.{output}"])
    main = main_losses(case.mask_logits, case.targets)
    close(main["bce"], golden[f"{case.name}.main_bce"])
    close(main["dice"], golden[f"{case.name}.main_dice"])
    if case.no_target_logits is not None:
        targeted = case.targets.targeted
        decided = no_target_loss(case.no_target_logits, targeted, WEIGHTS.no_target_classes)
        close(decided, golden[f"{case.name}.nt"])


def test_matches_and_what_they_cost(case, golden):
    truth = objects_of(case)
    found = match(case.outputs, truth, WEIGHTS, case.points)
    for number, output in enumerate(OUTPUTS):
        own = found[number]
        triples = torch.stack([own.sample, own.query, own.target], 1)
        assert triples.tolist() == golden[f"{case.name}.matched.{output}"].tolist()
        for sample, masks in enumerate(truth):
            if len(masks):
                at = case.points.of_match(number, sample)
                cost = query_costs(case.outputs[number], sample, masks, WEIGHTS, at)
                wanted = torch.from_numpy(golden[f"{case.name}.cost.{output}.{sample}"])
                torch.testing.assert_close(cost.detach(), wanted, rtol=1e-5, atol=1e-5)


def test_the_same_candidates_are_uncertain(case, golden):
    for number, output in enumerate(OUTPUTS):
        matched = torch.from_numpy(golden[f"{case.name}.matched.{output}"])
        if not len(matched):
            continue
        candidates, rest = case.points.of_loss(number, len(matched))
        logits = case.outputs[number].masks.detach()[matched[:, 0], matched[:, 1]]
        points = uncertain(logits, candidates, rest)
        assert points.shape[1] == made.CASES[case.name]["points"]
        taken = made.unpack_bits(golden, f"{case.name}.taken.{output}", candidates.shape[:2])
        for row, own in zip(taken, points, strict=True):
            chosen = {tuple(point) for point in own[: len(own) - rest.shape[1]].tolist()}
            assert len(chosen) == row.sum()
        wanted = candidates[torch.from_numpy(taken)].view(len(taken), -1, 2)
        assert sorted(wanted.flatten(0, 1).tolist()) == sorted(
            points[:, : wanted.shape[1]].flatten(0, 1).tolist()
        )


@pytest.mark.parametrize(
    ("name", "weights", "which"),
    [
        *((name, WEIGHTS, "") for name in CASES),
        *((name, REFCOCO, "_refcoco") for name in CASES if name.startswith("ris")),
    ],
)
def test_the_sum_and_its_gradients(name, weights, which, golden):
    case = made_up(name)
    count = float(case.targets.count)
    parts = released_losses(case.outputs, case, case.targets, weights, count, case.points)
    total = torch.stack(list(parts.values())).sum()
    close(total, golden[f"{name}.total{which}"])
    total.backward()

    def same(found, wanted_name):
        if wanted_name in golden:
            wanted = torch.from_numpy(golden[wanted_name])
            difference = (found - wanted).abs().max() if wanted.numel() else torch.zeros(())
            assert difference <= 1e-5 * (wanted.abs().max() if wanted.numel() else 0)
        else:
            largest = golden[f"{wanted_name}.stats"]
            said = inputs.compare(golden, wanted_name, found.numpy())
            assert said["max"] * said["scale"] <= 1e-5 * largest[2]

    for output, own in zip(OUTPUTS, case.outputs, strict=True):
        matched = golden[f"{name}.matched.{output}"]
        rows, queries = matched[:, 0], matched[:, 1]
        given = own.masks.grad if own.masks.grad is not None else torch.zeros_like(own.masks)
        same(given[rows, queries], f"{name}.grad.masks.{output}")
        others = given.clone()
        others[rows, queries] = 0
        assert not others.any()
        same(own.sentences.grad, f"{name}.grad.sentence{which}.{output}")
        same(own.classes.grad, f"{name}.grad.class.{output}")
    same(case.mask_logits.grad, f"{name}.grad.main")
    if case.no_target_logits is not None:
        same(case.no_target_logits.grad, f"{name}.grad.no_target")


def test_sentences_of_one_category_are_left_out_on_refcoco_alone(golden):
    case = made_up("ris_small")
    for output, own in zip(OUTPUTS, terms(case, case.points, REFCOCO), strict=True):
        close(own["sentence"], golden[f"ris_small.sentence_refcoco.{output}"])
    others = ("refcoco+", "refcocog", "grefcoco")
    assert all(RECIPES["released"].for_data(name).weights.same_category for name in others)
    # samples without target have no category in common
    nothing = made_up("gres_none")
    plain, left_out = (terms(nothing, nothing.points, w) for w in (WEIGHTS, REFCOCO))
    assert [x["sentence"] for x in plain] == [x["sentence"] for x in left_out]


def test_own_points_are_within_chance(case, golden):
    drawn = RandomPoints(torch.Generator().manual_seed(1), made.CASES[case.name]["points"])
    with torch.no_grad():
        found = terms(case, drawn)
    for output, own in zip(OUTPUTS, found, strict=True):
        for theirs in ("mask_bce", "mask_dice"):
            mean, deviation = golden[f"{case.name}.chance.{theirs}.{output}"]
            assert abs(float(own[UNWEIGHTED[theirs]]) - mean) <= 4 * deviation


@pytest.mark.parametrize(
    ("name", "count"), [("ris_small", 32), ("gres_small", 32), ("ris_full", 5), ("gres_full", 5)]
)
def test_the_mean_over_many_draws_is_the_limit(name, count, golden):
    case = made_up(name)
    drawn = RandomPoints(torch.Generator().manual_seed(2), made.CASES[name]["points"])
    with torch.no_grad():
        draws = [terms(case, drawn) for _ in range(count)]
    for number, output in enumerate(OUTPUTS):
        for theirs in ("mask_bce", "mask_dice"):
            values = torch.stack([draw[number][UNWEIGHTED[theirs]] for draw in draws])
            limit = float(golden[f"{name}.limit.{theirs}.{output}"])
            error = 4 * float(values.std()) / len(values) ** 0.5
            assert abs(float(values.mean()) - limit) <= error + 0.02 * limit
            uniform = float(golden[f"{name}.uniform.{theirs}.{output}"])
            if theirs == "mask_bce":
                assert abs(float(values.mean()) - uniform) > 5 * error


def test_a_query_that_says_nothing_finite_is_matched_last():
    case = made_up("ris_small")
    with torch.no_grad():
        case.outputs[0].masks[0, 9] = float("nan")
        case.outputs[0].masks[1, :] = float("inf")
    found = match(case.outputs, objects_of(case), WEIGHTS, case.points)[0]
    assert len(found) == 4
    assert found.query[0] != 9


def test_the_class_term_may_be_left_out():
    case = made_up("gres_small")
    outputs = [replace(output, classes=None) for output in case.outputs]
    weights = RECIPES["supplement"].weights
    found = dfam_losses(outputs, case.targets, weights, case.targets.count, case.points)
    assert [set(own) for own in found] == [{"dfam_bce", "dfam_dice", "sentence"}] * 4
    # of two queries with one mask it was the class term that preferred the second
    matched = match(outputs, objects_of(case), weights, case.points)[3]
    twins = made.twins("gres_small", "final")
    assert twins
    assert {(s, q) for s, q, _ in twins} <= set(
        zip(matched.sample.tolist(), matched.query.tolist(), strict=True)
    )
