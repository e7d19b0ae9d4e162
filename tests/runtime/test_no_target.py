"""The no-target decision: its threshold, every output format, and models without the head."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco

from ris.runtime import ExpressionError, load
from ris.runtime.commands.infer import main
from ris.runtime.results import FORMATS

EXPRESSIONS = ["left man", "the red ball", "tree"]
ALL_FORMATS = [option for name in FORMATS for option in ("--format", name)]


@pytest.fixture
def infer(tmp_path, monkeypatch, picture, tiny_bundle):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("park.png")
    return lambda *arguments, bundle=tiny_bundle: CliRunner().invoke(
        main, [*arguments, "--bundle", str(bundle)]
    )


@pytest.fixture(scope="module")
def probabilities(tiny_bundle, picture):
    with load(tiny_bundle) as model:
        return [r.no_target for r in model.encode_image(picture).segment_many(EXPRESSIONS)]


def test_every_format_of_an_absent_object(infer, picture):
    """At threshold 0 every answer is "no target"."""
    done = infer("park.png", *EXPRESSIONS, "--no-target-threshold", "0", *ALL_FORMATS)
    assert done.exit_code == 0, done.output
    assert done.stdout.count(": no target, no-target probability 0.") == 3
    for name in ("left-man", "the-red-ball", "tree"):
        base = f"ris-output/park.{name}"
        assert not np.asarray(Image.open(f"{base}.mask.png")).any()
        np.testing.assert_array_equal(np.asarray(Image.open(f"{base}.overlay.png")), picture)
        mask = np.load(f"{base}.npy")
        assert mask.shape == (480, 640)
        assert not mask.any()
        rle = json.loads(Path(f"{base}.rle.json").read_text())
        assert not coco.decode({**rle, "counts": rle["counts"].encode()}).any()
        report = json.loads(Path(f"{base}.json").read_text())
        assert report["is_no_target"] is True
        assert 0 < report["no_target_probability"] < 1
        assert report["mask_pixels"] == 0
        assert report["score"] == 0
        assert report["rle"] == rle


def test_the_threshold_divides_the_expressions(infer, probabilities):
    """At the middle probability itself: the larger is absent, that one and the smaller are not."""
    middle = sorted(probabilities)[1]
    options = ["--no-target-threshold", repr(middle), "--json", "--format", "npy"]
    done = infer("park.png", *EXPRESSIONS, *options)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["no_target_probability"] for line in lines] == pytest.approx(probabilities)
    assert [line["is_no_target"] for line in lines] == [
        line["no_target_probability"] > middle for line in lines
    ]
    assert [line["mask_pixels"] == 0 for line in lines] == [line["is_no_target"] for line in lines]
    assert sum(p > middle for p in probabilities) == 1
    assert {line["is_no_target"] for line in lines} == {True, False}


def test_the_usual_threshold_is_a_half(infer, probabilities):
    done = infer("park.png", *EXPRESSIONS, "--json", "--format", "npy")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["is_no_target"] for line in lines] == [p > 0.5 for p in probabilities]


@pytest.mark.parametrize("value", ["-0.1", "1.1", "nan", "half"])
def test_thresholds_are_probabilities(infer, value):
    done = infer("park.png", "left man", "--no-target-threshold", value)
    assert done.exit_code == 2
    assert "Traceback" not in done.output
    assert not Path("ris-output").exists()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_thresholds_in_python(tiny_bundle, picture, value):
    message = "a probability from 0 to 1, or None"
    with load(tiny_bundle) as model, pytest.raises(ExpressionError, match=message):
        model.segment(picture, "left man", no_target_threshold=value)


def test_a_tie_is_not_refused(tiny_bundle, picture):
    """As the released code and the published evaluators decide; 1 therefore refuses nothing."""
    with load(tiny_bundle) as model:
        scene = model.encode_image(picture)
        own = scene.segment("left man").no_target
        assert own is not None
        tied = scene.segment("left man", no_target_threshold=own)
        assert not tied.is_no_target
        assert tied.mask.any()
        assert scene.segment("left man", no_target_threshold=np.nextafter(own, 0)).is_no_target
        assert not scene.segment("left man", no_target_threshold=1).is_no_target


def test_never(tiny_bundle, picture):
    with load(tiny_bundle) as model:
        result = model.segment(picture, "left man", no_target_threshold=None)
        assert result.mask.any()
        assert not result.is_no_target
        assert model.segment(picture, "left man", no_target_threshold=0).is_no_target


def test_a_model_without_the_head(infer, tiny_category_bundle):
    options = ["--category", "person", "--no-target-threshold", "0"]
    done = infer("park.png", "left man", *options, *ALL_FORMATS, bundle=tiny_category_bundle)
    assert done.exit_code == 0, done.output
    assert ": no target" not in done.stdout
    assert done.stdout.splitlines()[0].endswith('(the model cannot tell "no target")')
    assert "no-target probability" not in done.stdout
    report = json.loads(Path("ris-output/park.left-man.json").read_text())
    assert report["no_target_probability"] is None
    assert report["is_no_target"] is False
    assert report["mask_pixels"] > 0
