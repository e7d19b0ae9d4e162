"""The Python interface: encode once, ask many; batches, threads, no target, categories."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from ris.engines import TABLE
from ris.runtime import EngineError, ExpressionError, RisError, load
from ris.runtime.bundle import Bundle, open_bundle
from ris.runtime.compile import expressions_together
from ris.runtime.computing import WHOLE, computes_by_stage
from ris.runtime.loading import open_model
from ris.runtime.manifest import Operations
from ris.runtime.masks import decode_rle

EXPRESSIONS = ["left man", "the red ball", "second car from the right", "tree", "the sky"]


@pytest.fixture(scope="module")
def model(tiny_bundle):
    with load(tiny_bundle) as model:
        yield model


@pytest.fixture
def runs(model, monkeypatch):
    """How often each graph runs."""
    counts: Counter[str] = Counter()
    for stage, session in model.open_sessions.items():
        original = session._run

        def counted(feeds, stage=stage, original=original):
            counts[stage] += 1
            return original(feeds)

        monkeypatch.setattr(session, "_run", counted)
    return counts


def test_one_call(model, picture, tmp_path):
    from PIL import Image

    Image.fromarray(picture).save(tmp_path / "park.png")
    result = model.segment(tmp_path / "park.png", "left man")
    assert result.mask.shape == (480, 640)
    assert result.mask.dtype == np.bool_
    assert result.logits.shape == (64, 64)
    assert 0.5 < result.score < 1
    assert 0 < result.no_target < 1
    np.testing.assert_array_equal(decode_rle(result.rle()), result.mask)
    np.testing.assert_array_equal(result.full_logits() > 0, result.mask)


def test_a_second_expression_costs_text_fusion_and_decoder_alone(model, picture, runs):
    scene = model.encode_image(picture)
    scene.segment("left man")
    once = Counter(runs)
    scene.segment("the dog")
    assert once == dict.fromkeys(model.open_sessions, 1)
    assert runs - once == {"text_encoder": 1, "fusion": 1, "mask_decoder": 1}


def test_many_expressions_go_through_together(model, picture, runs):
    results = model.encode_image(picture).segment_many(EXPRESSIONS)
    assert runs["fusion"] == 1
    assert [r.expression for r in results] == EXPRESSIONS
    scene = model.encode_image(picture)
    for together in results:
        alone = scene.segment(together.expression)
        np.testing.assert_allclose(together.logits, alone.logits, atol=1e-4)
        assert together.no_target == pytest.approx(alone.no_target, abs=1e-5)


def test_max_expressions_bounds_a_batch(tiny_bundle, picture):
    with load(tiny_bundle, max_expressions=2) as small:
        sizes = []
        session = small.open_sessions["fusion"]
        original = session._run

        def noted(feeds):
            sizes.append(len(feeds["text_features"]))
            return original(feeds)

        session._run = noted
        assert len(small.encode_image(picture).segment_many(EXPRESSIONS)) == 5
        assert sizes == [2, 2, 1]
    with pytest.raises(RisError, match="at least 1"):
        load(tiny_bundle, max_expressions=0)


FULL_SIZE = Operations(fixed=0, image=8 * 10**9, expression=69 * 10**9)


def with_operations(bundle, operations):
    graphs = bundle.manifest.graphs | {
        "fusion": replace(bundle.manifest.graphs["fusion"], operations=operations)
    }
    return Bundle(bundle.path, bundle.manifest.with_graphs(graphs.values()))


def test_large_models_are_asked_one_expression_at_a_time_where_that_is_faster(tiny_bundle):
    rows, bundle = {row.name: row for row in TABLE}, open_bundle(tiny_bundle)
    openvino, other = rows["openvino"], rows["onnxruntime"]
    assert expressions_together(bundle, openvino) == 8
    large = with_operations(bundle, FULL_SIZE)
    assert expressions_together(large, openvino) == 1
    assert expressions_together(large, openvino, "cpu") == 1
    assert expressions_together(large, openvino, "gpu") == 8
    assert expressions_together(large, other) == 8
    huge = with_operations(bundle, replace(FULL_SIZE, expression=1776 * 10**9))
    assert expressions_together(huge, other) == 1
    assert expressions_together(huge, openvino, "gpu") == 1
    older = with_operations(bundle, None)
    assert expressions_together(older, openvino) == 8


def test_a_large_model_asks_one_by_one_on_openvino(tiny_bundle, picture):
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    large = with_operations(open_bundle(tiny_bundle), FULL_SIZE)
    with (
        open_model(large, engine="openvino") as alone,
        open_model(large, engine="openvino", max_expressions=4) as four,
    ):
        assert (alone.max_expressions, four.max_expressions) == (1, 4)
        results = [model.encode_image(picture).segment_many(EXPRESSIONS) for model in (alone, four)]
    for one, other in zip(*results, strict=True):
        np.testing.assert_allclose(one.logits, other.logits, atol=1e-4)


def test_no_expressions_no_results(model, picture):
    assert model.encode_image(picture).segment_many([]) == []


def test_an_expression_is_no_list(model, picture):
    with pytest.raises(ExpressionError, match="takes a list"):
        model.encode_image(picture).segment_many("left man")


def test_no_target_empties_the_mask(model, picture):
    scene = model.encode_image(picture)
    usual = scene.segment("left man", no_target_threshold=1.0)
    assert usual.mask.any()
    assert not usual.is_no_target
    absent = scene.segment("left man", no_target_threshold=usual.no_target - 1e-6)
    assert absent.is_no_target
    assert not absent.mask.any()
    assert absent.score == 0
    np.testing.assert_array_equal(absent.logits, usual.logits)


def test_the_no_target_probability_is_the_softmax_of_the_logits(tiny_bundle, model, picture):
    golden = np.load(tiny_bundle / "golden.npz")
    target, absent = golden["no_target_logits"][0]
    want = np.exp(absent) / (np.exp(target) + np.exp(absent))
    result = model.segment(golden["rgb"], str(golden["expressions"][0]))
    assert result.no_target == pytest.approx(want, abs=1e-5)


def test_timings_name_every_stage(model, picture):
    scene = model.encode_image(picture)
    stages = ["tokenize", "text_encoder", "fusion", "dense_embedding", "mask_decoder", "mask"]
    images = ["load", "prepare", "sam_image_encoder", "clip_image_encoder", "image_features"]
    names = [f"image.{name}" for name in images]
    assert list(scene.segment("man").timings) == names + stages


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_threads_share_a_model(tiny_bundle, picture, engine):
    """Eight threads on one model give what one thread gives, to the bit."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    with load(tiny_bundle, engine=engine, overlap=engine == "openvino") as model:
        _share(model, picture)


def _share(model, picture):
    scene = model.encode_image(picture)
    alone = [scene.segment(e).logits for e in EXPRESSIONS]
    wrong = []

    def work(number):
        own = model.encode_image(picture) if number % 2 else scene
        for expression, want in zip(EXPRESSIONS, alone, strict=True):
            if not np.array_equal(own.segment(expression).logits, want):
                wrong.append((number, expression))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_model_says_so(tiny_bundle, picture):
    model = load(tiny_bundle)
    scene = model.encode_image(picture)
    model.close()
    model.close()
    for ask in (lambda: model.encode_image(picture), lambda: scene.segment("man")):
        with pytest.raises(RisError, match="closed"):
            ask()


def test_one_pixel(model):
    assert model.segment(np.zeros((1, 1, 3), np.uint8), "man").mask.shape == (1, 1)


class TestCategoryVariant:
    @pytest.fixture(scope="class")
    def by_category(self, tiny_category_bundle):
        with load(tiny_category_bundle) as model:
            yield model

    def test_a_category_for_each_expression(self, by_category, picture):
        scene = by_category.encode_image(picture)
        person, car = scene.segment_many(["left man", "left man"], categories=["person", "car"])
        assert person.category == "person"
        assert person.no_target is None
        assert not np.array_equal(person.logits, car.logits)
        np.testing.assert_allclose(
            scene.segment("left man", category="car").logits, car.logits, atol=1e-4
        )

    @pytest.mark.parametrize(
        ("categories", "message"),
        [
            (None, "asks by category"),
            (["persom"], "no category 'persom'; the nearest are person"),
            (["person", "car"], "1 expressions need as many categories, got 2"),
        ],
    )
    def test_what_is_wrong_with_a_category(self, by_category, picture, categories, message):
        with pytest.raises(ExpressionError, match=message):
            by_category.encode_image(picture).segment_many(["left man"], categories=categories)

    def test_other_models_take_none(self, model, picture):
        with pytest.raises(ExpressionError, match="does not ask by category"):
            model.encode_image(picture).segment("man", category="person")


def after(barrier, run):
    """`run`, once all that the barrier waits for are called."""

    def waiting(feeds):
        barrier.wait()
        return run(feeds)

    return waiting


def test_on_a_gpu_the_image_encoders_run_side_by_side(model, picture, monkeypatch):
    alone = model.encode_image(picture)
    both = threading.Barrier(2, timeout=30)
    for stage in ("sam_image_encoder", "clip_image_encoder"):
        session = model.open_sessions[stage]
        monkeypatch.setattr(session, "_run", after(both, session._run))
    for session in model.open_sessions.values():
        monkeypatch.setattr(session, "info", replace(session.info, device="cuda"))
    scene = model.encode_image(picture)
    objects = {"object_queries", "object_masks"}
    assert set(scene.values) == {"image_embeddings", "pixel_values", "pixel_queries", *objects}
    for name, value in scene.values.items():
        np.testing.assert_array_equal(value, alone.values[name])
    assert {"image.sam_image_encoder", "image.clip_image_encoder"} <= set(scene.timings)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_side_by_side_is_the_same(tiny_bundle, picture, engine, monkeypatch):
    """Both encoders and the text of what is asked first run at once, with the same answer."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    with load(tiny_bundle, engine=engine) as model:
        assert not model.overlap
        alone = model.segment(picture, "left man")
    with load(tiny_bundle, engine=engine, overlap=True) as model:
        all_three = threading.Barrier(3, timeout=60)
        for stage in ("sam_image_encoder", "clip_image_encoder", "text_encoder"):
            session = model.open_sessions[stage]
            monkeypatch.setattr(session, "_run", after(all_three, session._run))
        together = model.segment(picture, "left man")
    np.testing.assert_array_equal(together.logits, alone.logits)
    assert set(together.timings) == set(alone.timings)


def test_low_memory_is_the_same(tiny_bundle, picture):
    with (
        load(tiny_bundle, engine="onnxruntime") as usual,
        load(tiny_bundle, engine="onnxruntime", low_memory=True) as low,
    ):
        want = usual.segment(picture, "man").logits
        for _ in range(2):
            np.testing.assert_array_equal(low.segment(picture, "man").logits, want)


def test_a_precision_for_every_graph(tiny_bundle):
    bundle = open_bundle(tiny_bundle, verify=False)
    for precision in ("bf16", "fp16"):
        narrow = [stage for stage, name in computes_by_stage(precision, bundle).items() if name]
        assert narrow == ["sam_image_encoder", "clip_image_encoder", "fusion"]
    assert computes_by_stage({"fusion": "fp16"}, bundle)["fusion"] == "fp16"
    assert set(computes_by_stage("fp32", bundle).values()) == {"fp32"}
    assert set(computes_by_stage("auto", bundle).values()) == {None}
    assert set(computes_by_stage(None, bundle).values()) == {"fp32"}  # as conftest.py asks
    over = computes_by_stage({WHOLE: "bf16", "fusion": "fp32", "text_encoder": "fp32"}, bundle)
    assert list(over.values()) == ["bf16", "bf16", None, "fp32", "fp32", None]
    message = "there is no graph decoder; there are sam_image_encoder, "
    with pytest.raises(EngineError, match=message):
        computes_by_stage({"decoder": "bf16"}, bundle)


def test_a_narrow_precision_that_no_graph_is_for(made_up_bundle):
    bundle = open_bundle(made_up_bundle, verify=False)
    if made_up_bundle.name == "chained":
        asked = computes_by_stage("bf16", bundle)
        assert [stage for stage, name in asked.items() if name] == ["look"]
        return
    refused = r"none of the graphs .* in bf16; name those .*everything"
    with pytest.raises(EngineError, match=refused):
        computes_by_stage("bf16", bundle)
    assert computes_by_stage({"everything": "bf16"}, bundle) == {"everything": "bf16"}


def test_other_families(made_up_bundle, picture):
    """What runs once an image is what sees no words, and it is not run again for a question."""
    whole = made_up_bundle.name == "whole"
    with load(made_up_bundle, engine="onnxruntime") as model:
        scene = model.encode_image(picture)
        first, *others = scene.segment_many(EXPRESSIONS)
        assert set(scene.values) == ({"image"} if whole else {"seen", "pooled", "icon"})
        once = [name for name in scene.timings if name not in ("image.load", "image.prepare")]
        assert once == ([] if whole else ["image.look", "image.pool"])
        asked = ["everything"] if whole else ["read", "find", "fine", "draw"]
        assert list(first.timings)[2 + len(once) :] == ["tokenize", *asked, "mask"]
        assert first.no_target is None
        assert any(not np.array_equal(first.logits, other.logits) for other in others)
        assert not model.overlap
    with load(made_up_bundle, engine="onnxruntime", overlap=True, max_expressions=1) as model:
        again = model.segment(picture, EXPRESSIONS[0])
    np.testing.assert_allclose(again.logits, first.logits, atol=1e-5)
