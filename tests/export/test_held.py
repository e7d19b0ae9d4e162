"""Large matrices that are read from the model's files as they are needed.

The bytes of a graph are the same, and so is what the reference computes.
"""

from __future__ import annotations

import dataclasses
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from held_files import LEAST, UNTRAINED, Files
from lisa_helper import released_state, write_clip, write_folder
from torch import nn

from ris.calibration.weights.data import journal_of
from ris.engines.errors import ParityError, RisError
from ris.export import bundle_writer, graph_writer, held, streaming
from ris.export.bundle_writer import ExportOptions, export_bundle
from ris.export.families import DESIGNS
from ris.export.graph_writer import GraphJob, write_graphs
from ris.export.held import HeldBack, held_back, held_model
from ris.export.onnx_writer import trace_onnx
from ris.export.reference_pass import reference_pass
from ris.export.streaming import kept_beside
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.checkpoint.entries import Entry
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle


@pytest.fixture(scope="module")
def lisa(tmp_path_factory):
    return Files("lisa", "tiny-lisa", tmp_path_factory.mktemp("lisa-files"))


@pytest.fixture(scope="module")
def evfsam(tmp_path_factory):
    return Files("evfsam", "tiny-evfsam", tmp_path_factory.mktemp("evfsam-files"))


def stage_of(files, name):
    stages = DESIGNS[files.family.name].stages(files.config)
    return next(stage for stage in stages if stage.name == name)


def trace(files, name, path, model):
    """The graph of a stage; both files' bytes, and what is traced."""
    stage, back = stage_of(files, name), held_back(model)
    one_image = DESIGNS[files.family.name].host(files.config).image_index is None

    def make():
        return stage.build(model, "native")

    module = make() if back is None else back.build(make)
    traced = trace_onnx(module, stage, path, one_image=one_image, held=back)
    traced.write()
    return (traced.path.read_bytes(), traced.data.read_bytes()), traced


@pytest.mark.parametrize(
    ("family", "stage", "computed"),
    [("lisa", "language_question", False), ("evfsam", "fusion", True)],
)
def test_a_graph_has_the_bytes_that_it_has_of_a_whole_model(
    family, stage, computed, request, tmp_path
):
    files = request.getfixturevalue(family)
    whole, _ = trace(files, stage, tmp_path / "a.onnx", files.family.made_up_model(files.config, 0))
    (tmp_path / "b").mkdir()
    model = files.model()
    before = held_back(model).elements
    parts, traced = trace(files, stage, tmp_path / "b" / "a.onnx", model)
    assert parts == whole
    assert len(traced.held) > 10
    # EVF-SAM folds scales into some matrices, which it then has to have
    assert (held_back(model).elements < before) == computed


def test_the_layout_is_that_of_the_exporter_itself(lisa, tmp_path, monkeypatch):
    import onnx_ir

    model = lisa.family.made_up_model(lisa.config, 0)
    ours, _ = trace(lisa, "language_question", tmp_path / "a.onnx", model)

    def theirs(graph, path, readers):
        onnx_ir.save(graph, path, external_data=f"{path.name}.data")
        return ()

    monkeypatch.setattr("ris.export.onnx_writer.save_graph", theirs)
    monkeypatch.setattr(streaming.Traced, "write", lambda self: None)
    assert trace(lisa, "language_question", tmp_path / "a.onnx", model)[0] == ours


def test_one_matrix_at_a_time_is_read_while_the_model_runs(lisa):
    model = lisa.model()
    layer = model.layers[0].mlp.gate_proj
    assert torch.isnan(layer.weight).all()
    x = torch.randn(2, layer.in_features)
    got = layer(x)
    torch.testing.assert_close(got, x @ lisa.weights["layers.0.mlp.gate_proj.weight"].T)
    assert torch.isnan(layer.weight).all(), "it is dropped again"
    assert layer.weight.untyped_storage().nbytes() == 4 * layer.in_features


def test_a_matrix_is_dropped_where_its_layer_fails(lisa):
    layer = lisa.model().layers[0].mlp.gate_proj
    with pytest.raises(RuntimeError):
        layer(torch.zeros(1, 3))
    assert torch.isnan(layer.weight).all()


def test_what_is_computed_of_a_placeholder_unseen_is_refused(tmp_path):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 64, bias=False)

        def forward(self, x):
            return x @ (self.linear.weight * 2).T

    model = Twice()
    value = model.linear.weight.detach().clone()
    entry = Entry((64, 64), torch.float32, tmp_path / "f", (lambda: value,), mapped=False)
    (tmp_path / "f").touch()
    back = HeldBack(model, {"linear.weight": entry}, LEAST)
    doubled = (model.linear.weight * 2).detach()
    import onnx_ir

    tensor = onnx_ir.tensor(doubled.numpy(), name="doubled")
    with pytest.raises(ValueError, match="doubled was computed of a matrix that is not here"):
        back.find(tensor)


@pytest.mark.parametrize("end", ["bin", "safetensors"])
def test_a_model_of_files_does_not_hold_them_and_computes_the_same(tmp_path, monkeypatch, end):
    config = FAMILIES["lisa"].presets["tiny-lisa"]
    folder = write_folder(tmp_path / "lisa", config, released_state(config), end)
    clip = write_clip(tmp_path / "clip.safetensors", config)
    whole, found = load_model(WeightFiles(folder, clip=clip))
    assert held_back(held_model(found)) is None, "few weights are no matter"
    monkeypatch.setattr(held, "HELD_FROM", 0)
    monkeypatch.setattr(held, "LEAST", LEAST)
    model = held_model(found)
    back = held_back(model)
    kinds = [layer for layer in whole.layers.modules() if isinstance(layer, nn.Linear)]
    assert back.elements > sum(layer.weight.numel() for layer in kinds)
    assert {file.parent for file in back.files} == {folder, tmp_path}
    images = FAMILIES["lisa"].prepare(whole, np.zeros((40, 60, 3), np.uint8))
    with torch.no_grad():
        got, want = (FAMILIES["lisa"].encode(one, images) for one in (model, whole))
    for name, value in want.items():
        assert torch.equal(got[name], value), name


# --- graphs with narrow weights, and whole bundles ---

QUESTION = "language_question"


def write(files, folder, formats, model=None):
    """The graph of a question alone, as an export writes it; its entry and the job."""
    family, config, design = files.family, files.config, DESIGNS[files.family.name]
    model, host, every = model or files.model(), design.host(config), design.stages(config)
    options = ExportOptions(weights=formats)
    planned = bundle_writer._planned(family.name, config, UNTRAINED, options, every, host)
    tokenizer = family.tokenizer_of(None, config, False)
    asked = bundle_writer._asked(design.questions(config, False), host)
    again = partial(reference_pass, family, model, tokenizer, host, asked)
    back = held_back(model)
    (folder / "bundle").mkdir(parents=True)
    job = GraphJob(
        *(planned, model, again(), folder / "bundle", options, lambda step: None, formats),
        held=back,
        kept=kept_beside(folder / "bundle", back.files),
    )
    stages = [stage for stage in every if stage.name == QUESTION]
    return write_graphs(stages, job, again)[0], job


IN_FOUR = {QUESTION: "int4"}


@pytest.fixture
def direct(monkeypatch):
    """Every graph is rounded as it is written, as those are whose FP32 weights are too many."""
    monkeypatch.setattr(graph_writer, "DIRECT_FROM", 0)


@pytest.fixture(scope="module")
def afterwards(lisa, tmp_path_factory):
    """The graph in INT4: written in FP32 and checked, then rounded."""
    return write(lisa, tmp_path_factory.mktemp("after"), IN_FOUR)[0]


def same(ours, theirs):
    return [(one.name, one.sha256, one.weights) for one in ours] == [
        (one.name, one.sha256, one.weights) for one in theirs
    ]


def test_rounding_on_the_way_gives_the_bytes_of_rounding_afterwards(
    lisa, afterwards, direct, tmp_path
):
    assert same(write(lisa, tmp_path, IN_FOUR)[0], afterwards)
    assert 0.1 < afterwards[0].weights.error < 0.13


def test_a_graph_that_disagrees_is_found_though_its_matrices_were_rounded(
    lisa, direct, tmp_path, monkeypatch
):
    """By a hundredth of one bias, far less than rounding costs."""
    original = graph_writer.trace_onnx

    def wrong(module, stage, path, **options):
        traced = original(module, stage, path, **options)
        end = "layers.0.input_layernorm.weight"
        [norm] = [part for part in traced.parts if part.name.endswith(end)]
        changed = dataclasses.replace(norm, make=lambda: norm.make() * np.float32(1.01))
        parts = tuple(changed if part is norm else part for part in traced.parts)
        return dataclasses.replace(traced, parts=parts)

    monkeypatch.setattr(graph_writer, "trace_onnx", wrong)
    with pytest.raises(ParityError, match="language_question does not agree"):
        write(lisa, tmp_path, IN_FOUR)


def test_two_graphs_may_not_store_one_matrix_in_two_ways(afterwards):
    """No single pass of the reference could then be what both are checked against."""
    [entry] = afterwards
    stored = [graph_writer._Written(entry, {}, {1: "int4", 2: "int4"}) for _ in range(2)]
    assert graph_writer._together(stored) == {1: "int4", 2: "int4"}
    stored.append(graph_writer._Written(entry, {}, {2: "int8"}))
    with pytest.raises(RisError, match="shares matrices with another graph that stores them in"):
        graph_writer._together(stored)


def test_what_a_stopped_export_wrote_is_not_made_again(
    lisa, afterwards, direct, tmp_path, monkeypatch
):
    """It goes on at the first matrix that is not there."""
    counted, original = {"reads": 0, "stop_at": 10}, held._read

    def read(*arguments):
        counted["reads"] += 1
        if counted["reads"] == counted["stop_at"]:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(held, "_read", read)
    with pytest.raises(KeyboardInterrupt):
        write(lisa, tmp_path, IN_FOUR)
    kept = tmp_path / ".bundle.export"
    assert any(journal_of(file).exists() for file in kept.glob("*.data"))
    counted.update(reads=0, stop_at=None)
    shutil.rmtree(tmp_path / "bundle")
    written, job = write(lisa, tmp_path, IN_FOUR)
    matrices = sum(one.weights.matrices for one in afterwards)
    assert counted["reads"] == matrices - 9
    assert same(written, afterwards)
    job.kept.remove()
    assert not kept.exists()


def test_a_whole_bundle_answers_and_leaves_nothing_beside_it(lisa, direct, tmp_path):
    said = []
    export_bundle(
        lisa.model,
        lisa.config,
        tmp_path / "b",
        family="lisa",
        source=UNTRAINED,
        options=ExportOptions(weights={"": "int8"}),
        report=said.append,
    )
    assert "reference pass with rounded matrices" in said
    assert [file.name for file in tmp_path.iterdir()] == ["b"]
    with load(tmp_path / "b", engine="onnxruntime") as model:
        scene = model.encode_image(np.zeros((60, 80, 3), np.uint8))
        assert scene.segment("left man").mask.shape == (60, 80)
        assert model.sessions["language_question"].computes == "fp32, int8 weights"
    [keys, values] = open_bundle(tmp_path / "b").graph("language_prefix").outputs
    assert keys.dtype == values.dtype == "float16"


def test_a_bfloat16_bundle_is_made_of_matrices_that_were_held_back(lisa, tmp_path):
    export_bundle(
        lisa.model,
        lisa.config,
        tmp_path / "b",
        family="lisa",
        source=UNTRAINED,
        options=ExportOptions(precision="bf16"),
    )
    assert [file.name for file in tmp_path.iterdir()] == ["b"]
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.graphs["language_question"].precision == "bf16"
