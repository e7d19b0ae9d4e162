"""OpenVINO on the CPU: the same masks, other precisions only where asked, errors in a sentence."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from stages import BF16_STAGES, STAGES

from ris.engines import EngineOptions, Graph, TensorSpec, create, select
from ris.engines.errors import EngineError
from ris.runtime import load, open_bundle
from ris.runtime.parity import check_model, graph_feeds, load_golden
from ris.runtime.tolerance import TOLERANCES

openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
from ris.engines.openvino import _read_blobs, _write_blobs  # noqa: E402 - it needs OpenVINO

BF16 = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
NEEDS_BF16 = pytest.mark.skipif(not BF16, reason="this CPU has no bfloat16")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def opened(bundle, stage="text_encoder", **options):
    graph = replace(open_bundle(bundle).graph(stage), cache=None)
    engine = create("openvino", EngineOptions(**options))
    return engine.open(graph, engine.compile(graph))


def test_every_stage_agrees_with_the_reference(tiny_bundle):
    with load(tiny_bundle, engine="openvino") as model:
        report = check_model(model, load_golden(model.bundle), TOLERANCES["fp32"])
        assert report.failures == ()
        for info in model.sessions.values():
            assert (info.engine, info.device) == ("openvino", "cpu")
            assert info.providers[0] == "CPU fp32"  # never its own choice
            assert not any("bf16" in name for name in info.providers)


def test_the_category_variant_too(tiny_category_bundle):
    with load(tiny_category_bundle, engine="openvino") as model:
        assert check_model(model, load_golden(model.bundle), TOLERANCES["fp32"]).failures == ()


def test_many_expressions_and_images_of_any_number(tiny_bundle):
    with opened(tiny_bundle) as session:
        for count in (1, 3, 2):
            ids = np.ones((count, 35), np.int32)
            assert session.run({"input_ids": ids})["text_features"].shape[0] == count


@NEEDS_BF16
def test_bf16_is_what_runs_where_it_is_asked(tiny_bundle, tiny_fp16_bundle):
    with load(tiny_bundle, engine="openvino", compute="bf16") as model:
        ran = {stage: info.precision for stage, info in model.sessions.items()}
        assert ran == dict.fromkeys(STAGES, "fp32") | dict.fromkeys(BF16_STAGES, "bf16")
        assert "CPU bf16" in model.sessions["sam_image_encoder"].where
        assert {"CPU bf16", "CPU fp32"} <= set(model.sessions["fusion"].providers)
        report = check_model(model, load_golden(model.bundle))  # by the tolerance of what runs
        assert report.failures == ()
        assert 0.985 < report.mask_iou < 0.9999
        # in bfloat16 as a whole the fusion's dense prompt is 3e-2 off
        assert 1e-3 < report.rows["fusion.dense_prompt"].relative < 1.5e-2
        # the sparse prompt does not depend on what is bfloat16
        assert report.rows["fusion.sparse_prompt"].relative < 1e-5
    with load(tiny_bundle, engine="openvino", compute={"mask_decoder": "bf16"}) as model:
        precisions = {stage: info.precision for stage, info in model.sessions.items()}
        assert precisions == dict.fromkeys(STAGES, "fp32") | {"mask_decoder": "bf16"}

    # of an FP16 bundle too, and what is FP32 in it stays FP32
    with load(tiny_fp16_bundle, engine="openvino", compute="bf16") as model:
        assert "CPU bf16" in model.sessions["sam_image_encoder"].providers
        assert model.sessions["fusion"].precision == "bf16"
        assert check_model(model, load_golden(model.bundle)).failures == ()
        assert model.sessions["mask_decoder"].providers[0] == "CPU fp32"
    with load(tiny_fp16_bundle, engine="openvino", compute="fp32") as model:
        assert all(info.providers[0] == "CPU fp32" for info in model.sessions.values())


@NEEDS_BF16
def test_no_target_logits_in_bf16_over_many_images(tiny_bundle):
    """The error on one image says little: a place flips at DFAM's threshold, a maximum moves."""
    images = [
        np.random.default_rng(seed).integers(0, 256, (96, 128, 3), dtype=np.uint8)
        for seed in range(15)
    ]
    expressions = ["left man", "tree", "two cars"]
    found = {}
    for compute in ("fp32", "bf16"):
        with load(tiny_bundle, engine="openvino", compute={"fusion": compute}) as model:
            answers = [model.encode_image(image).segment_many(expressions) for image in images]
            found[compute] = np.array([[one.no_target for one in each] for each in answers])

    want, got = found["fp32"], found["bf16"]
    # the probabilities differ from image to image by far more than bfloat16 moves them
    assert want.std() > 0.04
    assert 1e-5 < np.median(np.abs(got - want)) < 5e-3
    assert np.abs(got - want).max() < 4e-2


@NEEDS_BF16
def test_a_graph_that_does_not_say_where_bf16_may_begin_stays_fp32(tiny_bundle):
    graph = replace(open_bundle(tiny_bundle).graph("fusion"), cache=None, bf16_from="nobody")
    engine = create("openvino", EngineOptions(compute="bf16"))
    with engine.open(graph, engine.compile(graph)) as session:
        assert session.info.precision == "fp32"
        assert "CPU bf16" not in session.info.providers

    # a whole graph in bfloat16 is another compilation than one in two parts
    whole = replace(graph, bf16_from=None)
    with engine.open(whole, engine.compile(whole)) as session:
        assert session.info.precision == "bf16"


@pytest.mark.parametrize(
    ("device", "has", "asked", "taken"),
    [
        ("CPU", {"FP32", "BF16", "FP16"}, None, "fp32"),
        ("CPU", {"FP32", "BF16", "FP16"}, "fp16", "fp16"),
        ("CPU", {"FP32", "BF16"}, None, "fp32"),
        ("CPU", {"FP32"}, None, "fp32"),
        ("GPU", {"FP32", "FP16"}, None, "fp16"),
        ("NPU", {"FP32", "BF16"}, None, "bf16"),
    ],
)
def test_a_cpu_computes_in_fp16_where_it_is_asked_to(
    tiny_bundle, monkeypatch, device, has, asked, taken
):
    """OpenVINO's FP16 takes no heed there of what is to stay FP32 within a graph."""
    engine = create("openvino", EngineOptions(device="cpu"))
    engine.device = device
    monkeypatch.setattr(engine, "_capabilities", has)
    engine.options = replace(engine.options, compute=asked)
    graph = open_bundle(tiny_bundle).graph("sam_image_encoder")
    graph = replace(graph, precision="fp16", fp32_islands=frozenset({"a"}))
    assert engine._compute(graph) == taken


@pytest.mark.parametrize(
    ("compute", "hints"), [("fp16", ["fp16"]), ("bf16", ["fp32", "bf16"]), ("fp32", ["fp32"])]
)
def test_what_is_compiled_is_opened_in_the_same_precision(tiny_bundle, monkeypatch, compute, hints):
    """Whether or not this CPU has it: what OpenVINO would be asked for, both times."""
    engine = create("openvino")
    monkeypatch.setattr(engine, "_capabilities", {"FP32", "BF16", "FP16"})
    engine.options = replace(engine.options, compute=compute)
    asked, settings = [], engine._settings
    monkeypatch.setattr(engine, "_settings", lambda one: asked.append(one) or settings("fp32"))
    graph = replace(open_bundle(tiny_bundle).graph("fusion"), cache=None)
    artifact = engine.compile(graph)
    assert asked == hints
    with engine.open(graph, artifact):
        assert asked == hints * 2


def test_compiled_graphs_in_one_file(tmp_path):
    blobs = [bytes(range(256)) * 20, b"", b"x"]
    _write_blobs(tmp_path / "blobs", blobs)
    read = _read_blobs(np.memmap(tmp_path / "blobs", np.uint8, "r"), tmp_path / "blobs")
    assert [blob.tobytes() for blob in read] == blobs
    for wrong in (b"", b"12345", bytes(8), b"\xff" * 400):
        with pytest.raises(EngineError, match="holds no compiled graph; compile it again"):
            _read_blobs(np.frombuffer(wrong, np.uint8), tmp_path / "wrong")


def test_compiled_once_and_again_for_what_changes_it(tiny_bundle):
    graph = replace(open_bundle(tiny_bundle).graph("mask_decoder"), cache=None)
    builds = [
        create("openvino", options).build(graph)
        for options in (
            EngineOptions(),
            EngineOptions(threads=1),  # no part of what is compiled
            EngineOptions(compute="bf16") if BF16 else EngineOptions(throughput=True),
        )
    ]
    assert [build.built_now for build in builds] == [True, False, True]
    assert builds[0].report["layers"]["fp32"] > 50
    assert builds[0].artifact.stat().st_size > 100_000
    blob = bytearray(builds[0].artifact.read_bytes())
    blob[1000] ^= 1
    builds[0].artifact.write_bytes(blob)
    with pytest.raises(EngineError, match="damaged"):
        create("openvino").open(graph, builds[0].artifact)
    assert create("openvino").build(graph).built_now


@pytest.mark.parametrize(
    "compute", ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not BF16, reason="no bf16"))]
)
def test_threads_share_a_session(tiny_bundle, compute):
    """Eight threads at once give what one gives, bit for bit, and no answer changes afterwards.

    bf16: also for a graph in two parts.
    """
    golden = load_golden(open_bundle(tiny_bundle))
    with opened(tiny_bundle, "fusion", threads=1, compute=compute) as session:
        fed = {
            name: value if name == "image_index" else np.asarray(value, np.float32)
            for name, value in graph_feeds(session.graph, golden).items()
        }
        feeds = [
            fed | {"pixel_values": fed["pixel_values"] * scale}
            for scale in np.linspace(0.5, 1.5, 8, dtype=np.float32)
        ]
        alone = [session.run(one) for one in feeds]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(session.run, feeds * 4))
        for i, outputs in enumerate(together):
            for name, value in outputs.items():
                np.testing.assert_array_equal(value, alone[i % 8][name])


def test_what_is_not_there_is_said(tiny_bundle, tmp_path):
    with pytest.raises(EngineError, match="OpenVINO has no device 'gpu' here; it has cpu"):
        create("openvino", EngineOptions(device="gpu"))
    with pytest.raises(EngineError, match="no device 'cuda'; it has cpu, gpu, npu"):
        create("openvino", EngineOptions(device="cuda"))
    unknown = "there is no precision 'int4'; known are fp32, bf16, fp16"
    with pytest.raises(EngineError, match=unknown):
        create("openvino", EngineOptions(compute="int4"))
    with pytest.raises(EngineError, match="'onnxruntime' has no option compute"):
        create("onnxruntime", EngineOptions(compute="bf16"))
    lacking = [name for name in ("fp16", "bf16") if name not in create("openvino").computes()]
    for name in lacking:
        with pytest.raises(EngineError, match=f"does not compute in {name}; it has fp32"):
            create("openvino", EngineOptions(compute=name))

    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no graph")
    graph = Graph("text_encoder", broken, (TensorSpec("x", "float32", (1,)),), ())
    unread = r"text_encoder: OpenVINO cannot read .*broken\.onnx: "
    with pytest.raises(EngineError, match=unread) as caught:
        create("openvino").compile(graph)
    assert "\n" not in str(caught.value)

    session = opened(tiny_bundle)
    session.close()
    session.close()
    with pytest.raises(EngineError, match="the session is closed"):
        session.run({"input_ids": np.ones((1, 35), np.int32)})


def test_it_is_in_the_table():
    assert select("openvino").extras == ("openvino",)


def test_one_image_at_a_time_unless_more_are_asked_for(tiny_bundle):
    """An axis that can only be 1 is fixed; a larger batch needs another compilation."""
    image = np.zeros((2, 3, 256, 256), np.float32)
    with (
        opened(tiny_bundle, "sam_image_encoder") as one,
        opened(tiny_bundle, "sam_image_encoder", max_batch=2) as two,
    ):
        alone = one.run({"image": image[:1]})["image_embeddings"]
        together = two.run({"image": image})["image_embeddings"]
        np.testing.assert_allclose(alone, together[1:], atol=1e-4)
        refused = "compiled for one of images at a time, got 2; load the bundle with a larger"
        with pytest.raises(EngineError, match=refused):
            one.run({"image": image})
    with (
        opened(tiny_bundle, max_expressions=1) as session,
        pytest.raises(EngineError, match="one of expressions"),
    ):
        session.run({"input_ids": np.ones((2, 35), np.int32)})


def attention(path, heads, queries):
    """softmax(q k'/4) v of queries [images, queries, 16 * heads], and 16 keys."""
    width, keys = 16 * heads, 16
    nodes = []
    for name, order in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3])):
        nodes.append(helper.make_node("Reshape", [name, "cut"], [f"{name}_heads"]))
        nodes.append(helper.make_node("Transpose", [f"{name}_heads"], [f"{name}_t"], perm=order))
    nodes += [
        helper.make_node("Mul", ["q_t", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "k_t"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["shares"], axis=-1),
        helper.make_node("MatMul", ["shares", "v_t"], ["read"]),
        helper.make_node("Transpose", ["read"], ["read_t"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", ["read_t", "join"], ["y"]),
    ]
    lengths = {"q": queries, "k": keys, "v": keys}
    given = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["images", length, width])
        for name, length in lengths.items()
    ]
    made = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["images", queries, width])]
    constants = [
        numpy_helper.from_array(np.array([0, 0, heads, 16]), "cut"),
        numpy_helper.from_array(np.array([0, 0, width]), "join"),
        numpy_helper.from_array(np.float32(0.25), "scale"),
    ]
    graph = helper.make_graph(nodes, "attention", given, made, constants)
    onnx.save_model(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path
    )
    specs = [
        TensorSpec(name, "float32", ("images", length, width)) for name, length in lengths.items()
    ]
    return Graph("attention", path, tuple(specs), (TensorSpec("y", "float32", specs[0].shape),))


@pytest.mark.parametrize("compute", ["fp32", pytest.param("bf16", marks=NEEDS_BF16)])
@pytest.mark.parametrize(("heads", "queries"), [(4, 4), (8, 8), (4, 8)])
def test_as_many_heads_as_queries_are_not_taken_for_each_other(tmp_path, compute, heads, queries):
    """OpenVINO 2026.4 does so in bfloat16 where it knows every shape."""
    graph = attention(tmp_path / "attention.onnx", heads, queries)
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.standard_normal((1, *spec.shape[1:]), np.float32) for spec in graph.inputs
    }
    q, k, v = (
        value.reshape(1, -1, heads, 16).transpose(0, 2, 1, 3).astype(float)
        for value in feeds.values()
    )
    shares = np.exp(0.25 * q @ k.transpose(0, 1, 3, 2))
    want = (shares / shares.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
    engine = create("openvino", EngineOptions(compute=compute))
    with engine.open(graph, engine.compile(graph)) as session:
        found = session.run(feeds)["y"]
    error = np.sqrt(((found - want.reshape(found.shape)) ** 2).mean()) / want.std()
    assert error < (1e-5 if compute == "fp32" else 1e-2)


def test_memory_is_given_back(tiny_bundle):
    feeds = {"input_ids": np.ones((1, 35), np.int32)}
    with opened(tiny_bundle) as usual, opened(tiny_bundle, low_memory=True) as low:
        for _ in range(2):
            np.testing.assert_array_equal(
                low.run(feeds)["text_features"], usual.run(feeds)["text_features"]
            )


def test_throughput_gives_several_threads_their_share(tiny_bundle):
    cores = len(os.sched_getaffinity(0))
    ids = [np.full((1, 35), token, np.int32) for token in (1, 2, 3, 4)]
    with opened(tiny_bundle) as usual, opened(tiny_bundle, throughput=True) as shared:
        assert usual.at_once == 1
        assert shared.at_once == 1 if cores == 1 else shared.at_once > 1
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda x: shared.run({"input_ids": x})["text_features"], ids))
        for one, feed in zip(found, ids, strict=True):
            np.testing.assert_allclose(
                one, usual.run({"input_ids": feed})["text_features"], rtol=1e-4, atol=1e-5
            )
