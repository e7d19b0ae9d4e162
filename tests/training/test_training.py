"""Training: the batched forward pass is the model's, and a resumed run is the same run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors import safe_open

from ris.engines.errors import CheckpointError, RisError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.dfam.config import PRESETS
from ris.reference.preprocess import token_ids
from ris.reference.tokenizer import tokenizer_from
from ris.training import devices
from ris.training.data import batches, hide_words
from ris.training.devices import make_accelerator, precision_of
from ris.training.forward import ask, encode
from ris.training.initialise import fresh_model
from ris.training.loading import Loading
from ris.training.loop import Trainer
from ris.training.options import HardwareOptions
from ris.training.plot import plot_log
from ris.training.publish import publish
from ris.training.recipe import Recipe
from ris.training.run_folder import read_state, states
from ris.training.samples import Sources
from ris.training.scene_source import SceneSource
from ris.training.step import keep_fewer_activations
from training_runs import DEMO, QUIET, SUPPLEMENT, TINY, FewScenes, scenes_run

HERE = Loading(workers=0)


@pytest.fixture(scope="module")
def source():
    return FewScenes(DEMO.images, DEMO.expressions)


def trainer(folder, source, tokenizer, recipe=DEMO, lessons=None, **options):
    return Trainer(
        folder,
        recipe,
        lambda: fresh_model(TINY, 0, recipe.objective),
        Sources(source, source, validation_steps=1, lessons=lessons),
        tokenizer,
        HardwareOptions(workers=0),
        replace(QUIET, **options),
    )


@pytest.mark.parametrize("variant", ["cls", "category"])
def test_the_batched_forward_pass_gives_what_the_model_gives(variant, source, tokenizer):
    config = TINY if variant == "cls" else TINY.with_category_query()
    model = fresh_model(config, 3).eval()
    model.text_embeddings.normal_(generator=torch.Generator().manual_seed(0))
    (batch,) = next(batches(source, config, tokenizer, 0, 1, HERE))
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
    recipe = Recipe(learning_rate=1.0, steps=100, warmup=10, drops=(), decay=0.5)
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


def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path, source, tokenizer):
    trainer(tmp_path / "whole", source, tokenizer).run(log_every=1, save_every=2, validate_every=4)

    broken = trainer(tmp_path / "broken", source, tokenizer)
    step = broken.train_step

    def dies_at_the_fourth(groups):
        if broken.step == 3:
            raise RuntimeError("killed")
        return step(groups)

    broken.train_step = dies_at_the_fourth
    with pytest.raises(RuntimeError):
        broken.run(log_every=1, save_every=2, validate_every=4)
    again = trainer(tmp_path / "broken", source, tokenizer)
    assert again.resume()
    assert again.step == 2  # the state of step 2; step 3 is done anew
    again.run(log_every=1, save_every=2, validate_every=4)

    whole, other = (read_state(tmp_path / name) for name in ("whole", "broken"))
    assert whole["step"] == other["step"] == 4
    for part in ("trained", "average", "heads"):
        for key, value in whole[part].items():
            assert torch.equal(value, other[part][key]), key
    logs = [
        [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "broken")
    ]
    assert [x["step"] for x in logs[0]] == [x["step"] for x in logs[1]] == [1, 2, 3, 4]
    assert [x["losses"] for x in logs[0]] == [x["losses"] for x in logs[1]]
    assert logs[0][-1]["validation"]["all"]["samples"] == 6
    plot_log(tmp_path / "whole" / "log.jsonl", tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 10_000


def test_half_an_update_is_not_saved(tmp_path, source, tokenizer):
    run = trainer(tmp_path, source, tokenizer)
    run.run(stop=1)
    again = trainer(tmp_path, source, tokenizer)
    again.resume()

    def interrupted_average():
        raise KeyboardInterrupt

    again.learner._average = interrupted_average  # between the optimiser and the average
    with pytest.raises(KeyboardInterrupt):
        again.run(save_every=100)
    assert [path.name for path in states(tmp_path)] == ["state-00000001.pt"]


def test_training_learns_and_the_weights_carry_their_sizes(tmp_path, tokenizer):
    """On one batch, again and again, the mask loss goes down; the run leaves a checkpoint."""

    class OneBatch(FewScenes):
        def batch(self, step, number=0, stored=None):
            return super().batch(0)

    recipe = replace(DEMO, steps=30, learning_rate=2e-3, unknown_words=0.0)
    run = trainer(tmp_path, OneBatch(2, 3), tokenizer, recipe)
    run.run(log_every=1, validate_every=1000)
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["losses"]["mask"] < 0.75 * lines[0]["losses"]["mask"]
    assert lines[-1]["losses"]["sam"] < 0.75 * lines[0]["losses"]["sam"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["ris_config"])["preset"] == "tiny"
        assert set(run.model.state_dict()) == set(file.keys())


def test_lessons_come_first_and_teach_the_encoders_alone(tmp_path, source, tokenizer):
    lessons = SceneSource("train", 256, 3, 1, first=50)
    recipe = replace(DEMO, lessons=2, steps=3)
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
    ("features", "expected"),
    [
        (("avx2", "avx512f", "avx512_vnni"), "no"),
        (("avx2", "avx512f", "avx512_bf16"), "bf16"),
        (("asimd", "bf16"), "bf16"),
    ],
)
def test_bfloat16_is_for_processors_that_have_it(monkeypatch, features, expected):
    monkeypatch.setattr(devices, "cpu_features", lambda: frozenset(features))
    assert precision_of("cpu") == expected


@pytest.mark.parametrize(("real", "expected"), [(True, "bf16"), (False, "fp16")])
def test_gpus_that_only_emulate_bfloat16_compute_in_float16(monkeypatch, real, expected):
    def supported(including_emulation=True):
        return real or including_emulation  # a V100 and a T4 say so

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert precision_of("cuda") == expected


def test_a_process_has_one_precision(monkeypatch):
    monkeypatch.setattr(devices, "precision_of", lambda device: "bf16")
    assert make_accelerator("cpu", mixed=True).mixed_precision == "bf16"
    with pytest.raises(RisError, match="in another process, please"):
        make_accelerator("cpu", mixed=False)


def test_a_run_leaves_the_process_as_it_was(tmp_path):
    """It needs PyTorch's deterministic algorithms; others in the process may not want them."""
    found = torch.utils.deterministic

    def settings():
        return torch.are_deterministic_algorithms_enabled(), found.fill_uninitialized_memory

    before, during = settings(), []
    run = scenes_run(tmp_path)
    for owner, name in ((run.learner, "train_step"), (run.validation, "score")):
        whole = getattr(owner, name)
        setattr(owner, name, lambda *a, f=whole, **k: (during.append(settings()), f(*a, **k))[1])
    run.run(stop=1)
    assert before == settings() == (False, True)
    assert len(during) > 2
    assert set(during) == {(True, False)}


def test_a_scaled_loss_is_scaled_down_until_it_fits(tmp_path):
    """What float16 does on a GPU: too large a scale is no reason to give up."""
    plain = scenes_run(tmp_path / "plain", SUPPLEMENT)
    plain.run()
    run = scenes_run(tmp_path / "scaled", SUPPLEMENT)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**6)
    run.run()
    ours, theirs = run.learner.trained, plain.learner.trained
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())

    run = scenes_run(tmp_path / "large", SUPPLEMENT)
    run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    found = [run.train_step(groups) for groups in run.batches(3)]
    assert [(step.changed, step.hopeless) for step in found] == [(False, False)] * 3
    assert run.accelerator.scaler.get_scale() == 2.0**124
    state = run.learner.state()
    other = scenes_run(tmp_path / "other", SUPPLEMENT)
    other.accelerator.scaler = torch.amp.GradScaler("cpu")
    other.learner.load(state, "it")
    assert other.accelerator.scaler.get_scale() == 2.0**124


def test_fewer_activations_give_the_same_numbers(tmp_path, source, tokenizer):
    found = []
    for fewer in (False, True):
        run = scenes_run(tmp_path / str(fewer), SUPPLEMENT)
        if fewer:
            keep_fewer_activations(run.model)
        kept = 0

        def keep(tensor):
            nonlocal kept
            kept += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step = run.train_step(next(run.batches(1)))
        found.append((step.losses, step.norm, kept))
    assert found[0][0] == found[1][0]
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-5)
    assert found[1][2] < 0.7 * found[0][2]


def test_what_holds_most_activations_is_computed_anew(tmp_path):
    def count(found, name, *_):
        found[name] += 1

    counts = []
    for fewer in (False, True):
        run, found = scenes_run(tmp_path / str(fewer), SUPPLEMENT), Counter()
        if fewer:
            keep_fewer_activations(run.model)
        for name, module in run.model.named_modules():
            if not list(module.children()):
                module.register_forward_hook(partial(count, found, name))
        run.train_step(next(run.batches(1)))
        counts.append(found)
    twice = [name for name, count in counts[0].items() if counts[1][name] == 2 * count]
    for part in (
        "text_encoder.encoder.layer.0.",
        "clip_pixel_decoder.transformer.encoder.layers.0.",
        "adaptor_clip.fusion.vis_project.",
        "adaptor_clip.fusion.image_lang_att.",
        "backbone_clip.",
        "backbone_sam.",
        "sam.mask_decoder.transformer.",
        "sam.mask_decoder.output_upscaling.",
        "decoder.",
    ):
        assert any(name.startswith(part) for name in twice), part


def test_weights_to_give_away_are_half_the_size_and_say_the_same(tmp_path, source, tokenizer):
    run = trainer(tmp_path, source, tokenizer)
    run.keeper.write_weights()
    size = publish(tmp_path / "model.safetensors", tmp_path / "half.safetensors")
    assert size < 0.55 * (tmp_path / "model.safetensors").stat().st_size
    model, _ = load_model(WeightFiles(checkpoint=tmp_path / "half.safetensors"))
    for name, value in run.learner.weights().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        run.model.lang_mlp.weight.fill_(1e6)
    run.learner.average = None
    run.keeper.write_weights()
    message = r"lang_mlp.weight has values that float16 cannot hold"
    with pytest.raises(CheckpointError, match=message):
        publish(tmp_path / "model.safetensors", tmp_path / "half.safetensors")


def test_another_recipe_does_not_go_on_with_the_state(tmp_path, source, tokenizer):
    trainer(tmp_path, source, tokenizer).keeper.save()
    with pytest.raises(CheckpointError, match="another recipe or preset"):
        trainer(tmp_path, source, tokenizer, replace(DEMO, weight_decay=1.0)).resume()
    # a longer run is the same run
    assert trainer(tmp_path, source, tokenizer, replace(DEMO, steps=99)).resume()


def test_stored_features_need_frozen_encoders(tmp_path, source, tokenizer):
    with pytest.raises(RisError, match="frozen image encoders"):
        trainer(tmp_path, source, tokenizer, features=tmp_path / "features")
