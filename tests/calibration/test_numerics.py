"""Ranges and true FP16 arithmetic.

It rounds as numpy does, and catches an overflow that ONNX Runtime's CPU hides.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from ris.calibration.command import main
from ris.calibration.numerics import (
    FP16_MAX,
    emulate_bundle,
    emulate_half,
    measure_ranges,
    read_ranges,
)
from ris.calibration.numerics.ranges import graph_ranges
from ris.calibration.samples import scene_samples
from ris.engines import EngineOptions, Graph, TensorSpec, create
from ris.engines.errors import BundleError, EngineError, RisError
from ris.export import fp16, precision
from ris.export.command import main as export_command
from ris.export.families.dfam import DESIGN
from ris.export.families.dfam.rules import ISLANDS
from ris.export.onnx_writer import write_onnx
from ris.export.reference_pass import Asked, reference_pass
from ris.export.sample import CATEGORIES, EXPRESSIONS, sample_image
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import deterministic_model
from ris.reference.families import FAMILIES
from ris.reference.tokenizer import tokenizer_from
from ris.runtime import open_bundle
from ris.runtime.loading import open_model
from ris.runtime.parity import check_model, check_stage, load_golden
from ris.runtime.tolerance import TOLERANCES

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT


def write_graph(path, nodes, weights=(), inputs=("x",), outputs=("y",)):
    """A graph of float32 vectors."""
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value(i, FULL, ["n"]) for i in inputs],
        [value(o, FULL, ["n"]) for o in outputs],
        list(weights),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path)
    return path


def run(path, **feeds):
    return onnxruntime.InferenceSession(str(path)).run(None, feeds)


def test_every_operator_rounds_as_numpy_does(tmp_path):
    w = numpy_helper.from_array(np.array([300], np.float16), "w")
    eps = numpy_helper.from_array(np.array([0.1], np.float16))
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "in", to=HALF),
        helper.make_node("Constant", [], ["eps"], "eps", value=eps),
        helper.make_node("Mul", ["h", "w"], ["m"], "mul"),
        helper.make_node("Add", ["m", "eps"], ["a"], "add"),
        helper.make_node("Reshape", ["a", "shape"], ["r"], "reshape"),
        helper.make_node("Div", ["r", "w"], ["d"], "div"),
        helper.make_node("Cast", ["d"], ["y"], "out", to=FULL),
    ]
    shape = numpy_helper.from_array(np.array([-1]), "shape")
    plain = write_graph(tmp_path / "plain.onnx", nodes, [w, shape])
    # the cast and three operators; moves have nothing to round
    assert emulate_half(plain, tmp_path / "rounded.onnx") == 4
    x = np.array([1.0001, 3.14159, -7.77, 300, 65519, 1e-8], np.float32)
    half, weight, small = x.astype(np.float16), np.float16(300), np.float16(0.1)
    with np.errstate(over="ignore"):
        want = ((half * weight + small) / weight).astype(np.float32)
    np.testing.assert_array_equal(run(tmp_path / "rounded.onnx", x=x)[0], want)
    assert np.isinf(want[3:5]).all()
    # ONNX Runtime's CPU on the FP16 graph itself: why this exists
    assert np.isfinite(run(plain, x=x)[0]).all()


def test_a_product_and_its_bias_round_once(tmp_path):
    rng = np.random.default_rng(0)
    w, b = rng.normal(size=(64, 8)).astype(np.float16), rng.normal(size=8).astype(np.float16)
    value = helper.make_tensor_value_info
    # a product that is read elsewhere is a value
    for outputs, once in ((("y",), True), (("y", "m"), False)):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"], "matmul"),
            helper.make_node("Add", ["b", "m"], ["y"], "add"),
        ]
        graph = helper.make_graph(
            nodes,
            "g",
            [value("x", HALF, [4, 64])],
            [value(name, HALF, [4, 8]) for name in outputs],
            [numpy_helper.from_array(w, "w"), numpy_helper.from_array(b, "b")],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save_model(model, tmp_path / "linear.onnx")
        count = emulate_half(tmp_path / "linear.onnx", tmp_path / "rounded.onnx")
        assert count == (1 if once else 2)
        rounded = onnx.load(tmp_path / "rounded.onnx")
        for v in (*rounded.graph.input, *rounded.graph.output):
            v.type.tensor_type.elem_type = FULL
        onnx.save_model(rounded, tmp_path / "rounded.onnx")
        x = rng.normal(size=(4, 64)).astype(np.float16).astype(np.float32)
        product = x @ w.astype(np.float32)
        if not once:
            product = product.astype(np.float16).astype(np.float32)
        want = (product + b.astype(np.float32)).astype(np.float16).astype(np.float32)
        np.testing.assert_array_equal(run(tmp_path / "rounded.onnx", x=x)[0], want)


def test_ranges_by_hand(tmp_path):
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"], "mul"),
        helper.make_node("Neg", ["square"], ["y"], "neg"),
        helper.make_node("Shape", ["x"], ["integers"], "shape"),
    ]
    path = write_graph(tmp_path / "g.onnx", nodes)
    spec = TensorSpec("x", "float32", ("n",)), TensorSpec("y", "float32", ("n",))
    graph = Graph("stage", path, spec[:1], spec[1:])
    found = graph_ranges(graph, {"x": np.array([1, -400, 30], np.float32)})
    assert {name: (r.node, r.operator, r.largest) for name, r in found.items()} == {
        "square": ("mul", "Mul", 160000.0),
        "y": ("neg", "Neg", 160000.0),
    }
    kept = precision.out_of_range(path, found)
    assert set(kept) == {"mul", "neg"}
    assert kept["neg"] == "y reaches 1.6e+05 in calibration; FP16 ends at 65504"

    def at(largest):
        changed = {name: replace(r, largest=largest) for name, r in found.items()}
        return precision.out_of_range(path, changed)

    assert at(FP16_MAX / 2) == {}
    assert set(at(float("nan"))) == set(kept)


def test_weights_beyond_fp16_are_not_clipped(tmp_path):
    weight = numpy_helper.from_array(np.array([1e5, -3], np.float32), "w")
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"], "mul"),
        helper.make_node("Neg", ["m"], ["y"], "neg"),
    ]
    path = write_graph(tmp_path / "g.onnx", nodes, [weight])
    kept = precision.out_of_range(path, {})
    assert kept == {"mul": "w holds 1e+05; FP16 ends at 65504"}
    precision.convert_to_fp16(path, tmp_path / "half.onnx", kept)
    got = run(tmp_path / "half.onnx", x=np.array([0.5, 2e-5], np.float32))[0]
    np.testing.assert_allclose(got, [-5e4, 6e-5], rtol=1e-3)


@pytest.fixture(scope="module")
def overflowing(tmp_path_factory):
    """A tiny text encoder, one of whose layers leaves FP16's range and comes back.

    Its graph, scopes and reference.
    """
    config = PRESETS["tiny"]
    model = deterministic_model(config)
    layer = model.text_encoder.encoder.layer[0]
    with torch.no_grad():
        layer.intermediate.dense.weight.mul_(3e5)
        layer.output.dense.weight.mul_(1e-2)
    folder = tmp_path_factory.mktemp("overflow")
    [stage] = [one for one in DESIGN.stages(config) if one.name == "text_encoder"]
    path = folder / "text_encoder.onnx"
    scopes = write_onnx(stage.build(model, "native"), stage, path)
    asked = Asked([sample_image()], EXPRESSIONS, CATEGORIES, [0, 0, 0])
    tokenizer, host = tokenizer_from(None, config), DESIGN.host(config)
    reference = reference_pass(FAMILIES["dfam"], model, tokenizer, host, asked)
    graph = Graph(stage.name, path, stage.inputs, stage.outputs)
    return graph, scopes, reference.arrays


def copy_of(graph, folder):
    for file in graph.path.parent.glob(f"{graph.path.name}*"):
        (folder / file.name).write_bytes(file.read_bytes())
    return replace(graph, path=folder / graph.path.name)


def test_the_check_catches_an_overflow_that_the_cpu_hides(overflowing, tmp_path):
    graph, scopes, reference = overflowing
    graph = copy_of(graph, tmp_path)
    precision.convert_to_fp16(
        graph.path, graph.path, precision.islands(graph.path, scopes, ISLANDS)
    )
    engine = create("onnxruntime", EngineOptions("cpu"))
    with engine.open(graph, graph.path) as session:
        [hidden] = check_stage("text_encoder", session, reference).values()
    [true] = fp16.check_half(graph, reference).values()
    assert np.isfinite(hidden.relative)
    assert true.relative == np.inf


def test_what_overflows_stays_fp32_and_the_reason_says_so(overflowing, tmp_path):
    graph, scopes, reference = overflowing
    graph = copy_of(graph, tmp_path)
    kept, rows = fp16.make_fp16(graph, scopes, ISLANDS, reference)
    assert rows["text_encoder.text_features"].relative < TOLERANCES["fp16"].stage
    assert fp16.check_half(graph, reference) == rows
    reasons = {reason for reason in kept.values() if "in calibration; FP16 ends at 65504" in reason}
    assert reasons
    assert len(kept) < 0.5 * len(onnx.load(graph.path, load_external_data=False).graph.node)


def test_where_no_range_tells_the_error_does(overflowing, tmp_path, monkeypatch):
    graph, scopes, reference = overflowing
    graph = copy_of(graph, tmp_path)
    monkeypatch.setattr(precision, "out_of_range", lambda path, ranges: {})
    said = []
    kept, rows = fp16.make_fp16(graph, scopes, ISLANDS, reference, report=said.append)
    assert said == ["searching FP32 islands"]
    assert rows["text_encoder.text_features"].relative < TOLERANCES["fp16"].stage
    said_of_it = "without it the error in FP16 is inf, accepted 1e-02"
    assert any(said_of_it in reason for reason in kept.values())


def test_known_ranges_count_where_they_are_larger(overflowing, tmp_path):
    graph, scopes, reference = overflowing
    ranges = graph_ranges(graph, {"input_ids": reference["input_ids"]})
    calm = min(ranges, key=lambda name: ranges[name].largest)
    known = {calm: replace(ranges[calm], largest=5e4)}
    graph = copy_of(graph, tmp_path)
    kept, _ = fp16.make_fp16(graph, scopes, ISLANDS, reference, known)
    assert f"{calm} reaches 5e+04 in calibration" in kept[ranges[calm].node]


def test_an_emulated_bundle_is_a_bundle(tiny_fp16_bundle, tmp_path):
    bundle = open_bundle(tiny_fp16_bundle)
    rounded = emulate_bundle(bundle, tmp_path / "rounded")
    assert open_bundle(tmp_path / "rounded").manifest.writer["ris-calibrate emulate"]
    with open_model(bundle, engine="onnxruntime") as model:
        easy = check_model(model, load_golden(bundle))
    with open_model(rounded) as model:
        # which keeps the roundings
        assert {info.engine for info in model.sessions.values()} == {"onnxruntime"}
        true = check_model(model, load_golden(rounded))
    assert true.failures == ()
    output = "sam_image_encoder.image_embeddings"
    assert easy.rows[output].relative < true.rows[output].relative
    # what the export wrote down is what true arithmetic gives
    written = bundle.manifest.parity["end_to_end.mask_logits"].relative
    assert true.rows["end_to_end.mask_logits"].relative == pytest.approx(written, rel=1e-3)
    said = "rounds as FP16 hardware does, which 'openvino' may leave out"
    with pytest.raises(EngineError, match=said):
        open_model(rounded, engine="openvino")
    with pytest.raises(BundleError, match="exists; choose another folder"):
        emulate_bundle(bundle, tmp_path / "rounded")
    with pytest.raises(BundleError, match="is an emulated bundle already"):
        emulate_bundle(rounded, tmp_path / "again")


def test_fp32_has_nothing_to_emulate(tiny_bundle, tmp_path):
    with pytest.raises(BundleError, match="is fp32; only FP16"):
        emulate_bundle(open_bundle(tiny_bundle), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ranges_of_a_bundle_survive_their_file(tiny_bundle, tmp_path):
    found = measure_ranges(open_bundle(tiny_bundle), scene_samples(6))
    assert found.samples == 6
    assert set(found.stages) == set(open_bundle(tiny_bundle).manifest.graphs)
    for values in found.stages.values():
        assert 0 < max(r.largest for r in values.values()) < FP16_MAX
    found.write(tmp_path / "ranges.json")
    assert read_ranges(tmp_path / "ranges.json") == found
    assert found.above(FP16_MAX) == []
    for text in ("[]", '{"stages": {}}', "torn {"):
        (tmp_path / "bad.json").write_text(text)
        said = r"bad\.json is not a file that ris-calibrate ranges wrote"
        with pytest.raises(RisError, match=said):
            read_ranges(tmp_path / "bad.json")


def test_ranges_of_other_families(made_up_bundle):
    found = measure_ranges(open_bundle(made_up_bundle), scene_samples(2))
    assert tuple(found.stages) == open_bundle(made_up_bundle).stages
    done = command("ranges", made_up_bundle, "--samples", "2")
    assert done.exit_code == 0, done.output
    assert all(f" {stage} " in done.output for stage in found.stages)


def command(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def test_the_command(tiny_bundle, tiny_fp16_bundle, tmp_path, monkeypatch, picture):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("photo.png")
    done = command("ranges", tiny_bundle, "photo.png", "-e", "left man", "--out", "ranges.json")
    assert done.exit_code == 0, done.output
    assert "Largest magnitudes over 1 expressions" in done.output
    assert json.loads((tmp_path / "ranges.json").read_text())["samples"] == 1
    done = command("ranges", tiny_bundle, "-e", "left man")
    assert (done.exit_code, "--expression is asked of IMAGES" in done.output) == (2, True)
    done = command("ranges", tiny_bundle, "--out", "nowhere/ranges.json")
    assert (done.exit_code, "nowhere: no such folder" in done.output) == (2, True)
    done = command("ranges", tiny_bundle, "nosuch.png", "-e", "left man")
    assert done.exit_code == 2
    assert "nosuch.png" in done.output
    done = command("emulate", tiny_fp16_bundle, "--out", "rounded")
    assert done.exit_code == 0, done.output
    assert "ris-eval rounded --samples 500" in done.output
    done = command("emulate", tiny_bundle, "--out", "other")
    assert (done.exit_code, "only FP16 has to be emulated" in done.output) == (2, True)


def test_an_export_keeps_what_the_ranges_say(tiny_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = measure_ranges(open_bundle(tiny_bundle), scene_samples(2))
    entries = found.stages["clip_image_encoder"].items()
    # FP16 by the rules
    name, entry = next((name, entry) for name, entry in entries if "MatMul" in entry.node)
    found.stages["clip_image_encoder"][name] = replace(entry, largest=7e4)
    found.write(tmp_path / "ranges.json")
    arguments = ["--preset", "tiny", "--random-weights", "0", "--ranges", "ranges.json"]
    # one graph in FP16, since each takes seconds
    others = [f"--fp32={stage}" for stage in found.stages if stage != "clip_image_encoder"]
    done = CliRunner().invoke(export_command, [*arguments, "--precision", "fp16", *others])
    assert done.exit_code == 0, done.output
    written = open_bundle(tmp_path / "ris-bundle").manifest.graphs["clip_image_encoder"]
    assert (
        written.fp32_islands[entry.node]
        == f"{name} reaches 7e+04 in calibration; FP16 ends at 65504"
    )
    done = CliRunner().invoke(export_command, arguments)
    assert (done.exit_code, "it belongs to --precision fp16" in done.output) == (2, True)
    found.sha256["sam_image_encoder"]["graphs/sam_image_encoder.onnx"] = "0" * 64
    found.write(tmp_path / "ranges.json")
    done = CliRunner().invoke(export_command, [*arguments, "--precision", "fp16", "--out", "other"])
    assert done.exit_code == 2
    said = "the ranges were measured on another sam_image_encoder than the one exported here"
    assert said in done.output
    assert not (tmp_path / "other").exists()
