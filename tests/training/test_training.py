"""Training: the batched forward pass is the model's, the losses are the formulas.

A resumed run is the same run.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ris.engines.errors import CheckpointError, RisError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.config import PRESETS
from ris.reference.preprocess import token_ids
from ris.reference.tokenizer import tokenizer_from
from ris.training import loop
from ris.training.data import Sources, batches, hide_words
from ris.training.features import FeatureStore
from ris.training.forward import ask, encode
from ris.training.initialise import fresh_model
from ris.training.loop import Trainer
from ris.training.losses import dense_loss, dice, mask_loss, match, no_target_loss, relevance_loss
from ris.training.plot import plot_log
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
from ris.training.publish import publish
from ris.training.recipe import RECIPES, LossWeights, Recipe
from ris.training.scene_source import SceneSource
from ris.training.targets import Targets

TINY = PRESETS["tiny"]
RECIPE = replace(RECIPES["demo"], images=2, expressions=3, steps=4, warmup=2, bf16=False, lessons=0)


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_from(None, TINY)


@pytest.fixture
def source():
    return SceneSource("train", TINY.sam.image_size, RECIPE.images, RECIPE.expressions)


def trainer(folder, source, tokenizer, recipe=RECIPE, lessons=None, features=None):
    return Trainer(
        folder,
        recipe,
        lambda: fresh_model(TINY, 0),
        Sources(source, source, validation_steps=1, lessons=lessons),
        tokenizer,
        workers=0,
        features=features,
    )


@pytest.mark.parametrize("variant", ["cls", "category"])
def test_the_batched_forward_pass_gives_what_the_model_gives(variant, source, tokenizer):
    config = TINY if variant == "cls" else TINY.with_category_query()
    model = fresh_model(config, 3).eval()
    model.text_embeddings.normal_(generator=torch.Generator().manual_seed(0))
    batch = next(batches(source, config, tokenizer, 0, 1, workers=0))
    index = batch.targets.image_index
    with torch.no_grad():
        encoded = encode(model, batch.image, batch.clip_image, False)
        out = ask(model, *encoded, batch.input_ids, index, batch.category)
        plain = model(batch.image[index], batch.clip_image[index], batch.input_ids, batch.category)
    assert len(index) == 6
    close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    close(out.mask_logits, plain.mask_logits)
    if variant == "cls":
        close(out.no_target_logits, plain.no_target_logits)
        close(out.query_masks[-1][index], plain.dfam.mask_logits[-1])
        close(out.objects[-1], plain.dfam.object_embedding)
    else:
        assert out.no_target_logits is None


def test_main_loss_by_hand():
    """Two expressions on a 1x2 image, the second without target: logits 0 against mask (1, 0)."""
    masks = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])
    targets = Targets(
        masks, torch.tensor([True, False]), torch.tensor([0, 0]), torch.eye(2, dtype=torch.bool)
    )
    weights = LossWeights()
    found = mask_loss(torch.zeros(2, 1, 2, 2), targets, weights)
    soft_dice = 1 - (2 * 1.0 + 1) / (2.0 + 2.0 + 1)  # four pixels at 0.5, two of them on the mask
    assert found.item() == pytest.approx(2.0 * soft_dice + 0.5 * math.log(2))
    nothing = replace_present(targets, torch.tensor([False, False]))
    assert mask_loss(torch.zeros(2, 1, 2, 2), nothing, weights).item() == 0.0


def replace_present(targets, present):
    return Targets(targets.masks, present, targets.image_index, targets.same)


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
    assert no_target_loss(sure, torch.tensor([True, False]), LossWeights()).item() < 1e-6
    assert no_target_loss(sure, torch.tensor([False, True]), LossWeights()).item() > 10


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
    index = torch.zeros(3, dtype=torch.long)
    things = torch.tensor([0, 2, 1])[kinds]
    present = torch.tensor([True, True, False])
    return Targets(masks, present, index, torch.eye(3, dtype=torch.bool), kinds, things)


def test_places_are_centre_and_size():
    found = places(drawn_targets().masks)
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
    nobody = replace_present(targets, torch.zeros(3, dtype=torch.bool))
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
    one, other = places(targets.masks)[0], torch.tensor([4 / 7, -4 / 7, 1.5])
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
    right = (torch.stack([m[::4, ::4] for m in targets.masks])[:, None] - 0.5).float()
    assert dense_loss(heads, right, targets).item() == pytest.approx(0.0, abs=1e-3)
    assert dense_loss(heads, -right, targets).item() > 10
    # where nothing is meant the mask is empty, and that is asked for too
    assert not targets.masks[~targets.present].any()
    everywhere = torch.where(targets.present[:, None, None, None], right, 0.5)
    assert dense_loss(heads, everywhere, targets).item() > 3


def test_each_query_is_asked_how_much_of_it_is_meant():
    targets = drawn_targets()
    side = targets.masks.shape[-1]
    left = torch.zeros(1, 1, side, side)
    left[..., : side // 2] = 100.0
    # one query covers the left half, one the right
    query_masks = torch.cat([left, 100 - left], 1) * 2 - 100
    halves = targets.masks[:, :, : side // 2], targets.masks[:, :, side // 2 :]
    truth = torch.stack([half.mean((1, 2)) for half in halves], 1)
    says = truth.clamp(1e-6, 1 - 1e-6).logit()

    def loss(each):
        objects = torch.stack([each, torch.zeros_like(each)], -1)
        decoder = SimpleNamespace(no_target=lambda o: (o, o.amax(1)))
        out = SimpleNamespace(objects=[objects], query_masks=[query_masks])
        return relevance_loss(SimpleNamespace(decoder=decoder), out, targets).item()

    assert targets.image_index.tolist() == [0] * len(targets.masks)
    assert loss(says) < min(loss(says + 1), loss(says - 1), loss(says.flip(1)))


def test_narrow_bert_starts_with_different_sentences_apart(tokenizer):
    model = fresh_model(PRESETS["demo"], 0).eval()
    sentences = ("left man", "all dogs", "cat next to the tree")
    ids = token_ids(tokenizer_from(None, PRESETS["demo"]), sentences, 35)
    with torch.no_grad():
        first = model.encode_words(ids)[1][:, 0]
    assert first.std(0).mean() > 0.1 * first.std()


def test_the_rate_warms_up_and_falls_to_nothing():
    recipe = Recipe(learning_rate=1.0, steps=100, warmup=10, decay=0.5)
    assert [recipe.rate(s) for s in (0, 9, 10, 49)] == [0.1, 1.0, 1.0, 1.0]
    assert recipe.rate(75) == pytest.approx(0.5)
    taught = replace(recipe, lessons=20)
    assert [taught.rate(s) for s in (0, 10, 19)] == [0.1, 1.0, 1.0]
    assert [taught.rate(s) for s in (20, 29, 30)] == [0.1, 1.0, 1.0]
    assert recipe.rate(100) == pytest.approx(0.0)


def test_hidden_words_keep_the_rest_in_order(tokenizer):
    ids = token_ids(tokenizer, ("the left man", "man"), 35)
    hidden = hide_words(ids.clone(), tokenizer, 1.0, np.random.default_rng(0))
    unknown = tokenizer.token_to_id("[UNK]")
    for before, after in zip(ids, hidden, strict=True):
        assert (after == unknown).sum() == 1
        assert after[(after != unknown) & (after != 0)].tolist() == before[before != 0].tolist()


def states(folder):
    return torch.load(folder / "state.pt", weights_only=True)


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, source, tokenizer):
    trainer(tmp_path / "whole", source, tokenizer).run(log_every=1, save_every=2, validate_every=4)

    broken = trainer(tmp_path / "broken", source, tokenizer)
    step, broken.train_step = broken.train_step, None

    def dies_at_the_fourth(batch):
        if broken.step == 3:
            raise RuntimeError("killed")
        return step(batch)

    broken.train_step = dies_at_the_fourth
    with pytest.raises(RuntimeError):
        broken.run(log_every=1, save_every=2, validate_every=4)
    again = trainer(tmp_path / "broken", source, tokenizer)
    assert again.resume()
    assert again.step == 2  # the state of step 2; step 3 is done anew
    again.run(log_every=1, save_every=2, validate_every=4)

    whole, broken_state = states(tmp_path / "whole"), states(tmp_path / "broken")
    assert whole["step"] == broken_state["step"] == 4
    for part in ("model", "average", "heads"):
        for key, value in whole[part].items():
            assert torch.equal(value, broken_state[part][key]), key
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert [x["step"] for x in logs[0]] == [x["step"] for x in logs[1]] == [1, 2, 3, 4]
    assert [x["losses"] for x in logs[0]] == [x["losses"] for x in logs[1]]
    assert logs[0][-1]["validation"]["all"]["samples"] == 6
    plot_log(tmp_path / "whole" / "log.jsonl", tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 10_000


def test_ctrl_c_saves_whole_steps_only(tmp_path, source, tokenizer):
    run = trainer(tmp_path, source, tokenizer)
    step, run.train_step = run.train_step, None

    def interrupted(batch):
        if run.step == 1:
            raise KeyboardInterrupt
        return step(batch)

    run.train_step = interrupted
    with pytest.raises(KeyboardInterrupt):
        run.run(save_every=100)
    assert states(tmp_path)["step"] == 1

    again = trainer(tmp_path, source, tokenizer)
    again.resume()

    def interrupted_average():
        raise KeyboardInterrupt

    again._average = interrupted_average  # between the optimiser and the average
    with pytest.raises(KeyboardInterrupt):
        again.run(save_every=100)
    assert states(tmp_path)["step"] == 1


def test_training_learns_and_the_weights_carry_their_sizes(tmp_path, tokenizer):
    """On one batch, again and again, the mask loss goes down; the run leaves a checkpoint."""

    class OneBatch(SceneSource):
        def batch(self, step):
            return super().batch(0)

    recipe = replace(RECIPE, steps=30, learning_rate=2e-3, unknown_words=0.0)
    run = trainer(tmp_path, OneBatch("train", 256, 2, 3), tokenizer, recipe)
    run.run(log_every=1, validate_every=1000)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["losses"]["mask"] < 0.75 * lines[0]["losses"]["mask"]
    assert lines[-1]["losses"]["sam"] < 0.75 * lines[0]["losses"]["sam"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ris_config"])["preset"] == "tiny"
        assert set(run.model.state_dict()) == set(file.keys())


def test_lessons_come_first_and_teach_the_encoders_alone(tmp_path, source, tokenizer):
    lessons = SceneSource("train", 256, 3, 1, first=50)
    recipe = replace(RECIPE, lessons=2, steps=3)
    run = trainer(tmp_path, source, tokenizer, recipe, lessons)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.run(log_every=1, stop=2)
    changed = {k for k, v in run.model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    encoders = ("sam.image_encoder.", "clip_dense.", "text_encoder.", "lang_mlp.")
    assert all(k.startswith(encoders) for k in changed)
    again = trainer(tmp_path, source, tokenizer, recipe, lessons)
    assert again.resume()
    again.run(log_every=1)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    patches = {"sam", "sam_places", "sam_order", "clip", "clip_places", "clip_order", "around"}
    taught = patches | {"sentence"}
    assert [set(x["losses"]) for x in lines[:2]] == [taught] * 2
    asked = {"mask", "dfam", "vl", "no_target", "dense", "relevance"}
    assert set(lines[2]["losses"]) == taught | asked
    plot_log(tmp_path / "log.jsonl", tmp_path / "log.png")


@pytest.mark.parametrize(
    ("features", "device", "expected"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "cpu", False),
        (("avx2", "avx512f", "avx512_bf16"), "cpu", True),
        (("asimd", "bf16"), "cpu", True),
        ((), "cuda", True),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(monkeypatch, features, device, expected):
    monkeypatch.setattr(loop, "cpu_features", lambda: frozenset(features))
    assert loop.computes_bf16(torch.device(device)) == expected


def test_weights_to_give_away_are_half_the_size_and_say_the_same(tmp_path, source, tokenizer):
    run = trainer(tmp_path, source, tokenizer)
    run.save()
    size = publish(tmp_path / "model.safetensors", tmp_path / "half.safetensors")
    assert size < 0.55 * (tmp_path / "model.safetensors").stat().st_size
    model, _ = load_model(WeightFiles(checkpoint=tmp_path / "half.safetensors"))
    for name, value in run.weights().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        run.model.lang_mlp.weight.fill_(1e6)
    run.average = None
    run.save()
    message = r"lang_mlp.weight has values that float16 cannot hold"
    with pytest.raises(CheckpointError, match=message):
        publish(tmp_path / "model.safetensors", tmp_path / "half.safetensors")


def test_another_recipe_does_not_go_on_with_the_state(tmp_path, source, tokenizer):
    first = trainer(tmp_path, source, tokenizer)
    first.save()
    with pytest.raises(CheckpointError, match="another recipe or preset"):
        trainer(tmp_path, source, tokenizer, replace(RECIPE, learning_rate=1.0)).resume()
    # a longer run is the same run
    assert trainer(tmp_path, source, tokenizer, replace(RECIPE, steps=99)).resume()
    (tmp_path / "state.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainer(tmp_path, source, tokenizer).resume()


def test_a_loss_that_is_no_number_stops_the_run(tmp_path, source, tokenizer):
    run = trainer(tmp_path, source, tokenizer)
    with torch.no_grad():
        run.model.lang_mlp.weight.fill_(float("nan"))
    with pytest.raises(RisError, match="not finite at step 0"):
        run.run()


def test_frozen_parts_stay_and_stored_features_change_nothing(tmp_path, tokenizer):
    """With frozen encoders a run over stored features is the run without, up to their float16."""

    class Named(SceneSource):
        kinds = 0

        def batch(self, step):
            raw = super().batch(0)
            return replace(raw, kinds=None, things=None, image_keys=("first", "second"))

    recipe = replace(
        RECIPES["supplement"], images=2, expressions=3, steps=2, bf16=False, learning_rate=1e-3
    )
    source = Named("train", 256, 2, 3)
    source.kinds = 0
    plain = trainer(tmp_path / "plain", source, tokenizer, recipe)
    before = {k: v.clone() for k, v in plain.model.state_dict().items()}
    plain.run(validate_every=1000)
    stored = trainer(tmp_path / "stored", source, tokenizer, recipe, features=tmp_path / "features")
    stored.run(validate_every=1000)
    assert len(list((tmp_path / "features").rglob("*.npz"))) == 2
    changed = [k for k, v in plain.model.state_dict().items() if not torch.equal(v, before[k])]
    assert changed
    assert not [k for k in changed if k.startswith(recipe.frozen)]
    ours, theirs = stored.model.state_dict(), plain.model.state_dict()
    for key in changed:
        torch.testing.assert_close(ours[key], theirs[key], rtol=0.05, atol=5e-3)


def test_stored_features_belong_to_their_weights_and_damage_is_repaired(tmp_path):
    model = fresh_model(TINY, 0).eval()
    store = FeatureStore(tmp_path, model)
    assert store.read("a") is None
    store.write("a", torch.ones(4, 2, 2), torch.zeros(9, 3))
    embeddings, tokens = store.read("a")
    assert embeddings.shape == (4, 2, 2)
    assert tokens.shape == (9, 3)
    next(store.folder.glob("*.npz")).write_bytes(b"torn")
    assert store.read("a") is None
    other = FeatureStore(tmp_path, fresh_model(TINY, 1))
    assert other.folder != store.folder


def test_stored_features_need_frozen_encoders(tmp_path, source, tokenizer):
    with pytest.raises(RisError, match="frozen image encoders"):
        trainer(tmp_path, source, tokenizer, features=tmp_path / "features")
