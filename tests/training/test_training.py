"""Training: the batched forward pass is the model's, and a resumed run is the same run."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

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
from ris.training.plot import plot_log
from ris.training.publish import publish
from ris.training.recipe import RECIPES, Recipe
from ris.training.scene_source import SceneSource

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
