"""The demo's losses and the pretext's terms, against formulas and values by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ris.reference.dfam.config import PRESETS
from ris.training.demo_losses import dense_loss, mask_loss, match, relevance_loss
from ris.training.initialise import fresh_model
from ris.training.pretext import (
    PretextHeads,
    label_shares,
    named_kinds,
    order,
    places,
    pretext_loss,
    sentence_loss,
    surroundings,
)
from ris.training.recipe import LossWeights
from ris.training.targets import Targets
from ris.training.terms import dice, no_target_loss

TINY = PRESETS["tiny"]


def test_main_loss_by_hand():
    """Two expressions on a 1x2 image, the second without target: logits 0 against mask (1, 0)."""
    masks = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    targets = targets_of(masks, torch.tensor([True, False]))
    weights = LossWeights()
    found = mask_loss(torch.zeros(2, 1, 2, 2), targets, weights)
    soft_dice = 1 - (2 * 1.0 + 1) / (2.0 + 2.0 + 1)  # four pixels at 0.5, two of them on the mask
    assert found.item() == pytest.approx(2.0 * soft_dice + 0.5 * math.log(2))
    nothing = replace(targets, targeted=torch.tensor([False, False]))
    assert mask_loss(torch.zeros(2, 1, 2, 2), nothing, weights).item() == 0.0


def targets_of(masks, targeted, kinds=None, things=None):
    """The targets of expressions about one image, each with one object or none."""
    union, count = masks > 0, len(masks)
    return Targets(
        union=union,
        objects=tuple(mask[None][: int(has)] for mask, has in zip(union, targeted, strict=True)),
        targeted=targeted,
        image_index=torch.zeros(count, dtype=torch.long),
        category=torch.full((count,), 133),
        same=torch.eye(count, dtype=torch.bool),
        kinds=kinds,
        things=things,
    )


def test_dice_is_0_on_the_truth_and_near_1_on_its_opposite():
    truth = torch.tensor([1.0, 1.0, 0.0, 0.0])
    assert dice((truth - 0.5) * 100, truth).item() == pytest.approx(0.0, abs=1e-6)
    assert dice((0.5 - truth) * 100, truth).item() == pytest.approx(1 - 1 / 5)


def test_matching_takes_the_query_whose_mask_fits():
    truth = (torch.arange(16) < 5).float()[None]
    queries = torch.stack([torch.zeros(16), (truth[0] - 0.5) * 8, (0.5 - truth[0]) * 8])[None]
    index, weights = torch.tensor([0]), LossWeights()
    assert match(queries, torch.zeros(1, 3), truth, index, weights).tolist() == [1]
    # two masks alike: the sentence decides
    twins = torch.stack([queries[0, 1], queries[0, 1]])[None]
    similarity = torch.tensor([[-3.0, 3.0]])
    assert match(twins, similarity, truth, index, weights).tolist() == [1]


def test_no_target_is_class_1():
    sure = torch.tensor([[9.0, -9.0], [-9.0, 9.0]])
    assert no_target_loss(sure, torch.tensor([True, False]), (1.0, 1.0)).item() < 1e-6
    assert no_target_loss(sure, torch.tensor([False, True]), (1.0, 1.0)).item() > 10


def test_label_shares_count_pixels():
    kinds = torch.zeros(1, 8, 8, dtype=torch.long)
    kinds[0, :2, :4] = 2
    shares = label_shares(kinds, 3, 2)
    assert shares[0, 0, 0].tolist() == [0.5, 0.0, 0.5]
    assert shares[..., 0].sum() == 3.5
    torch.testing.assert_close(shares.sum(-1), torch.ones(1, 2, 2))


def drawn_targets():
    """One 8x8 image: kind 2 left above, kind 1 right of it.

    Three expressions: the one, both, nothing.
    """
    kinds = torch.zeros(1, 8, 8, dtype=torch.long)
    kinds[0, :4, :4], kinds[0, :4, 4:] = 2, 1
    masks = torch.stack([(kinds[0] == 2).float(), (kinds[0] > 0).float(), torch.zeros(8, 8)])
    things = torch.tensor([0, 2, 1])[kinds]
    return targets_of(masks, torch.tensor([True, True, False]), kinds, things)


def test_places_are_centre_and_size():
    found = places(drawn_targets().union.float())
    torch.testing.assert_close(found[0], torch.tensor([-4 / 7, -4 / 7, 1.5]))
    torch.testing.assert_close(found[1], torch.tensor([0, -4 / 7, 2.0]))
    torch.testing.assert_close(found[2], torch.tensor([0.0, 0.0, -0.5]))


def test_what_a_sentence_names_and_where_it_is():
    targets = drawn_targets()
    assert named_kinds(targets, 3).tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 0]]
    heads = PretextHeads(4, 4, 3)
    for parameter in heads.parameters():
        torch.nn.init.zeros_(parameter)
    squared = (16 / 49 * 2 + 1.5**2 + 16 / 49 + 2.0**2) / 2
    found = sentence_loss(heads, torch.ones(3, 4), targets)
    assert found.item() == pytest.approx(3 * math.log(2) + squared, rel=1e-5)
    nobody = replace(targets, targeted=torch.zeros(3, dtype=torch.bool))
    assert sentence_loss(heads, torch.ones(3, 4), nobody).item() == 0.0


def test_what_patches_show_and_where_that_is():
    targets, heads = drawn_targets(), PretextHeads(6, 6, 2)
    # channels that say it outright: which of three kinds, then x, y and size
    cells = torch.tensor(
        [
            [0, 0, 1, -4 / 7, -4 / 7, 1.5],
            [0, 1, 0, 4 / 7, -4 / 7, 1.5],
            [1, 0, 0, -0.5, 0.5, 9.0],
            [1, 0, 0, 0.5, 0.5, -9.0],
        ]
    )
    for kinds, place in ((heads.sam, heads.sam_places), (heads.clip, heads.clip_places)):
        for layer, weight in ((kinds, 100 * torch.eye(6)[:3]), (place, torch.eye(6)[3:])):
            torch.nn.init.zeros_(layer.bias)
            layer.weight.data = weight
    # each is alone of its kind: nothing is left of it, or larger
    for layer in (heads.sam_order, heads.clip_order):
        torch.nn.init.ones_(layer.bias)
        torch.nn.init.zeros_(layer.weight)
    right = pretext_loss(heads, cells.T.reshape(1, 6, 2, 2), cells[None], targets)
    # the layer of what is around says nothing yet
    assert right.pop("around").item() == pytest.approx(2 * 5 * math.log(2))
    assert all(value.item() == pytest.approx(0.0, abs=1e-6) for value in right.values())
    cells[2, 3] += 1.0  # background: a quarter, in a total of 2.5
    moved = pretext_loss(heads, cells.T.reshape(1, 6, 2, 2), cells[None], targets)
    assert (moved["sam"].item(), moved["clip"].item()) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert (moved["sam_places"].item(), moved["clip_places"].item()) == pytest.approx((0.1, 0.1))


def test_what_patches_have_around_them():
    targets, heads = drawn_targets(), PretextHeads(4, 4, 2)
    # of kind 1, right above, and kind 2, left above: anywhere, left, right, above, below
    truth = torch.tensor(
        [
            [[1, 0, 1, 0, 0], [1, 0, 0, 0, 0]],
            [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
            [[1, 0, 1, 1, 0], [1, 0, 0, 1, 0]],
            [[1, 0, 0, 1, 0], [1, 1, 0, 1, 0]],
        ]
    )
    owner = torch.tensor([[[1, 2], [0, 0]]])
    one, other = places(targets.union.float())[0], torch.tensor([4 / 7, -4 / 7, 1.5])
    known = torch.stack([torch.zeros(3), one, other])[None]
    found = surroundings(known, torch.tensor([[0, 2, 1]]), owner, 2)
    assert found.flatten(1, 2)[0].tolist() == truth.tolist()
    heads.around.weight.data = (100.0 * truth - 50).flatten(1).T.contiguous()
    cells = torch.eye(4)
    for said, loss in ((cells, 0.0), (-cells, 2 * 5 * 50.0)):
        losses = pretext_loss(heads, cells.reshape(1, 4, 2, 2), said[None], targets)
        assert losses["around"].item() == pytest.approx(loss, abs=1e-4)


def test_order_among_things_of_one_kind():
    known = torch.tensor([[[0, 0, 9.0], [-0.5, 0, 1], [0.1, 0.2, 2], [0.3, -0.4, 3], [0, 0, 0]]])
    found = order(known, torch.tensor([[0, 5, 5, 5, 7]]))[0]
    # left of it, right of it, above, below, smaller, larger
    assert found[1].tolist() == [1, 0.25, 0.5, 0.5, 1, 0.25]
    assert found[2].tolist() == [0.5, 0.5, 0.25, 1, 0.5, 0.5]
    assert found[3].tolist() == [0.25, 1, 1, 0.25, 0.25, 1]
    assert found[4].tolist() == [1] * 6


def test_positions_can_be_read_off_the_start():
    config = PRESETS["demo"]
    model = fresh_model(config, 0)
    for found, side in (
        (model.sam.image_encoder.pos_embed[0].flatten(0, 1), config.sam.grid),
        (model.clip_dense.clip_model.visual.positional_embedding[1:], config.clip.grid),
    ):
        x = torch.arange(side).repeat(side).double()[:, None]
        known = torch.cat([found.detach().double(), torch.ones(side**2, 1)], 1)
        fitted = known @ torch.linalg.lstsq(known, x, driver="gelsd").solution
        assert (fitted - x).abs().max() < 0.05


def test_the_dense_prompt_is_asked_for_a_mask():
    targets, heads = drawn_targets(), PretextHeads(1, 1, 3)
    torch.nn.init.constant_(heads.dense.weight, 50.0)
    torch.nn.init.zeros_(heads.dense.bias)
    right = torch.stack([m[::4, ::4].float() for m in targets.union])[:, None] - 0.5
    assert dense_loss(heads, right, targets).item() == pytest.approx(0.0, abs=1e-3)
    assert dense_loss(heads, -right, targets).item() > 10
    # where nothing is meant the mask is empty, and that is asked for too
    assert not targets.union[~targets.targeted].any()
    everywhere = torch.where(targets.targeted[:, None, None, None], right, 0.5)
    assert dense_loss(heads, everywhere, targets).item() > 3


def test_each_query_is_asked_how_much_of_it_is_meant():
    targets = drawn_targets()
    side = targets.union.shape[-1]
    left = torch.zeros(1, 1, side, side)
    left[..., : side // 2] = 100.0
    # one query covers the left half, one the right
    query_masks = torch.cat([left, 100 - left], 1) * 2 - 100
    halves = targets.union[:, :, : side // 2].float(), targets.union[:, :, side // 2 :].float()
    truth = torch.stack([half.mean((1, 2)) for half in halves], 1)
    says = truth.clamp(1e-6, 1 - 1e-6).logit()

    def loss(each):
        objects = torch.stack([each, torch.zeros_like(each)], -1)
        decoder = SimpleNamespace(no_target=lambda o: (o, o.amax(1)))
        out = SimpleNamespace(objects=[objects], query_masks=[query_masks])
        return relevance_loss(SimpleNamespace(decoder=decoder), out, targets).item()

    assert targets.image_index.tolist() == [0] * len(targets.union)
    assert loss(says) < min(loss(says + 1), loss(says - 1), loss(says.flip(1)))
