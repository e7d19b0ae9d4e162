"""`ris-calibrate weights`, `ris-export --weights-from`: levels for the inputs that layers have."""

from __future__ import annotations

import dataclasses
import json
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from held_files import UNTRAINED, Files
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from threadpoolctl import threadpool_info

from ris.calibration.command import main as calibrate
from ris.calibration.samples import scene_set
from ris.calibration.weights import data
from ris.calibration.weights.gptq import output_error, round_for_inputs
from ris.calibration.weights.groups import Rounded, round_in_groups
from ris.engines import EngineOptions, create
from ris.engines.errors import RisError
from ris.export import bundle_writer, graph_writer
from ris.export.bundle_writer import ExportOptions
from ris.export.command import main as export
from ris.export.families import DESIGNS
from ris.export.graph_writer import GraphJob, write_graphs
from ris.export.held import held_back
from ris.export.reference_pass import reference_pass
from ris.export.rounded_file import About, Record, RoundedFile
from ris.export.sources import made_up
from ris.export.weight_calibration import Running, _Model, calibrate_weights, on_threads
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle
from ris.runtime.parity import check_stage

INT4 = {"": "int4"}
QUESTION = "language_question"
UP = "layers.0.mlp.up_proj.weight"
SOURCE = made_up("tiny-lisa", 0)
FEW = scene_set(2)


@pytest.fixture(scope="module")
def samples():
    return scene_set(16)


@pytest.fixture(scope="module")
def made(tmp_path_factory, samples):
    """The file of tiny LISA."""
    path = tmp_path_factory.mktemp("made") / "rounded.safetensors"
    calibrate_weights(SOURCE, samples, path, INT4)
    return path


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """The same of few samples."""
    path = tmp_path_factory.mktemp("few") / "rounded.safetensors"
    calibrate_weights(SOURCE, FEW, path, INT4)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The same model, whose matrices are read from files."""
    return Files("lisa", "tiny-lisa", tmp_path_factory.mktemp("files"))


def matrix_of(model, name):
    """A matrix [K, N] of a model, by its parameter's name."""
    return np.ascontiguousarray(model.get_parameter(name).detach().numpy().T)


def about(source=SOURCE, **formats):
    return About(source.family, source.config, source.describe(), formats)


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


# --- graphs and bundles ---


def write(model, rounded, folder):
    """The graph of a question, as an export writes it; its entry and the job."""
    family, config, design = FAMILIES["lisa"], SOURCE.config, DESIGNS["lisa"]
    host, every, formats = design.host(config), design.stages(config), {QUESTION: "int4"}
    options = ExportOptions(weights=formats, rounded=rounded)
    planned = bundle_writer._planned("lisa", config, UNTRAINED, options, every, host)
    tokenizer = family.tokenizer_of(None, config, False)
    asked = bundle_writer._asked(design.questions(config, False), host)
    again = partial(reference_pass, family, model, tokenizer, host, asked)
    (folder / "bundle").mkdir(parents=True)
    job = GraphJob(
        *(planned, model, again(), folder / "bundle", options, lambda step: None, formats),
        held=held_back(model),
    )
    [stage] = [stage for stage in every if stage.name == QUESTION]
    [entry], _ = write_graphs([stage], job, again)
    return entry, job.graph(stage), again


@pytest.fixture(scope="module")
def graph(made, tmp_path_factory):
    """The graph of the whole model: written in FP32 and checked, then rounded."""
    return write(SOURCE.make(), RoundedFile(made), tmp_path_factory.mktemp("whole"))


def test_both_engines_compute_what_the_reference_does_with_the_same_matrices(made, graph):
    _, written, _ = graph
    model, levels = SOURCE.make(), load_file(made)
    for name, layer in model.named_modules():
        if (found := levels.get(f"{name}.weight.levels")) is not None:
            rounded = Rounded("int4", found, levels[f"{name}.weight.scales"])
            layer.weight.data = torch.from_numpy(rounded.values().T)
    family, host = FAMILIES["lisa"], DESIGNS["lisa"].host(SOURCE.config)
    asked = bundle_writer._asked(DESIGNS["lisa"].questions(SOURCE.config, False), host)
    tokenizer = family.tokenizer_of(None, SOURCE.config, False)
    arrays = reference_pass(family, model, tokenizer, host, asked).arrays
    for name in ("onnxruntime", "openvino"):
        pytest.importorskip(name)
        narrow = dataclasses.replace(written, weights="int4")
        options = EngineOptions() if name == "onnxruntime" else EngineOptions(compute="fp32")
        with create(name, options).load(narrow) as session:
            [row] = check_stage(QUESTION, session, arrays).values()
        assert row.relative < 1e-4, name


def test_matrices_that_are_read_on_the_way_give_the_same_graph(
    made, files, graph, tmp_path, monkeypatch
):
    """It is checked against a pass of the reference whose matrices have the same levels."""
    monkeypatch.setattr(graph_writer, "DIRECT_FROM", 0)
    entry, _, _ = write(files.model(), RoundedFile(made), tmp_path)
    assert (entry.sha256, entry.weights) == (graph[0].sha256, graph[0].weights)
    assert entry.weights.rounding == "gptq"


def twins(model):
    """The model, with the same matrix in two layers, whose inputs differ."""
    layers = model.layers
    layers[1].mlp.up_proj.weight.data = layers[0].mlp.up_proj.weight.data.clone()
    return model


def test_equal_matrices_have_the_levels_of_their_own_inputs(tmp_path, monkeypatch):
    """Where the model has all of them, and where they are read from files."""
    source = dataclasses.replace(SOURCE, make=lambda: twins(SOURCE.make()))
    path = tmp_path / "rounded.safetensors"
    calibrate_weights(source, FEW, path, INT4)
    tensors, names = load_file(path), (UP, "layers.1.mlp.up_proj.weight")
    first, second = (Rounded("int4", tensors[f"{n}.levels"], tensors[f"{n}.scales"]) for n in names)
    assert np.array_equal(*(tensors[f"{name}.sha256"] for name in names))
    assert not np.array_equal(first.levels, second.levels)

    entry, graph, _ = write(source.make(), RoundedFile(path), tmp_path / "whole")
    written = graph.path.with_name(f"{graph.path.name}.data").read_bytes()
    assert 0 < written.find(first.packed().tobytes()) < written.find(second.packed().tobytes())

    files = Files("lisa", "tiny-lisa", tmp_path)
    files.weights = {n: v.detach() for n, v in source.make().state_dict().items()}
    monkeypatch.setattr(graph_writer, "DIRECT_FROM", 0)
    held, _, _ = write(files.model(), RoundedFile(path), tmp_path / "held")
    assert held.sha256 == entry.sha256


def test_a_matrix_whose_place_is_not_known_is_found_by_its_values_where_one_has_them(
    made, tmp_path
):
    matrix = matrix_of(SOURCE.make(), UP)
    found, nearest = RoundedFile(made), round_in_groups(matrix, "int4", 128)
    np.testing.assert_array_equal(
        found(matrix, "int4", 128, "").levels, found(matrix, "int4", 128, UP).levels
    )
    assert found.require_taken().startswith("1 of 1 matrices")
    elsewhere = found(matrix, "int4", 128, "layers.1.mlp.up_proj.weight")
    np.testing.assert_array_equal(elsewhere.levels, nearest.levels)

    digest = load_file(made)[f"{UP}.sha256"]
    other = "layers.1.mlp.up_proj.weight"
    twice = changed(made, tmp_path / "f", other, "sha256", slice(None), digest)
    np.testing.assert_array_equal(twice(matrix, "int4", 128, "").levels, nearest.levels)
    assert not np.array_equal(twice(matrix, "int4", 128, other).levels, nearest.levels)


def test_the_commands_make_a_bundle_with_these_levels_that_both_engines_open(tmp_path, monkeypatch):
    """Of EVF-SAM, whose graph has matrices that the export computes: they are in the file too."""
    monkeypatch.chdir(tmp_path)
    model = ["--preset", "tiny-evfsam", "--random-weights", "0"]
    done = CliRunner().invoke(calibrate, ["weights", *model, "--samples", "4", "--out", "r"])
    assert done.exit_code == 0, done.output
    assert "Wrote r: 34 of 34 matrices with other than the nearest levels" in done.output
    assert "ris-export --weight-format int4 --weights-from r" in done.output
    done = CliRunner().invoke(
        export, [*model, "--weight-format", "int4", "--weights-from", "r", "--out", "b"]
    )
    assert done.exit_code == 0, done.output
    stored = open_bundle(tmp_path / "b").manifest.graphs["fusion"].weights
    assert (stored.rounding, stored.matrices) == ("gptq", 34)
    assert "int4 by GPTQ: 34 matrices" in done.output
    assert "34 of 34 matrices as r says" in done.output
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        with load(tmp_path / "b", engine=engine, device="cpu") as opened:
            scene = opened.encode_image(np.zeros((60, 80, 3), np.uint8))
            assert scene.segment("left man").mask.shape == (60, 80)


# --- what is refused ---


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (about(made_up("tiny-lisa", 1), language_question="int4"), "was made of other weights"),
        (about(made_up("tiny-evfsam", 0), fusion="int4"), "was made of other weights"),
        (about(language_question="int8"), "in 'int4', and int8 is asked for; run ris-"),
        (about(mask_decoder="int4"), "has no matrices of mask_decoder; run ris-calibrate weights"),
    ],
)
def test_a_file_of_another_model_or_format_is_refused(made, wanted, message):
    with pytest.raises(RisError, match=message):
        RoundedFile(made).require(wanted)


@pytest.mark.parametrize("damage", ["text", "other tensors", "cut", "later", "no scales"])
def test_what_is_no_such_file_is_refused(made, tmp_path, damage):
    path = tmp_path / "f"
    with safe_open(made, "numpy") as opened:
        metadata = opened.metadata()
    if damage == "text":
        path.write_text("levels")
    elif damage == "cut":
        path.write_bytes(made.read_bytes()[:-100])
    elif damage == "other tensors":
        save_file({"a": np.zeros(3)}, path)
    elif damage == "later":
        save_file(load_file(made), path, metadata | {"version": "3"})
    else:
        tensors = {name: value for name, value in load_file(made).items() if ".scales" not in name}
        save_file(tensors, path, metadata)
    message = "reads 2; run" if damage == "later" else "f is no (whole )?file of ris-calibrate"
    with pytest.raises(RisError, match=message):
        RoundedFile(path)


def changed(made, path, name, part, index, value):
    """Another file, in which a number of a matrix is another, and its check is right."""
    tensors = load_file(made)
    tensors[f"{name}.{part}"][index] = value
    with safe_open(made, "numpy") as opened:
        about = opened.metadata()
    record = Record(*(tensors[f"{name}.{one}"] for one in ("levels", "scales", "sha256", "errors")))
    tensors[f"{name}.check"] = record.check(about, name)
    save_file(tensors, path, about)
    return RoundedFile(path)


@pytest.mark.parametrize(("part", "value"), [("levels", 8), ("scales", np.nan), ("scales", 0)])
def test_levels_that_four_bits_do_not_hold_and_odd_scales_are_refused(made, tmp_path, part, value):
    found = changed(made, tmp_path / "f", UP, part, (0, 0), value)
    with pytest.raises(RisError, match=f"has levels at {UP} that int4 does not; copy it again"):
        found(matrix_of(SOURCE.make(), UP), "int4", 128, UP)


def test_matrices_that_it_does_not_have_are_counted_and_none_at_all_is_refused(made, tmp_path):
    digest = load_file(made)[f"{UP}.sha256"]
    found = changed(made, tmp_path / "f", UP, "sha256", 0, digest[0] ^ 1)
    with pytest.raises(RisError, match="f has none of the matrices of these graphs; run ris-"):
        found.require_taken()
    for name in (UP, "layers.0.mlp.gate_proj.weight"):
        matrix = matrix_of(SOURCE.make(), name)
        rounded, nearest = found(matrix, "int4", 128, name), round_in_groups(matrix, "int4", 128)
        assert np.array_equal(rounded.levels, nearest.levels) == (name == UP)
    assert found.require_taken() == f"1 of 2 matrices as {tmp_path / 'f'} says"


def flipped(made, path, tensor):
    """A copy with one bit of a tensor flipped."""
    found = bytearray(made.read_bytes())
    begin = 8 + int.from_bytes(found[:8], "little")
    found[begin + json.loads(found[8:begin])[tensor]["data_offsets"][0]] ^= 1
    path.write_bytes(found)


@pytest.mark.parametrize("part", ["levels", "scales", "sha256", "errors", "check"])
def test_one_flipped_bit_is_found_before_anything_is_written(made, tmp_path, part):
    flipped(made, tmp_path / "f", f"{UP}.{part}")
    message = f"f is damaged at {UP}: its hash differs; copy it again, or run ris-calibrate weights"
    with pytest.raises(RisError, match=message):
        RoundedFile(tmp_path / "f").require(about(**RoundedFile(made).formats))
    if part != "sha256":  # by that it is found
        with pytest.raises(RisError, match=message):
            RoundedFile(tmp_path / "f")(matrix_of(SOURCE.make(), UP), "int4", 128, UP)


def test_so_is_one_in_what_the_file_says_of_itself(made, tmp_path):
    with safe_open(made, "numpy") as opened:
        inputs = opened.metadata()["inputs"]
    for text in (inputs, f"{UP}.levels", f"{UP}.check"):
        found = bytearray(made.read_bytes())
        found[found.index(text.encode())] ^= 1
        (tmp_path / "f").write_bytes(found)
        with pytest.raises(RisError, match=r"f is (damaged at|no whole file)"):
            RoundedFile(tmp_path / "f").require(about(**RoundedFile(made).formats))


def test_an_export_of_a_damaged_file_writes_no_bundle(made, tmp_path):
    flipped(made, tmp_path / "f", f"{UP}.levels")
    words = ["--preset", "tiny-lisa", "--random-weights", "0", "--weight-format", "int4"]
    words += ["--weights-from", str(tmp_path / "f"), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(export, words)
    assert done.exit_code == 2, done.output
    assert f"is damaged at {UP}: its hash differs; copy it again" in done.output
    assert not (tmp_path / "b").exists()


def test_matrices_whose_inputs_are_not_seen_are_named(tmp_path):
    """PyTorch's own attention multiplies with them itself."""
    words = ["--preset", "tiny", "--random-weights", "0", "--samples", "1", "--json"]
    words += ["--weight-format", "clip_image_encoder=int4", "--out", str(tmp_path / "r")]
    done = CliRunner().invoke(calibrate, ["weights", *words])
    assert done.exit_code == 0, done.output
    errors = json.loads(done.stdout)
    unseen = [name for name, one in errors.items() if one is None]
    assert unseen == [name for name in errors if name.endswith(".attn.out_proj.weight")]
    assert 0 < len(unseen) < len(errors)
    assert f"{unseen[0]}: none of its inputs were seen; nearest levels" in done.stderr


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "r")
    words = ["--preset", "tiny", "--random-weights", "0", "--samples", "1"]
    words += ["--weight-format", "clip_image_encoder=int4", "--out", str(tmp_path / "link")]
    done = CliRunner().invoke(calibrate, ["weights", *words])
    assert done.exit_code == 0, done.output
    assert "not seen" in done.output
    assert (tmp_path / "link").is_symlink()
    assert [file.name for file in (tmp_path / "far").iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tiny-nobody"], "there is no preset 'tiny-nobody'; there are "),
        (["--preset", "tiny-lisa", "--weight-format", "int2"], "expected int8 or int4"),
        (["--preset", "tiny"], "name them, as in --weight-format sam_image_encoder=int4"),
        (["--preset", "tiny-lisa", "--out", "there"], "there exists; choose another --out, or"),
        (["--preset", "tiny-lisa", "--out", "no/r"], "no: no such folder; make it"),
        (["--preset", "tiny-lisa", "-e", "left man"], "--expression is asked of IMAGES"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    out = [] if "--out" in arguments else ["--out", "r"]
    done = CliRunner().invoke(calibrate, ["weights", "--samples", "2", *arguments, *out])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_levels_without_a_format_and_those_of_another_model_write_no_bundle(made, tmp_path):
    words = ["--preset", "tiny-lisa", "--weights-from", str(made), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(export, words)
    assert done.exit_code == 2
    assert "give --weight-format as well" in done.output
    done = CliRunner().invoke(export, [*words, "--weight-format", "int4", "--random-weights", "7"])
    assert done.exit_code == 2
    assert "was made of other weights than these" in done.output
    assert not (tmp_path / "b").exists()


def test_the_errors_are_there_for_programs(tmp_path):
    words = ["--preset", "tiny-evfsam", "--random-weights", "0", "--samples", "2", "--json"]
    done = CliRunner().invoke(calibrate, ["weights", *words, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    errors = json.loads(done.stdout)
    assert len(errors) == 34
    assert all(0 <= one["chosen"] <= one["nearest"] for one in errors.values())
