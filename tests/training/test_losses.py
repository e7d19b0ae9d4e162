"""The sum that is minimised: its groups, its chance, and what each recipe puts in it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ris.reference.dfam.config import PRESETS
from ris.training.forward import ask
from ris.training.initialise import fresh_model
from ris.training.losses import total_loss
from ris.training.recipe import RECIPES, LossWeights
from ris.training.sentence_start import set_sentence_start
from ris.training.targets import Targets

TINY = PRESETS["tiny"]
RELEASED, SUPPLEMENT = RECIPES["released"], RECIPES["supplement"]
SIDE = 64


@pytest.fixture(scope="module")
def model():
    made = fresh_model(TINY, 0)
    generator = torch.Generator().manual_seed(1)
    made.text_embeddings.normal_(generator=generator)
    set_sentence_start(made, torch.randn(48, generator=generator))
    return made


def squares(*corners):
    masks = torch.zeros(len(corners), SIDE, SIDE, dtype=torch.bool)
    for mask, corner in zip(masks, corners, strict=True):
        mask[corner : corner + 16, corner : corner + 24] = True
    return masks


def targets_of(*objects):
    """An image for each sample; each has the squares at these corners."""
    masks = tuple(squares(*own) for own in objects)
    return Targets(
        union=torch.stack([own.any(0) for own in masks]),
        objects=masks,
        targeted=torch.tensor([bool(own) for own in objects]),
        image_index=torch.arange(len(objects)),
        category=torch.zeros(len(objects), dtype=torch.long),
    )


def answered(model, targets, seed=2):
    generator = torch.Generator().manual_seed(seed)
    count = len(targets.image_index)
    sam = torch.randn(count, 64, 16, 16, generator=generator)
    clip = torch.randn(count, 36, 64, generator=generator)
    ids = torch.randint(1, 300, (count, 7), generator=generator)
    return ask(model, sam, clip, ids, targets.image_index)


def loss(model, out, targets, recipe, objects=None, seed=0):
    count = targets.count if objects is None else objects
    points = torch.Generator().manual_seed(seed)
    return total_loss(model, None, out, targets, recipe, count, points)


def test_the_terms_of_each_recipe(model):
    targets = targets_of((8,), (), (0, 40))
    out = answered(model, targets)
    released = {"mask_bce", "mask_dice", "dfam_bce", "dfam_dice", "sentence", "no_target", "class"}
    total, parts = loss(model, out, targets, RELEASED)
    assert set(parts) == released
    assert sum(parts.values()) == pytest.approx(total.item(), rel=1e-6)
    _, parts = loss(model, out, targets, SUPPLEMENT)
    assert set(parts) == released - {"class"}


def test_supplement_is_released_with_its_own_weights():
    """The three open readings: no class term, no class weights, and all of BERT trains."""
    own = RELEASED.weights
    assert SUPPLEMENT.weights == replace(
        own, mask_dice=2.0, mask_bce=0.5, classes=0.0, no_target_classes=(1.0, 1.0)
    )
    frozen = tuple(key for key in RELEASED.frozen if not key.startswith("text_encoder."))
    assert replace(
        SUPPLEMENT, name="released", weights=own, samples=64, frozen=RELEASED.frozen
    ) == (RELEASED)
    assert SUPPLEMENT.frozen == frozen
    assert (SUPPLEMENT.samples, RELEASED.samples) == (32, 64)
    assert SUPPLEMENT.group == RELEASED.group == 16
    assert LossWeights() == SUPPLEMENT.weights


def test_the_divisor_of_the_mask_terms_is_given(model):
    targets = targets_of((8,), (0, 40))
    out = answered(model, targets)
    _, three = loss(model, out, targets, RELEASED, 3.0)
    _, six = loss(model, out, targets, RELEASED, 6.0)
    for name, value in three.items():
        halved = name.startswith("dfam")
        assert six[name] == pytest.approx(value / 2 if halved else value, rel=1e-6)
    # it is at least 1
    _, none = loss(model, out, targets, RELEASED, 0.0)
    assert none["dfam_bce"] == pytest.approx(3 * three["dfam_bce"], rel=1e-6)


def test_points_come_from_the_generator_alone(model):
    targets = targets_of((8,), (0, 40))
    out = answered(model, targets)
    first, again, other = (loss(model, out, targets, RELEASED, seed=s)[1] for s in (0, 0, 1))
    assert first == again
    changed = {name for name in first if first[name] != other[name]}
    # where two queries fit nearly alike, another one may be matched
    assert {"dfam_bce", "dfam_dice"} <= changed <= first.keys() - {"mask_bce", "mask_dice"}


def test_groups_do_not_see_each_other(model):
    """A sample's own terms are the same in a group of its own; the sentences of its group count."""
    both = targets_of((8,), (40,))
    out = answered(model, both)
    _, together = loss(model, out, both, SUPPLEMENT)
    parts = []
    for i in range(2):
        own = both.part(torch.tensor([i]), i, i + 1)
        alone = replace(
            out,
            mask_logits=out.mask_logits[i : i + 1],
            query_masks=[masks[i : i + 1] for masks in out.query_masks],
            objects=[objects[i : i + 1] for objects in out.objects],
            sentences=out.sentences[i : i + 1],
            no_target_logits=out.no_target_logits[i : i + 1],
        )
        parts.append(loss(model, alone, own, SUPPLEMENT)[1])
    for name in ("mask_bce", "mask_dice", "no_target"):
        assert sum(x[name] for x in parts) / 2 == pytest.approx(together[name], rel=1e-5)
    assert sum(x["sentence"] for x in parts) / 2 != pytest.approx(together["sentence"], rel=1e-3)


def test_losses_are_float32_under_autocast(model):
    targets = targets_of((8,), (0, 40))
    out = answered(model, targets)
    plain, _ = loss(model, out, targets, RELEASED)
    with torch.autocast("cpu", torch.bfloat16):
        half, _ = loss(model, out, targets, RELEASED)
    assert half.dtype == torch.float32
    # only the cosines with texts are rounded
    assert half.item() == pytest.approx(plain.item(), rel=2e-2)


def test_several_sentences_about_one_image(model):
    """The masks of an image's queries serve each of its sentences."""
    two = targets_of((8,), (40,))
    shared = replace(two, image_index=torch.tensor([0, 0]))
    out = answered(model, shared)
    total, parts = loss(model, out, shared, RELEASED)
    total.backward()
    assert parts["dfam_bce"] > 0
    assert model.decoder.query_feat.weight.grad.isfinite().all()
    model.zero_grad()


def test_targets_move_and_split():
    targets = replace(targets_of((8,), (), (0, 40)), kinds=torch.zeros(3, 4, 4))
    assert targets.count == 3
    moved = targets.to(torch.device("meta"))
    assert moved.objects[2].device.type == moved.union.device.type == "meta"
    assert (moved.same, moved.things) == (None, None)
    part = targets.part(torch.tensor([1, 2]), 1, 3)
    assert part.image_index.tolist() == [0, 1]
    assert [len(own) for own in part.objects] == [0, 2]
    assert len(part.kinds) == 2
