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
from ris.calibration.weights.groups import FORMATS
from ris.engines import create
from ris.engines.errors import RisError
from ris.export.command import main
from ris.export.families import DESIGNS
from ris.export.weights import formats_of, parse_formats
from ris.reference.evfsam.config import PRESETS
from ris.runtime import load, open_bundle
from ris.runtime.commands.parity import main as parity_command
from ris.runtime.parity import END_TO_END, check_model, load_golden

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
