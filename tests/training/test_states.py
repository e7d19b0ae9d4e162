"""What a run leaves on disk: states, best weights and logs that no failure takes away."""

from __future__ import annotations

import csv
import json
import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from ris.engines.errors import CheckpointError, RisError
from ris.training import keeper
from ris.training.learner import Stopped
from ris.training.plot import plot_log
from ris.training.run_folder import BEST, WEIGHTS, state_file, states, writing
from training_runs import DEMO, SUPPLEMENT, refer_run, scenes_run


def names(folder):
    return [path.name for path in states(folder)]


def read(path):
    return torch.load(path, weights_only=True)


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def poison(run, steps):
    """Makes the gradient of these steps no number."""
    gradients = run.learner._gradients

    def poisoned(groups, lesson):
        losses = gradients(groups, lesson)
        if run.step in steps:
            run.learner.parameters[3].grad.view(-1)[0] = float("nan")
        return losses

    run.learner._gradients = poisoned


def test_a_state_holds_what_trains_and_nothing_else(tmp_path):
    run = scenes_run(tmp_path, SUPPLEMENT)
    run.run(stop=1)
    state = read(state_file(tmp_path, 1))
    trained = set(state["trained"])
    assert trained == {k for k, p in run.model.named_parameters() if p.requires_grad}
    assert not [k for k in trained if k.startswith(SUPPLEMENT.frozen)]
    count = sum(value.numel() for value in state["trained"].values())
    whole = sum(p.numel() for p in run.model.parameters())
    assert count < 0.8 * whole
    # the weights, and AdamW's two means of each that had a gradient
    assert state_file(tmp_path, 1).stat().st_size < 3 * 4 * count + 500_000


def test_the_newest_states_are_kept_and_a_torn_one_is_named(tmp_path):
    run = scenes_run(tmp_path, keep=2)
    run.run(save_every=1)
    assert names(tmp_path) == ["state-00000003.pt", "state-00000004.pt"]
    states(tmp_path)[-1].write_bytes(b"PK\x03\x04 torn")
    message = r"state-00000004.pt cannot be read .* remove it to go on from state-00000003.pt"
    with pytest.raises(CheckpointError, match=message):
        scenes_run(tmp_path).resume()
    states(tmp_path)[-1].unlink()
    again = scenes_run(tmp_path)
    assert again.resume()
    assert again.step == 3


def test_a_state_that_was_not_resumed_is_not_written_over(tmp_path):
    scenes_run(tmp_path).run(stop=2)
    with pytest.raises(CheckpointError, match=r"state-00000002.pt was not resumed"):
        scenes_run(tmp_path).run()
    assert names(tmp_path) == ["state-00000002.pt"]


@pytest.mark.parametrize("name", ["state.pt", "log.jsonl", "model.safetensors"])
def test_a_run_without_a_state_is_not_written_over(tmp_path, name):
    """As a folder of an earlier version is."""
    (tmp_path / name).write_text('{"step": 7}\n')
    run = scenes_run(tmp_path)
    assert not run.resume()
    with pytest.raises(CheckpointError, match=f"has {name} and no state .* --restart"):
        run.run(stop=1)
    assert (tmp_path / name).read_text() == '{"step": 7}\n'


def test_a_run_that_was_killed_before_its_first_state_begins_again(tmp_path):
    scenes_run(tmp_path).run(log_every=1, stop=1)
    states(tmp_path)[-1].unlink()
    (tmp_path / WEIGHTS).unlink()
    assert len(log(tmp_path)) == 1
    again = scenes_run(tmp_path)
    assert not again.resume()
    again.run(log_every=1, stop=1)
    assert [line["step"] for line in log(tmp_path)] == [1]


def test_a_gradient_that_is_no_number_skips_its_step(tmp_path):
    run = scenes_run(tmp_path)
    poison(run, {1})
    run.run(log_every=1, stop=1)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    run.run(log_every=1, stop=2)
    assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    run.run(log_every=1, stop=3)
    assert not all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    lines = log(tmp_path)
    assert [line["skipped"] for line in lines] == [0, 1, 0]
    assert lines[1]["losses"] == {}
    assert lines[1]["norm"] is None


def test_several_in_a_row_stop_the_run_before_anything_is_written(tmp_path):
    recipe = replace(DEMO, steps=20)
    run = scenes_run(tmp_path, recipe)
    poison(run, set(range(2, 20)))
    with pytest.raises(RisError, match=r"5 steps in a row, to step 7.*state-00000002.pt is kept"):
        run.run(save_every=1)
    assert names(tmp_path)[-1] == "state-00000002.pt"
    again = scenes_run(tmp_path, recipe)
    assert again.resume(1e-5)
    again.run(save_every=1, stop=4)
    assert again.learner.is_finite()


def test_weights_that_are_no_numbers_are_not_written(tmp_path):
    run = scenes_run(tmp_path)
    run.run(stop=1)
    with torch.no_grad():
        run.model.lang_mlp.weight.fill_(float("nan"))
    with pytest.raises(RisError, match="a weight is not finite after step 1"):
        run.keeper.save()
    assert torch.isfinite(read(state_file(tmp_path, 1))["trained"]["lang_mlp.weight"]).all()
    with pytest.raises(RisError, match="not finite in 5 steps in a row"):
        scenes_run(tmp_path / "other", replace(DEMO, learning_rate=1e30, steps=20)).run()
    assert not states(tmp_path / "other")


def test_a_lower_rate_from_here_on_is_recorded(tmp_path):
    scenes_run(tmp_path).run(stop=2)
    run = scenes_run(tmp_path)
    assert run.resume(1e-5)
    run.run(log_every=1, stop=3)
    noted, line = log(tmp_path)[-2:]
    assert noted["note"] == "learning rate 0.0006 -> 1e-05"
    assert line["rate"] == pytest.approx(run.recipe.rate(2))
    assert run.recipe.learning_rate == 1e-5
    later = scenes_run(tmp_path)  # without a word the rate stays
    assert later.resume()
    assert later.recipe.learning_rate == 1e-5
    assert read(state_file(tmp_path, 3))["rates"] == [(0, 6e-4), (2, 1e-5)]
    with pytest.raises(CheckpointError, match="another recipe or preset"):
        scenes_run(tmp_path, replace(DEMO, weight_decay=0.1)).resume()


def test_a_state_whose_recipe_has_other_fields_does_not_go_on(tmp_path):
    """As those of development versions have, where mixed_precision was called bf16."""
    scenes_run(tmp_path).run(stop=1)
    path = state_file(tmp_path, 1)
    state = read(path)
    state["recipe"]["bf16"] = state["recipe"].pop("mixed_precision")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match="another recipe or preset; give another folder or"):
        scenes_run(tmp_path).resume()


def test_other_frozen_weights_do_not_go_on(tmp_path):
    scenes_run(tmp_path, SUPPLEMENT).run(stop=1)
    other = scenes_run(tmp_path, SUPPLEMENT)
    with torch.no_grad():
        other.model.sam.image_encoder.pos_embed += 1
    with pytest.raises(CheckpointError, match="trained beside other frozen weights"):
        other.resume()


def test_other_data_do_not_go_on(tmp_path):
    run = refer_run(tmp_path / "run")
    run.run(stop=1)
    references = tmp_path / "data" / "grefcoco" / "grefs(unc).json"
    shorter = json.loads(references.read_text())[1:]
    references.write_text(json.dumps(shorter))
    message = r"trained on grefcoco:1 \(\d+ sentences, .* and this is grefcoco:1 .* --restart"
    with pytest.raises(CheckpointError, match=message):
        refer_run(tmp_path / "run").resume()


def test_processes_that_do_not_see_one_folder_are_refused(tmp_path, monkeypatch):
    run = scenes_run(tmp_path)
    run.run(stop=1)
    again = scenes_run(tmp_path)
    several = property(lambda self: 2)
    with monkeypatch.context() as patched:
        patched.setattr(type(again.accelerator), "num_processes", several)
        patched.setattr(keeper, "gather_object", lambda own: own * 2)
        assert again.resume()
        patched.setattr(keeper, "gather_object", lambda own: [*own, (0, "other")])
        with pytest.raises(CheckpointError, match=r"at steps 1, 0; .* that all machines share"):
            again.resume()


def test_a_folder_is_written_by_one_run_at_a_time(tmp_path):
    with writing(tmp_path), pytest.raises(RisError, match="another process trains in"):
        scenes_run(tmp_path).run()
    scenes_run(tmp_path).run(stop=1)


def test_a_worker_that_outlives_its_run_does_not_hold_the_folder(tmp_path):
    begun, begins = os.pipe()
    stop, stops = os.pipe()
    with writing(tmp_path):
        child = os.fork()
        if child == 0:
            os.write(begins, b"x")
            os.close(stops)
            os.read(stop, 1)
            os._exit(0)
        os.read(begun, 1)
    try:
        with writing(tmp_path):
            pass
    finally:
        os.close(stops)
        os.waitpid(child, 0)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("during", ["train_step", "_average"])
def test_a_signal_saves_before_the_run_leaves(tmp_path, number, during):
    """Even one that comes while the weights are changed, half an update."""
    run = scenes_run(tmp_path)
    owner = run if during == "train_step" else run.learner
    whole, before = getattr(owner, during), signal.getsignal(number)

    def signalled(*arguments):
        done = whole(*arguments)
        if run.step == 2:
            signal.raise_signal(number)  # to this thread, at once
        return done

    setattr(owner, during, signalled)
    with pytest.raises(KeyboardInterrupt):
        run.run(save_every=100)
    assert names(tmp_path) == ["state-00000002.pt"]
    assert not run.learner.updating
    assert signal.getsignal(number) is before
    assert scenes_run(tmp_path).resume()


def test_one_process_that_leaves_takes_all_along(tmp_path, monkeypatch):
    run = scenes_run(tmp_path)
    monkeypatch.setattr(run.learner, "_over_processes", lambda own: {**own, "stop": 0.5})
    with pytest.raises(Stopped):
        run.run(save_every=100)
    assert names(tmp_path) == ["state-00000000.pt"]


def test_an_interrupted_validation_gives_the_weights_back(tmp_path, monkeypatch):
    run = scenes_run(tmp_path)
    run.run(stop=2)
    own = {k: p.detach().clone() for k, p in run.learner.trained.items()}
    load = run.model.load_state_dict

    def interrupted(state, strict):
        load(state, strict=strict)
        if state is run.learner.average:
            raise KeyboardInterrupt

    monkeypatch.setattr(run.model, "load_state_dict", interrupted)
    with pytest.raises(KeyboardInterrupt), run.learner.weights_to_use():
        pass
    assert all(torch.equal(p, own[k]) for k, p in run.learner.trained.items())


def test_the_weights_that_validated_best_stay(tmp_path):
    run = scenes_run(tmp_path, replace(DEMO, ema=0.0))
    each = []

    def score(figures):
        each.append({k: p.detach().clone() for k, p in run.learner.trained.items()})
        return {"miou": (0.2, 0.5, 0.3, 0.4)[len(each) - 1]}

    run.validation.score = score
    run.validation.answers = lambda asker, skipped: iter(())
    run.run(save_every=1, validate_every=1)
    asked = run.validation.identity
    assert run.keeper.best == {"step": 2, "metric": "miou", "value": 0.5, "validation": asked}
    best, last = load_file(tmp_path / BEST), load_file(tmp_path / WEIGHTS)
    assert best.keys() == last.keys() == run.model.state_dict().keys()
    assert all(torch.equal(best[k], v) for k, v in each[1].items())
    assert all(torch.equal(last[k], v) for k, v in each[3].items())
    with safe_open(tmp_path / BEST, "pt") as file:
        assert file.metadata()["step"] == "2"
        assert json.loads(file.metadata()["ris_config"])["preset"] == "tiny"
    again = scenes_run(tmp_path, replace(DEMO, ema=0.0))
    again.resume()
    assert again.keeper.best == run.keeper.best
    for other in ("metric", "validation"):  # what does not compare begins anew
        changed = scenes_run(tmp_path, replace(DEMO, ema=0.0))
        changed.keeper.about = replace(changed.keeper.about, **{other: "another"})
        changed.resume()
        assert changed.keeper.best is None


def test_a_figure_that_is_no_number_is_null_and_never_the_best(tmp_path):
    def no_constants(name):
        raise AssertionError(f"{name} is not JSON")

    run = scenes_run(tmp_path, trackers=("csv",))
    values = iter((float("nan"), 0.3, float("inf"), 0.2))
    run.validation.score = lambda figures: {"miou": next(values)}
    run.validation.answers = lambda asker, skipped: iter(())
    run.run(log_every=1, validate_every=1)
    text = (tmp_path / "log.jsonl").read_text().splitlines()
    lines = [json.loads(line, parse_constant=no_constants) for line in text]
    assert [line["validation"]["all"]["miou"] for line in lines] == [None, 0.3, None, 0.2]
    assert (run.keeper.best["step"], run.keeper.best["value"]) == (2, 0.3)
    with (tmp_path / "log.csv").open(newline="") as file:
        found = [row["validation/all/miou"] for row in csv.DictReader(file)]
    assert found == ["", "0.3", "", "0.2"]
    plot_log(tmp_path / "log.jsonl", tmp_path / "log.png")
    assert (tmp_path / "log.png").stat().st_size > 1000
    again = scenes_run(tmp_path)
    assert again.resume()
    assert again.keeper.best == run.keeper.best


def test_an_unknown_figure_is_refused_at_the_start(tmp_path):
    with pytest.raises(RisError, match="--best-by iou: this validation has samples, miou"):
        scenes_run(tmp_path, metric="iou")


def test_figures_go_to_csv_and_tensorboard_and_come_once(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = scenes_run(tmp_path, trackers=("csv", "tensorboard"))
    run.run(log_every=1, save_every=2, validate_every=4, stop=3)
    states(tmp_path)[-1].unlink()  # as if it had been killed before the third state
    again = scenes_run(tmp_path, trackers=("csv", "tensorboard"))
    again.resume()
    again.run(log_every=1, save_every=2, validate_every=4)
    with (tmp_path / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[0]["loss/mask"]) == pytest.approx(log(tmp_path)[0]["losses"]["mask"])
    assert rows[0]["validation/all/miou"] == ""
    assert float(rows[3]["validation/all/miou"]) >= 0
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert events.Images("answers")
