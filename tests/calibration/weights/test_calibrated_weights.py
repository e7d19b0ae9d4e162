"""`ris-calibrate weights`: levels for the inputs that layers have, and runs that go on."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from rounded_helper import FEW, INT4, SOURCE, UP, about, matrix_of
from safetensors import safe_open
from safetensors.numpy import load_file
from threadpoolctl import threadpool_info

from ris.calibration.command import main as calibrate
from ris.calibration.samples import scene_set
from ris.calibration.weights import data
from ris.calibration.weights.gptq import output_error, round_for_inputs
from ris.calibration.weights.groups import Rounded, round_in_groups
from ris.export.families import DESIGNS
from ris.export.rounded_file import RoundedFile
from ris.export.weight_calibration import Running, _Model, calibrate_weights, on_threads


def test_products_change_less_on_scenes_that_the_levels_were_not_chosen_on(made):
    """In every layer, its own inputs taken from other scenes."""
    formats = RoundedFile(made).formats
    model = _Model(SOURCE, about(**formats), None)
    stages = DESIGNS["lisa"].stages(SOURCE.config)
    targets = model.targets([stage for stage in stages if stage.name in formats])
    grams = {one: np.zeros((one.width, one.width), np.float32) for one in targets}
    others, seen = scene_set(28), len(scene_set(16))
    assert len(others) > seen
    for i in range(seen, len(others)):
        model.add_inputs(others[i], grams)
    rounded = RoundedFile(made)
    assert len(targets) == 23
    for one, gram in grams.items():
        matrix = model.matrix(one.layer)
        nearest = round_in_groups(matrix, "int4", one.group)
        chosen = rounded(matrix, "int4", one.group, one.name)
        errors = output_error(matrix, nearest, gram), output_error(matrix, chosen, gram)
        assert 0 < errors[1] < 0.9 * errors[0], one.name


def test_the_file_is_safetensors_by_the_models_names_and_says_what_it_was_made_of(made):
    with safe_open(made, "numpy") as opened:
        assert opened.metadata()["rounding"] == "gptq"
        levels = opened.get_tensor("layers.0.mlp.down_proj.weight.levels")
        scales = opened.get_tensor("layers.0.mlp.down_proj.weight.scales")
    assert (levels.dtype, levels.shape, scales.shape) == (np.int8, (256, 128), (2, 128))
    errors = RoundedFile(made).errors()
    assert len(errors) == 23
    assert all(one.chosen < one.nearest for one in errors.values())


def test_nearest_levels_are_kept_where_they_change_products_less(tmp_path, samples, monkeypatch):
    def worse(matrix, gram, format, group):
        nearest = round_in_groups(matrix, format, group)
        return Rounded(format, -nearest.levels, nearest.scales)

    monkeypatch.setattr("ris.export.weight_calibration.round_for_inputs", worse)
    said = []
    running = Running(say=said.append)
    found = calibrate_weights(SOURCE, samples, tmp_path / "r", INT4, running=running)
    assert all(one.chosen == one.nearest for one in found.errors().values())
    assert all(line.endswith("nearest levels kept") for line in said)
    matrix = matrix_of(SOURCE.make(), UP)
    nearest = round_in_groups(matrix, "int4", 128)
    np.testing.assert_array_equal(found(matrix, "int4", 128, UP).levels, nearest.levels)


def test_a_model_that_does_not_hold_its_matrices_gives_the_same_file(
    made, files, samples, tmp_path
):
    """With memory for the inputs of some layers alone, too."""
    passes = []

    def track(items, total, title):
        passes.append(title)
        return items

    source = dataclasses.replace(SOURCE, make=files.model)
    running = Running(memory=800_000, track=track)
    calibrate_weights(source, samples, tmp_path / "held", INT4, running=running)
    assert 1 < len(passes) < 6
    assert (tmp_path / "held").read_bytes() == made.read_bytes()


def test_a_stopped_calibration_goes_on_behind_the_last_matrix(made, samples, tmp_path):
    out, said = tmp_path / "rounded.safetensors", []

    def stop(line):
        said.append(line)
        if len(said) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_weights(SOURCE, samples, out, INT4, running=Running(say=stop))
    assert not out.exists()
    again = []
    calibrate_weights(SOURCE, samples, out, INT4, running=Running(say=again.append))
    assert len(again) == 23 - 4
    assert again[0] == said[4]
    assert out.read_bytes() == made.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def kill(monkeypatch, matrix, what):
    """Lets a calibration die at a matrix, counted from 1, once `what` of it is written."""
    append, note = data._append, data._Journal._note
    parts, lines = [], []

    def append_or_die(file, part):
        parts.append(part)
        if len(parts) < matrix + 1:  # behind the header
            return append(file, part)
        if what == "half of the record":
            file.write(np.ascontiguousarray(part.make()).tobytes()[: part.length // 2])
        elif what != "nothing":
            return append(file, part)
        raise KeyboardInterrupt

    def note_or_die(journal, line):
        lines.append(line)
        if len(lines) == matrix + 2:  # behind the recipe and the header
            if what == "half of its line":
                journal._file.write(json.dumps(line)[:20])
            elif what == "its line":
                note(journal, line)
            raise KeyboardInterrupt
        note(journal, line)

    monkeypatch.setattr(data, "_append", append_or_die)
    monkeypatch.setattr(data._Journal, "_note", note_or_die)


STEPS = ["nothing", "half of the record", "the record", "half of its line", "its line"]


@pytest.mark.parametrize("what", STEPS)
@pytest.mark.parametrize("matrix", [1, 23])
def test_a_run_killed_at_any_step_is_gone_on_with_to_the_same_bytes(
    few, matrix, what, tmp_path, monkeypatch
):
    out = tmp_path / "rounded.safetensors"
    with monkeypatch.context() as patch:
        kill(patch, matrix, what)
        with pytest.raises(KeyboardInterrupt):
            calibrate_weights(SOURCE, FEW, out, INT4)
    assert not out.exists()
    calibrate_weights(SOURCE, FEW, out, INT4)
    assert out.read_bytes() == few.read_bytes()
    assert [file.name for file in tmp_path.iterdir()] == [out.name]


def test_a_matrix_has_levels_and_scales_of_one_run(few, tmp_path, monkeypatch):
    """The run that goes on computes other levels and scales, as it may with other threads."""

    def otherwise(matrix, gram, format, group):
        found = round_for_inputs(matrix, gram, format, group)
        return Rounded(format, -found.levels, -1.0001 * found.scales)

    stopped, other = tmp_path / "stopped", tmp_path / "other"
    with monkeypatch.context() as patch:
        kill(patch, 5, "half of the record")
        with pytest.raises(KeyboardInterrupt):
            calibrate_weights(SOURCE, FEW, stopped, INT4)
    monkeypatch.setattr("ris.export.weight_calibration.round_for_inputs", otherwise)
    for out in (stopped, other):
        calibrate_weights(SOURCE, FEW, out, INT4)
    first, second, mixed = (load_file(path) for path in (few, other, stopped))
    names = list(RoundedFile(few).errors())
    for i, name in enumerate(names):
        of = first if i < 4 else second
        for part in ("levels", "scales"):
            np.testing.assert_array_equal(mixed[f"{name}.{part}"], of[f"{name}.{part}"])
        assert not np.array_equal(first[f"{name}.scales"], second[f"{name}.scales"])


def test_other_samples_do_not_go_on_with_what_is_there(tmp_path):
    out, count = tmp_path / "rounded.safetensors", []

    def stop(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate_weights(SOURCE, scene_set(4), out, INT4, running=Running(say=stop))
    calibrate_weights(SOURCE, scene_set(2), out, INT4, running=Running(say=count.append))
    assert len(count) == 23


def test_as_many_threads_compute_as_were_asked_for(few, tmp_path, monkeypatch):
    """PyTorch's, and those of numpy's products; what was set before is set again."""
    seen = []

    def look(*given, **named):
        seen.extend(pool["num_threads"] for pool in threadpool_info())
        seen.append(torch.get_num_threads())
        return RoundedFile(few)

    monkeypatch.setattr("ris.export.weight_calibration.calibrate_weights", look)
    with on_threads(2):
        before = threadpool_info(), torch.get_num_threads()
        words = ["--preset", "tiny-lisa", "--random-weights", "0", "--samples", "1", "--threads"]
        done = CliRunner().invoke(calibrate, ["weights", *words, "1", "--out", str(tmp_path / "n")])
        assert done.exit_code == 0, done.output
        assert (threadpool_info(), torch.get_num_threads()) == before
    assert {pool["user_api"] for pool in threadpool_info()} >= {"blas", "openmp"}
    assert set(seen) == {1}
