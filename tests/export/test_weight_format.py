"""`--weight-format`: matrices in 8 or 4 bits, on any family; what it says and what it refuses."""

from __future__ import annotations

import dataclasses
import json

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from made_up_exports import export_made_up

from conftest import REPO
from ris.calibration.numerics.weights import weight_values
from ris.calibration.weights.graph import find_matrices
from ris.calibration.weights.groups import FORMATS
from ris.engines import create
from ris.engines.errors import RisError
from ris.export.bundle_writer import ExportResult
from ris.export.command import main
from ris.export.families import DESIGNS
from ris.export.summary import print_summary
from ris.export.weights import formats_of, parse_formats
from ris.reference.evfsam.config import PRESETS
from ris.runtime import load, open_bundle
from ris.runtime.commands.parity import main as parity_command
from ris.runtime.parity import check_model, load_golden
from ris.runtime.tolerance import END_TO_END, TOLERANCES, failed_rows, tolerance_of

STAGE = "fusion"
"""The graph that EVF-SAM names."""


def export(*arguments):
    return CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture(scope="module", params=FORMATS)
def narrow(request, tmp_path_factory):
    """Tiny EVF-SAM with the fusion's matrices in a format."""
    folder = tmp_path_factory.mktemp(request.param)
    config = PRESETS["tiny-evfsam"]
    made = export_made_up(folder, config, family="evfsam", weights={"": request.param})
    return request.param, open_bundle(made)


def test_the_graphs_that_the_family_names_have_narrow_matrices_and_no_others(narrow):
    format, bundle = narrow
    stored = {stage: entry.weights for stage, entry in bundle.manifest.graphs.items()}
    assert [stage for stage, found in stored.items() if found] == [STAGE]
    found = stored[STAGE]
    assert (found.format, found.group, found.rounding) == (format, 128, "nearest")
    graph = onnx.load(bundle.graph(STAGE).path, load_external_data=False).graph
    kind = {"int8": onnx.TensorProto.INT8, "int4": onnx.TensorProto.INT4}[format]
    rounded = [t for t in graph.initializer if t.data_type == kind]
    products = [node for node in graph.node if node.op_type == "MatMul"]
    assert found.matrices == len(rounded) > len(products) / 2
    assert found.elements == sum(int(np.prod(t.dims)) for t in rounded)
    schema = json.loads((REPO / "runtime" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads(bundle.manifest.to_json()), schema)
    assert bundle.manifest.precision == bundle.manifest.graphs[STAGE].precision == "fp32"
    assert bundle.manifest.graphs[STAGE].shown == f"fp32, {format} weights"


def test_what_rounding_costs_is_in_the_manifest(narrow, evfsam_bundle):
    format, bundle = narrow
    entry = bundle.manifest.graphs[STAGE]
    least, most = {"int8": (0.002, 0.01), "int4": (0.05, 0.2)}[format]
    assert least < entry.weights.error < most
    plain = open_bundle(evfsam_bundle).manifest
    rows, before = bundle.manifest.parity, plain.parity
    output = f"{STAGE}.{entry.outputs[0].name}"
    assert before[output].relative < 1e-4 < rows[output].relative
    assert rows[END_TO_END].relative > before[END_TO_END].relative
    assert bundle.manifest.mask_iou < plain.mask_iou
    assert entry.parameters == plain.graphs[STAGE].parameters, "rounding leaves no weight out"


def test_what_rounding_changed_is_known_layer_by_layer(narrow, evfsam_bundle):
    """As the FP32 graph's matrices and those of the levels and scales differ."""
    _, bundle = narrow
    stored = bundle.manifest.graphs[STAGE].weights
    path, before = bundle.graph(STAGE).path, evfsam_bundle / "graphs" / f"{STAGE}.onnx"
    tensors = {t.name: t for t in onnx.load(path, load_external_data=False).graph.initializer}
    sizes, squares = {}, {}
    for name, one in find_matrices(onnx.load(before, load_external_data=False).graph).items():
        layer = _layer(before, one.reader)
        levels = weight_values(tensors[f"{name}.{stored.format}"], path.parent).astype(np.float32)
        scales = weight_values(tensors[f"{name}.scale"], path.parent)
        [exact] = [t for t in onnx.load(before).graph.initializer if t.name == name]
        exact = onnx.numpy_helper.to_array(exact)
        changed = levels * np.repeat(scales, one.group, 0) - exact
        error = np.linalg.norm(changed) / np.linalg.norm(exact)
        sizes[layer] = sizes.get(layer, 0) + exact.size
        squares[layer] = squares.get(layer, 0.0) + exact.size * error**2
    want = {layer: (squares[layer] / sizes[layer]) ** 0.5 for layer in sizes}
    assert stored.layers == pytest.approx(want, rel=1e-3)
    assert set(stored.layers) > {"layers.0", "layers.1"}
    whole = (sum(squares.values()) / sum(sizes.values())) ** 0.5
    assert stored.error == pytest.approx(whole, rel=1e-3)


def _layer(path, product):
    """The layer of a product, by the biases that are added behind products of its block."""
    graph = onnx.load(path, load_external_data=False).graph
    [made] = [node.output[0] for node in graph.node if node.name == product]
    [bias] = {
        name
        for node in graph.node
        if node.op_type == "Add" and made in node.input
        for name in node.input
        if name != made
    }
    return ".".join(bias.split(".")[:2])


def test_the_command_says_which_layers_rounding_changed_most(narrow, capsys):
    format, bundle = narrow
    manifest = bundle.manifest
    layers = {"layers.0": 0.02, "layers.1": 0.04, "layers.2": 0.01, "layers.3": 0.03}
    entry = manifest.graphs[STAGE]
    weights = dataclasses.replace(entry.weights, error=0.025, layers=layers)
    stages = tuple(
        dataclasses.replace(stage, weights=weights) if stage.name == STAGE else stage
        for stage in manifest.stages
    )
    shown = dataclasses.replace(manifest, stages=stages)
    print_summary(None, ExportResult(bundle.path, shown, None), 1.0)
    [line] = [line for line in capsys.readouterr().out.splitlines() if f" {format}: " in line]
    assert line.strip() == (
        f"{format}: {weights.matrices} matrices, relative error 2.50e-02;"
        " most in layers.1 4.00e-02, layers.3 3.00e-02, layers.0 2.00e-02"
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_both_engines_give_what_was_measured(narrow, engine):
    """Neither rounds more than the weights: the errors are those of the export to 1 %."""
    pytest.importorskip(engine)
    format, bundle = narrow
    with load(bundle.path, engine=engine, device="cpu", compute="fp32") as model:
        report = check_model(model, load_golden(bundle))
        assert model.sessions[STAGE].weights == format
        assert model.sessions[STAGE].activations is None
    assert not report.failures
    measured = bundle.manifest.parity[END_TO_END].relative
    assert report.rows[END_TO_END].relative == pytest.approx(measured, rel=0.01)


def test_tensorrt_rtx_compiles_the_graph_and_keeps_the_bits(narrow, evfsam_bundle):
    """Its compiler runs here without a GPU; nothing of what it makes was run."""
    pytest.importorskip("tensorrt_rtx")
    _, bundle = narrow
    engine = create("tensorrt-rtx")
    plans = [engine.build(one.graph(STAGE)) for one in (bundle, open_bundle(evfsam_bundle))]
    sizes = [plan.artifact.stat().st_size for plan in plans]
    stored = bundle.manifest.graphs[STAGE].weights
    assert sizes[1] - sizes[0] > stored.elements, "a byte of each weight and more is gone"
    assert not plans[0].report["unexpected"]


def test_parity_of_the_bundle_is_accepted_and_a_worse_one_is_not(narrow, tmp_path):
    _, bundle = narrow
    done = CliRunner().invoke(parity_command, [str(bundle.path), "--engine", "onnxruntime"])
    assert done.exit_code == 0, done.output
    rows = {
        name: dataclasses.replace(row, relative=row.relative / 2)
        for name, row in bundle.manifest.parity.items()
    }
    claims_more = dataclasses.replace(bundle.manifest, parity=rows)
    with load(bundle.path, engine="onnxruntime") as model:
        model.bundle = dataclasses.replace(bundle, manifest=claims_more)
        failures = check_model(model, load_golden(bundle)).failures
    assert any(END_TO_END in failure for failure in failures)


def test_each_graph_is_held_to_what_rounding_cost_itself(narrow):
    """The error of the one that was rounded is accepted of no other."""
    _, bundle = narrow
    with load(bundle.path, engine="onnxruntime") as model:
        tolerance = tolerance_of(model)
    usual = TOLERANCES["fp32"].stage
    rows, own = bundle.manifest.parity, f"{STAGE}.{bundle.manifest.graphs[STAGE].outputs[0].name}"
    assert tolerance.of(own) == pytest.approx(1.5 * rows[own].relative)
    assert {tolerance.of(row) for row in rows if not row.startswith(f"{STAGE}.")} == {usual}
    found = {row: dataclasses.replace(rows[row], relative=rows[own].relative) for row in rows}
    failures = failed_rows(found, tolerance)
    judged = {row for row in rows if row != END_TO_END}
    assert {text.partition(":")[0] for text in failures} >= judged - {own}
    assert own not in {text.partition(":")[0] for text in failures}


def test_what_runs_less_precisely_than_it_was_written_may_err_twice(narrow, monkeypatch):
    """The error of bfloat16 comes on top of what rounding the weights cost."""
    _, bundle = narrow
    with load(bundle.path, engine="onnxruntime") as model:
        own, running = tolerance_of(model).graphs[STAGE], dict(model.sessions)
        first = next(iter(running))
        running[first] = dataclasses.replace(running[first], precision="bf16")
        monkeypatch.setattr(type(model), "sessions", running)
        assert tolerance_of(model).graphs[STAGE] == own + TOLERANCES["bf16"].stage


def test_parity_says_what_is_accepted_of_the_graph(narrow):
    _, bundle = narrow
    done = CliRunner().invoke(parity_command, [str(bundle.path), "--engine", "onnxruntime"])
    assert f" of {STAGE}," in done.output.replace("\n", " ")


def test_a_bfloat16_bundle_may_have_narrow_matrices(tmp_path):
    made = export_made_up(
        tmp_path, PRESETS["tiny-evfsam"], "bf16", family="evfsam", weights={"": "int8"}
    )
    manifest = open_bundle(made).manifest
    assert manifest.graphs[STAGE].weights is not None
    assert manifest.graphs["sam_image_encoder"].precision == "bf16"
    with load(made, engine="onnxruntime") as model:
        assert not check_model(model, load_golden(open_bundle(made))).failures


def test_graphs_may_be_named_with_a_format_each():
    stages = DESIGNS["evfsam"].stages(PRESETS["tiny-evfsam"])
    asked = parse_formats(["int4", "sam_image_encoder=int8"])
    assert formats_of(stages, asked) == {STAGE: "int4", "sam_image_encoder": "int8"}
    assert formats_of(stages, parse_formats([f"{STAGE}=int8"])) == {STAGE: "int8"}
    assert formats_of(stages, parse_formats(["int4", f"{STAGE}=int8"])) == {STAGE: "int8"}
    assert formats_of(stages, {}) == {}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["int2"], "--weight-format 'int2': expected int8 or int4"),
        (["fusion="], "--weight-format 'fusion=': expected int8 or int4"),
        (["int4", "int8"], "names two formats for all graphs"),
        (["fusion=int4", "fusion=int8"], "names fusion twice"),
    ],
)
def test_formats_that_make_no_sense_are_refused(words, message):
    with pytest.raises(RisError, match=message):
        parse_formats(words)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weight-format", "fussion=int4"], "there is no graph 'fussion' whose weights could be"),
        (["--weight-format", "int4"], "name them, as in --weight-format sam_image_encoder=int4"),
        (["--weight-format", "int4", "--precision", "fp16"], "leave --precision fp16 out"),
        (["--weight-format", "int5"], "expected int8 or int4"),
    ],
)
def test_requests_that_cannot_be_met_write_nothing(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    done = export("--preset", "tiny", *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_counts_the_bits(tmp_path):
    plans = {}
    for word in (None, "int8", "int4"):
        chosen = [] if word is None else ["--weight-format", word]
        arguments = ["--preset", "tiny-evfsam", "--out", tmp_path / "b", "--dry-run", "--json"]
        done = export(*arguments, *chosen)
        assert done.exit_code == 0, done.output
        graphs = json.loads(done.output)["plan"]["graphs"]
        plans[word] = next(graph for graph in graphs if graph["stage"] == STAGE)
    assert plans[None]["weights"] is None
    assert plans["int4"]["weights"] == "int4"
    assert plans["int4"]["bytes"] < plans["int8"]["bytes"] < plans[None]["bytes"] / 2
