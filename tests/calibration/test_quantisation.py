"""INT8, step by step: calibrators beside ONNX Runtime's, products in Q/DQ, exact smoothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import onnx
import onnxruntime
import pytest
from linked_folders import hub
from numpy.testing import assert_array_equal
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.calibrate import HistogramCollector
from stages import STAGES

from ris.calibration.int8 import statistics
from ris.calibration.int8.chain import Chain
from ris.calibration.int8.chain import _save as save_arrays
from ris.calibration.int8.histogram import BINS, Histogram
from ris.calibration.int8.statistics import measure
from ris.calibration.int8.work import Work
from ris.calibration.numerics.activations import ActivationReader
from ris.calibration.numerics.qdq import find_layers, quantise_weight, write_quantised
from ris.calibration.numerics.ranges import Ranges, read_ranges
from ris.calibration.numerics.smoothing import factors, find_folds, smooth
from ris.calibration.samples import scene_set
from ris.engines import EngineOptions, create
from ris.engines.errors import ParityError, RisError
from ris.runtime import open_bundle
from ris.runtime.comparing import compare
from ris.runtime.parity import graph_feeds, load_golden

SAM, CLIP = "sam_image_encoder", "clip_image_encoder"


# histograms and calibrators


def filled(values, pieces=1):
    histogram = Histogram()
    for part in np.array_split(np.asarray(values, np.float32), pieces):
        histogram.add(part)
    return histogram


def test_a_histogram_does_not_grow_and_forgets_nothing():
    rng = np.random.default_rng(0)
    # ever larger: it has to widen many times
    values = np.sort(np.abs(rng.normal(size=50_000))) * 30
    histogram = filled(values, pieces=100)
    assert histogram.counts.shape == (BINS,)
    assert histogram.counts.sum() == len(values)
    assert histogram.threshold("minmax") == pytest.approx(values.max())
    width = histogram.top / BINS
    for percentile in (50, 99, 99.99):
        exact = np.quantile(values, percentile / 100)
        assert abs(histogram.threshold("percentile", percentile) - exact) < 2 * width


def test_zeros_and_what_is_no_number():
    histogram = filled(np.zeros(10))
    assert [histogram.threshold(c) for c in ("minmax", "percentile", "entropy")] == [0, 0, 0]
    histogram.add(np.array([1.0], np.float32))
    assert histogram.counts[0] == 10
    with pytest.raises(RisError, match="not finite"):
        histogram.add(np.array([1.0, np.nan], np.float32))


def test_entropy_clips_what_is_rare_and_keeps_what_is_not():
    rng = np.random.default_rng(0)
    normal = rng.normal(size=200_000)
    outlier = np.append(normal, 60.0)
    assert filled(outlier).threshold("minmax") == 60
    assert 2.5 < filled(outlier).threshold("entropy") < 8
    uniform = rng.uniform(-1, 1, 200_000)
    assert filled(uniform).threshold("entropy") > 0.95
    # SAM pads its windows with zeros; they are no reason to clip anything
    assert filled(np.append(uniform, np.zeros(400_000))).threshold("entropy") > 0.95


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_calibrators_agree_with_onnxruntime(method, capsys):
    rng = np.random.default_rng(1)
    for values in (rng.normal(size=40_000), rng.laplace(size=40_000)):
        values = values.astype(np.float32)
        theirs = HistogramCollector(method, True, 1024, 128, 99.9, "same")
        theirs.collect({"x": values})
        limit = max(abs(float(x)) for x in theirs.compute_collection_result()["x"][:2])
        ours = filled(values).threshold(method, 99.9)
        # a percentile is a fact; the least divergence has a flat bottom, and they spread a level
        # over empty bins too
        assert ours == pytest.approx(limit, rel=0.01 if method == "percentile" else 0.35)


# the graph


def test_weights_by_channel():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(6, 4)).astype(np.float32) * np.array([1, 100, 0.01, 0], np.float32)
    levels, scale = quantise_weight(weight, 1)
    assert (levels.dtype, scale.shape) == (np.int8, (4,))
    assert np.abs(levels).max() == 127
    assert (np.abs(levels * scale - weight) <= scale / 2 * 1.0001).all()
    levels, scale = quantise_weight(rng.normal(size=(3, 2, 5, 5)).astype(np.float32), 0)
    assert (levels.shape, scale.shape) == ((3, 2, 5, 5), (3,))


@pytest.fixture
def small(tmp_path):
    """x -> Conv -> Reshape -> MatMul + bias -> Gemm (transposed) -> product of two activations."""
    rng = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)

    weights = [
        weight("conv.weight", 4, 3, 3, 3),
        weight("conv.bias", 4),
        weight("w", 4, 300),
        weight("linear.bias", 300),
        weight("gemm.weight", 5, 300),
        weight("gemm.bias", 5),
        weight("table", 2, 5, 4),
        numpy_helper.from_array(np.array([16, 4]), "shape"),
        numpy_helper.from_array(np.array([2, 8, 5]), "cut"),
    ]
    convolved = ["x", "conv.weight", "conv.bias"]
    nodes = [
        helper.make_node("Conv", convolved, ["c"], "n_conv", pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["c"], ["t"], "n_transpose", perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["t", "shape"], ["r"], "n_reshape"),
        helper.make_node("MatMul", ["r", "w"], ["m"], "n_matmul"),
        helper.make_node("Add", ["m", "linear.bias"], ["a"], "n_add"),
        helper.make_node("Gemm", ["a", "gemm.weight", "gemm.bias"], ["g"], "n_gemm", transB=1),
        helper.make_node("Transpose", ["g"], ["gt"], "n_gt"),
        helper.make_node("MatMul", ["g", "gt"], ["p"], "n_product"),
        helper.make_node("Reshape", ["g", "cut"], ["h"], "n_cut"),
        helper.make_node("MatMul", ["h", "table"], ["y"], "n_table"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, [1, 3, 4, 4])],
        [value("y", TensorProto.FLOAT, None), value("p", TensorProto.FLOAT, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "small.onnx"
    onnx.save_model(onnx.shape_inference.infer_shapes(model), path)
    return path


def test_layers_are_found_and_named(small):
    found = find_layers(small)
    assert [(layer.node, layer.name, layer.axis) for layer in found] == [
        ("n_conv", "conv", 0),
        ("n_matmul", "linear", 1),
        ("n_gemm", "gemm", 0),
    ]
    with_attention = find_layers(small, attention=True)
    assert [layer.node for layer in with_attention] == ["n_conv", "n_matmul", "n_gemm", "n_product"]
    assert with_attention[-1].activations == ("g", "gt")
    assert find_layers(small)[1].values == 16 * 4


def fake_quantised(x, threshold):
    scale = np.float32(threshold / 127)
    return np.clip(np.rint(x / scale), -128, 127) * scale


def test_a_quantised_graph_computes_what_the_formula_says(small, tmp_path):
    x = np.random.default_rng(1).normal(size=(1, 3, 4, 4)).astype(np.float32)
    # one product, whose input is the graph's own
    [conv] = [layer for layer in find_layers(small) if layer.operator == "Conv"]
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "one.onnx"
    write_quantised(small, target, [conv], {"x": 2.0})
    model = onnx.load(small)
    [tensor] = [t for t in model.graph.initializer if t.name == "conv.weight"]
    levels, scale = quantise_weight(numpy_helper.to_array(tensor), 0)
    tensor.CopyFrom(numpy_helper.from_array(levels * scale.reshape(-1, 1, 1, 1), "conv.weight"))
    run = onnxruntime.InferenceSession(model.SerializeToString()).run
    wanted = run(None, {"x": fake_quantised(x, 2.0).astype(np.float32)})
    got = onnxruntime.InferenceSession(str(target)).run(None, {"x": x})
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


def test_the_form_that_all_engines_take(small, tmp_path):
    """Symmetric, int8 weights behind DequantizeLinear alone, biases FP32, standard operators."""
    layers = find_layers(small, attention=True)
    thresholds = {name: 3.0 for layer in layers for name in layer.activations}
    target = tmp_path / "all.onnx"
    write_quantised(small, target, layers, thresholds)
    model = onnx.load(target)
    onnx.checker.check_model(model, full_check=True)
    tensors = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantise = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    dequantise = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    assert (len(quantise), len(dequantise)) == (5, 8)  # five activations; those and three weights
    for node in (*quantise, *dequantise):
        zero = tensors[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    weights = [node.input[0] for node in dequantise if node.input[0] in tensors]
    assert set(weights) == {"conv.weight/int8", "w/int8", "gemm.weight/int8"}
    assert all(tensors[name].dtype == np.int8 for name in weights)
    assert tensors["conv.bias"].dtype == tensors["linear.bias"].dtype == np.float32
    assert not {"w", "conv.weight", "gemm.weight"} & tensors.keys()
    assert {o.version for o in model.opset_import} == {20}
    with pytest.raises(RisError, match="reaches inf; such a graph cannot be quantised"):
        write_quantised(small, target, layers, {**thresholds, "g": float("inf")})


# smoothing

EXPECTED_FOLDS = {
    SAM: {"norm": 6, "values": 3},  # GELU's erf form is not foldable
    CLIP: {"norm": 6, "values": 3, "quick_gelu": 3},
    # post-norm: residual sums read all norms but the last
    "text_encoder": {"values": 2, "norm": 1},
}


@pytest.mark.parametrize("stage", STAGES)
def test_smoothing_changes_nothing_in_fp32(tiny_bundle, tmp_path, stage):
    """Any positive factors fold away exactly; here they span five decades."""
    bundle = open_bundle(tiny_bundle)
    graph, golden = bundle.graph(stage), load_golden(bundle)
    folds = find_folds(graph.path)
    if stage in EXPECTED_FOLDS:
        kinds = [fold.kind for fold in folds]
        assert {kind: kinds.count(kind) for kind in set(kinds)} == EXPECTED_FOLDS[stage]
    assert folds
    model = onnx.load(graph.path)
    shapes = {t.name: t.dims for t in model.graph.initializer}
    rng = np.random.default_rng(0)
    channels = {
        node.input[0]: 10 ** rng.uniform(-2, 3, shapes[node.input[1]][0]).astype(np.float32)
        for node in model.graph.node
        if any(node.name in fold.nodes for fold in folds)
    }
    done = smooth(graph.path, tmp_path / graph.path.name, channels, 0.5)
    assert len(done) == len(folds)
    engine = create("onnxruntime", EngineOptions("cpu"))
    feeds = graph_feeds(graph, golden)
    smoothed = tmp_path / graph.path.name
    with engine.open(graph, graph.path) as before, engine.open(graph, smoothed) as after:
        wanted, got = before.run(feeds), after.run(feeds)
    for name in wanted:
        assert compare(got[name], wanted[name]).relative < 2e-5
    data = f"{graph.path.name}.data"
    assert smoothed.with_name(data).read_bytes() != graph.path.with_name(data).read_bytes()


def test_a_graph_whose_files_are_links_gives_the_same(tiny_bundle, tmp_path):
    """The onnx package reads no weights through links."""
    written = []
    for name, bundle in (("plain", tiny_bundle), ("hub", hub(tiny_bundle, tmp_path / "laid"))):
        source, out = bundle / "graphs" / "text_encoder.onnx", tmp_path / name
        layers = find_layers(source)
        thresholds = {layer.activations[0]: 1.0 for layer in layers}
        weights = onnx.load(source, load_external_data=False).graph.initializer
        rows = {tensor.name: tensor.dims[0] for tensor in weights if tensor.dims}
        channels = {
            layer.activations[0]: np.full(rows[layer.weight], 3, np.float32) for layer in layers
        }

        (out / "smooth").mkdir(parents=True)
        write_quantised(source, out / source.name, layers, thresholds)
        assert smooth(source, out / "smooth" / source.name, channels, 0.5)
        written.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*.*")})
    assert len(written[0]) == 4
    assert written[0] == written[1]


def test_factors_are_those_of_the_paper():
    a, w = np.array([8.0, 2.0, 0.0]), np.array([2.0, 2.0, 5.0])
    s = factors(a, w, 0.5)
    assert s[0] / s[1] == pytest.approx(2)  # sqrt(8 / 2) to sqrt(2 / 2)
    assert np.isfinite(s).all()
    assert factors(a, w, 1.0)[0] / factors(a, w, 1.0)[1] == pytest.approx(4)


def outlier_graph(folder):
    """LayerNorm -> MatMul, one of whose channels is 100 times as large as the others."""
    rng = np.random.default_rng(0)
    scale = np.ones(64, np.float32)
    scale[5] = 100
    tensors = {
        "s": scale,
        "b": np.zeros(64, np.float32),
        "w": rng.normal(size=(64, 32)).astype(np.float32) / 8,
    }
    nodes = [
        helper.make_node("LayerNormalization", ["x", "s", "b"], ["n"], "n_norm"),
        helper.make_node("MatMul", ["n", "w"], ["y"], "n_matmul"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", TensorProto.FLOAT, ["n", 64])],
        [value("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(a, name) for name, a in tensors.items()],
        value_info=[value("n", TensorProto.FLOAT, ["n", 64])],
    )
    path = folder / "outlier.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path)
    return path, rng.normal(size=(512, 64)).astype(np.float32)


def run(path, x):
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0]


def test_smoothing_helps_where_a_channel_stands_out(tmp_path):
    path, x = outlier_graph(tmp_path)
    wanted = run(path, x)
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    channels = np.abs(normed).max(0)
    channels[5] *= 100
    (tmp_path / "smooth").mkdir()
    smoothed = tmp_path / "smooth" / path.name
    [fold] = smooth(path, smoothed, {"n": channels}, 0.5)
    assert fold.kind == "norm"
    errors = {}
    for name, source in (("plain", path), ("smoothed", smoothed)):
        [scale] = [t for t in onnx.load(source).graph.initializer if t.name == "s"]
        largest = float(np.abs(normed * numpy_helper.to_array(scale)).max())
        target = source.with_name("int8.onnx")
        write_quantised(source, target, find_layers(source), {"n": largest})
        errors[name] = compare(run(target, x), wanted).relative
    assert errors["smoothed"] < 0.5 * errors["plain"]


def test_a_fold_that_changes_the_function_is_refused(tiny_bundle, tmp_path, monkeypatch):
    bundle, samples = open_bundle(tiny_bundle), scene_set(1)
    chain = Chain(bundle, samples, tmp_path / "recorded")
    chain.record()

    def wrong(source, target, channels, alpha):
        folds = smooth(source, target, channels, alpha)
        model = onnx.load(target)
        [weight] = [t for t in model.graph.initializer if t.name == folds[0].weights[0]]
        changed = numpy_helper.to_array(weight) * np.float32(1.01)
        weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
        onnx.save_model(model, target)
        return folds

    monkeypatch.setattr(statistics, "smooth", wrong)
    work = Work(tmp_path / "work", {})
    said = "smoothing changed clip_image_encoder: clip_tokens is off by"
    with pytest.raises(ParityError, match=said):
        measure(chain, CLIP, work, alpha=0.5, attention=False)
    assert f"{CLIP}/folds" not in work


def test_activations_come_in_bounded_portions(tiny_bundle, tmp_path):
    bundle = open_bundle(tiny_bundle)
    graph = bundle.graph(CLIP)
    layers = find_layers(graph.path)
    image = np.zeros((1, 3, 84, 84), np.float32)
    shapes = {}
    for at_once in (1 << 27, 20_000):
        reader = ActivationReader(graph, layers, tmp_path, at_once=at_once)
        for names in reader.groups:
            size = sum(layer.values for layer in layers if layer.activations[0] in names)
            assert size <= at_once or len(names) == 1
        seen = {}

        def look(name, values, seen=seen):
            seen[name] = values.shape

        for names in reader.groups:
            with reader.opened(names) as show:
                show({"image": image}, look)
                assert names == list(seen)[-len(names) :]
        shapes[at_once] = (len(reader.groups), seen)
    assert shapes[1 << 27][0] == 1 < shapes[20_000][0]
    assert shapes[1 << 27][1] == shapes[20_000][1]
    assert {layer.activations[0] for layer in layers} == set(shapes[20_000][1])
    assert not list(tmp_path.glob("shown-*"))


def test_groups_of_activations_go_on_where_they_stopped(tiny_bundle, tmp_path, monkeypatch):
    """One session at a time, and the same as all activations at once."""
    bundle, samples = open_bundle(tiny_bundle), scene_set(2)
    chain = Chain(bundle, samples, tmp_path / "recorded")
    chain.record()

    def found(folder):
        return measure(chain, CLIP, Work(folder, {}), alpha=0.5, attention=False)

    at_once = found(tmp_path / "at-once")

    opened, most, ran = [], [], []

    class StoppedError(Exception):
        """As if the process had been killed."""

    class Reader(ActivationReader):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options, at_once=20_000)

        @contextmanager
        def opened(self, names):
            with super().opened(names) as show:
                opened.append(names)
                most.append(len(opened))

                def stopping(feeds, look):
                    ran.append(names)
                    if len(ran) in (2, 7):
                        raise StoppedError
                    show(feeds, look)

                try:
                    yield stopping
                finally:
                    opened.remove(names)

    monkeypatch.setattr(statistics, "ActivationReader", Reader)
    stops = 0
    while True:
        try:
            in_groups = found(tmp_path / "in-groups")
            break
        except StoppedError:
            stops += 1
    assert (stops, max(most)) == (2, 1)
    assert len({tuple(names) for names in ran}) > 2
    for name, histogram in at_once.histograms.items():
        assert_array_equal(in_groups.histograms[name].counts, histogram.counts)
    assert in_groups.folds == at_once.folds
    same = (statistics_of.path.read_bytes() for statistics_of in (at_once, in_groups))
    assert len(set(same)) == 1


# files that appear whole


def test_writers_of_one_file_do_not_meet(tmp_path):
    """Two runs with one folder."""
    works = [Work(tmp_path / "work", {}) for _ in range(4)]
    arrays = {"a": np.arange(9)}
    ranges = Ranges({}, 1, {})

    def write(work):
        for _ in range(50):
            work.save_arrays("found", arrays)
            save_arrays(tmp_path / "0.fusion.npz", arrays)
            ranges.write(tmp_path / "ranges.json")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, works))
    assert works[0].load_arrays("found")["a"].tolist() == list(range(9))
    assert read_ranges(tmp_path / "ranges.json") == ranges
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0.fusion.npz", "ranges.json", "work"]
    assert sorted(p.name for p in works[0].folder.iterdir()) == ["found.npz", "setup.json"]
