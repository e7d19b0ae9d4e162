"""Random numbers, letterboxes and answers of probabilities, from the export to every answer."""

from __future__ import annotations

import json

import noisy_family
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ris.engines.errors import RisError
from ris.evaluation.command import main as evaluate
from ris.evaluation.features import FeatureCache
from ris.evaluation.run import BundleSegmenter
from ris.export.live_reference import live_reference, timed_reference
from ris.runtime import load, open_bundle
from ris.runtime.bundle import BUILT_IN
from ris.runtime.commands.infer import main as infer
from ris.runtime.commands.running import Running
from ris.runtime.drawn import draw
from ris.runtime.parity import check_model, load_golden
from ris.serving.answering import Answerer
from ris.serving.triton.config import ServerOptions, front_config, graph_config

ASKED = ["left man", "the red ball", "second car from the right"]


@pytest.fixture(scope="module", autouse=True)
def family():
    """The family, in the tables."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        noisy_family.register(monkeypatch)
        yield


@pytest.fixture(scope="module")
def model(noisy_bundle):
    with load(noisy_bundle, engine="onnxruntime") as opened:
        yield opened


@pytest.fixture
def wide(picture):
    """A picture that fills half of its letterbox."""
    return np.ascontiguousarray(picture[: picture.shape[1] // 2])


def test_it_is_what_the_reference_gives(model, wide):
    bundle = model.bundle
    assert bundle.wiring.drawn_stages == ("shake",)
    assert bundle.wiring.text_stages == ()
    golden = load_golden(bundle)
    assert not check_model(model, golden).failures
    assert golden["grain"].shape == (len(golden["expressions"]), 16, 16)
    assert "grain" not in np.load(bundle.path / "golden.npz")
    report = check_model(model, live_reference(bundle, wide, ["red car", "ball"], None))
    assert not report.failures
    assert report.mask_iou == 1
    assert min(timed_reference(bundle, wide, ("left man", "ball"), 1)()) > 0


def test_the_evaluation_draws_from_a_seed(noisy_bundle, tmp_path):
    def run(*more, bundle=noisy_bundle):
        given = ["run", str(bundle), "--samples", "2", "--engine", "onnxruntime", "--json", *more]
        return CliRunner().invoke(evaluate, given)

    own, seven, nine = run(), run("--seed", "7"), run("--seed", "9", "--draws", "2")
    scores = [json.loads(done.stdout)["kinds"]["all"] for done in (own, seven, nine)]
    assert scores[0] == scores[1] != scores[2]
    out = ("--out", str(tmp_path / "answers"))
    assert run(*out).exit_code == 0
    other = run(*out, "--seed", "9")
    assert other.exit_code == 2
    assert "draws" in other.stderr
    assert run("--seed", "9", bundle=BUILT_IN).exit_code == 2


def test_an_answer_does_not_depend_on_what_else_is_asked(model, wide):
    scene = model.encode_image(wide)
    together = scene.segment_many(ASKED)
    for expression, want in zip(ASKED, together, strict=True):
        for again in (scene.segment(expression), scene.segment(expression, seed=7)):
            np.testing.assert_allclose(again.logits, want.logits, atol=1e-5)
    other = scene.segment(ASKED[0], seed=8)
    assert np.abs(other.logits - together[0].logits).max() > 0.1
    for answer in together:
        assert 0.05 < answer.mask.mean() < 0.95
        np.testing.assert_array_equal(answer.mask, answer.full_values() > np.float32(0.98))


def test_several_draws_are_averaged_and_run_what_they_must(model, wide, monkeypatch):
    scene = model.encode_image(wide)
    mean = scene.segment(ASKED[0], seed=3, draws=4)
    drawn, config = model.bundle.manifest.host.drawn, open_bundle(model.bundle.path).manifest
    rough = scene.segment(ASKED[0], seed=3).logits - _noise(drawn, 3, 0)
    want = np.mean([rough + _noise(drawn, 3, number) for number in range(4)], axis=0)
    np.testing.assert_allclose(mean.logits, want, atol=1e-5)
    assert config.host.drawn == drawn

    ran = []
    for stage, session in model.open_sessions.items():
        run = session.run_and_keep if stage != "shake" else session.run
        name = "run_and_keep" if stage != "shake" else "run"

        def counted(*given, run=run, stage=stage):
            ran.append(stage)
            return run(*given)

        monkeypatch.setattr(session, name, counted)
    timings = scene.segment(ASKED[0], draws=3).timings
    assert ran == ["point", "shake", "shake", "shake"]
    assert {"point", "shake"} <= set(timings)


def _noise(drawn, seed, number):
    numbers = draw(drawn, seed, number)
    return 0.1 * numbers["grain"] + 0.2 * numbers["tilt"]


def test_what_draws_nothing_refuses_both(model, wide):
    with load(BUILT_IN, engine="onnxruntime") as plain:
        scene = plain.encode_image(wide)
        for given in ({"seed": 1}, {"draws": 1}):
            with pytest.raises(RisError, match=r"^this model draws no random numbers; leave seed"):
                scene.segment("the red ball", **given)
    for given, said in (
        ({"seed": -1}, "seed is a whole number from 0 to 2147483647; got -1"),
        ({"draws": 0}, "draws is a whole number from 1 to 1000; got 0"),
        ({"seed": 1.5}, "seed is a whole number from 0 to 2147483647; got 1.5"),
        ({"seed": True}, "seed is a whole number from 0 to 2147483647; got True"),
        ({"draws": "2"}, "draws is a whole number from 1 to 1000; got '2'"),
    ):
        with pytest.raises(RisError) as caught:
            model.segment(wide, "ball", **given)
        assert str(caught.value) == said


def test_the_command(noisy_bundle, wide, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(wide).save(photo)

    def run(bundle, *more):
        out = str(tmp_path / "out")
        return CliRunner().invoke(
            infer, [str(photo), ASKED[0], "--bundle", str(bundle), "--out", out, "--json", *more]
        )

    texts = [run(noisy_bundle, *more) for more in ((), ("--seed", "7"), ("--seed", "9"))]
    reports = [json.loads(done.stdout) for done in texts]
    answers = [report["rle"]["counts"] for report in reports]
    assert answers[0] == answers[1] != answers[2]
    assert [(r["seed"], r["draws"]) for r in reports] == [(7, 1), (7, 1), (9, 1)]
    several = json.loads(run(noisy_bundle, "--draws", "8").stdout)
    assert (several["seed"], several["draws"]) == (7, 8)
    plain = json.loads(run(BUILT_IN).stdout)
    assert (plain["seed"], plain["draws"]) == (None, None)
    refused = run(BUILT_IN, "--draws", "8")
    assert refused.exit_code == 2
    assert "this model draws no random numbers; leave seed and draws out" in refused.stderr


def test_served(noisy_bundle, model, wide):
    bundle, running = open_bundle(noisy_bundle), Running("onnxruntime", "cpu", 1, None)
    options = ServerOptions(running, graphs="onnx")
    seed = '{ name: "seed" data_type: TYPE_INT32 dims: [ 1 ] optional: true }'
    assert seed in front_config(bundle, options)
    assert '"seed"' not in front_config(open_bundle(BUILT_IN), options)
    assert 'name: "grain" data_type: TYPE_FP32 dims: [ 16, 16 ]' in graph_config(
        bundle, "shake", options
    )
    scene = model.encode_image(wide)
    [answer] = Answerer(model).ask(scene, ASKED[:1])
    np.testing.assert_array_equal(answer.mask, scene.segment(ASKED[0]).mask)


def test_evaluated(model, wide, tmp_path):
    """Through the store of features, by the model's own way to a mask."""
    cached = BundleSegmenter(model, FeatureCache(tmp_path / "features", 10**6))
    assert cached.rule == model.bundle.manifest.mask_rule
    want = model.encode_image(wide).segment_many(ASKED)
    for _ in range(2):
        for got, one in zip(cached.answer(wide, ASKED, [None] * 3), want, strict=True):
            np.testing.assert_array_equal(got.logits, one.logits)
