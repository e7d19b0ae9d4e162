"""`ris-export --weights-from`: graphs and bundles with calibrated levels."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from held_files import UNTRAINED, Files
from rounded_helper import FEW, INT4, QUESTION, SOURCE, UP, changed, matrix_of
from safetensors.numpy import load_file

from ris.calibration.command import main as calibrate
from ris.calibration.weights.groups import Rounded, round_in_groups
from ris.engines import EngineOptions, create
from ris.export import bundle_writer, graph_writer
from ris.export.bundle_writer import ExportOptions
from ris.export.command import main as export
from ris.export.families import DESIGNS
from ris.export.graph_writer import GraphJob, write_graphs
from ris.export.held import held_back
from ris.export.reference_pass import reference_pass
from ris.export.rounded_file import RoundedFile
from ris.export.weight_calibration import calibrate_weights
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle
from ris.runtime.parity import check_stage


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
