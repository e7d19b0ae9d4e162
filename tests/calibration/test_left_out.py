"""`ris-calibrate`: what cannot be used is named and left out, before graphs run for it."""

from __future__ import annotations

import json
import os
import shutil
import signal

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from ris.calibration.command import main
from ris.calibration.int8.chain import Chain
from ris.calibration.numerics import measure_ranges, read_ranges
from ris.calibration.samples import CalibrationSample
from ris.engines.errors import RisError
from ris.runtime import Model, open_bundle

GOOD = {"image": "good.png", "expression": "left man", "category": "person"}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """In the folder that commands run in: a picture, one that is cut short, one that is none."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)).save("good.png")
    content = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


@pytest.fixture
def mixed(files):
    """Lines of which the first and a half of the last can be used, and what is said of the rest."""
    bad = {
        "missing.png: no such image file (lines.jsonl, line 2)": {"image": "missing.png"},
        "text.png is not an image that can be read": {"image": "text.png"},
        "cut.png is damaged or cut short": {"image": "cut.png"},
        "lines.jsonl, line 5: there is no category 'unicorn'": {"category": "unicorn"},
        "lines.jsonl, line 6: unknown fields: 'colour'": {"colour": "red"},
        "lines.jsonl, line 7: the expression '\\x01' has no words in it": {
            "expression": ["the dog", "\x01"]
        },
    }
    lines = [GOOD, *(GOOD | change for change in bad.values())]
    (files / "lines.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return list(bad)


def command(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def said_of(done, sentences):
    """Each sentence once, in a line of its own, and then how many there are."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    for sentence in sentences:
        assert sum(sentence in line for line in errors) == 1, (sentence, done.stderr)
    assert len(errors) == len(sentences) + 1
    return errors[-1]


def test_ranges_of_the_others_are_written_and_what_was_left_out_is_named(
    tiny_category_bundle, files, mixed
):
    done = command("ranges", tiny_category_bundle, "lines.jsonl", "--out", "ranges.json")
    assert done.exit_code == 2
    assert said_of(done, mixed) == (
        "Error: 6 left out, named above; the ranges are those of 2 expressions"
    )
    assert json.loads((files / "ranges.json").read_text())["samples"] == 2
    assert "Largest magnitudes over 2 expressions" in done.stdout


def test_a_picture_that_the_model_does_not_take_costs_no_range(tiny_category_bundle, monkeypatch):
    """Such as one that is too narrow for the square that is cut out of it."""
    from ris.runtime import host, letterbox

    def refuse_narrow(rgb, images, size=None):
        letterbox.covering_size(*rgb.shape[:2], 32)
        return prepare(rgb, images, size)

    prepare = host.prepare_images
    monkeypatch.setattr(host, "prepare_images", refuse_narrow)
    shapes = {"first": (32, 32, 3), "narrow": (1, 101, 3), "last": (32, 32, 3)}
    samples = [
        CalibrationSample(np.zeros(shape, np.uint8), ("left man",), ("person",), name=name)
        for name, shape in shapes.items()
    ]
    said, bundle = [], open_bundle(tiny_category_bundle)
    found = measure_ranges(bundle, samples, skipped=said.append)
    assert found.samples == 2
    assert len(said) == 1
    assert said[0].startswith("narrow: the picture has 101x1 pixels; this model takes none")
    with pytest.raises(RisError, match="there are no calibration samples"):
        measure_ranges(bundle, samples[1:2], skipped=said.append)


def test_int8_is_calibrated_on_the_others_and_what_was_left_out_is_named(
    tiny_category_bundle, files, mixed, begun
):
    done = command("int8", tiny_category_bundle, "lines.jsonl", "--out", "int8")
    assert said_of(done, mixed) == (
        "Error: 6 left out, named above; INT8 was calibrated on 2 expressions"
    )
    assert done.exit_code == 2
    asked = [(sample.expressions, sample.categories) for sample in begun[0]]
    assert asked == [(("left man",), ("person",)), (("the dog",), ("person",))]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["good.png", "-e", "left man"], "this model asks by category"),
        (["good.png", "-e", "left man", "--category", "unicorn"], "no category 'unicorn'"),
        (["good.png", "-e", "\x01", "--category", "person"], "has no words in it"),
        (["cut.png", "-e", "left man", "--category", "person"], "is damaged or cut short"),
        (["missing.png", "-e", "left man", "--category", "person"], "no such image file"),
    ],
)
def test_where_nothing_can_be_asked_no_graph_runs_and_one_sentence_says_why(
    tiny_category_bundle, files, monkeypatch, arguments, sentence
):
    monkeypatch.setattr(Chain, "record", lambda chain: pytest.fail("graphs ran first"))
    done = command("int8", tiny_category_bundle, *arguments, "--out", "int8")
    assert done.exit_code == 2
    assert done.stderr.count("Error: ") == 1
    assert sentence in done.stderr
    assert not (files / ".int8.calibration").exists()


def test_what_is_wrong_with_an_expression_is_said_once_for_all_pictures(
    tiny_category_bundle, files, begun
):
    Image.open("good.png").save("other.png")
    words = ["-e", "left man", "-e", "\x01", "--category", "person"]
    done = command("int8", tiny_category_bundle, "good.png", "other.png", *words, "--out", "int8")
    said_of(done, ["'\\x01': the expression '\\x01' has no words in it"])
    assert [sample.expressions for sample in begun[0]] == [("left man",), ("left man",)]


def test_levels_are_chosen_on_the_others_and_what_was_left_out_is_named(files, monkeypatch):
    seen = []

    def calibrate(source, samples, out, *given, **named):
        seen.extend(samples[i].name for i in range(len(samples)))
        raise RisError("as far as this goes")

    monkeypatch.setattr("ris.export.weight_calibration.calibrate_weights", calibrate)
    model = ["--preset", "tiny-lisa", "--random-weights", "0", "--out", "rounded"]
    pictures = ["good.png", "cut.png", "missing.png"]
    done = command("weights", *pictures, "-e", "left man", *model)
    sentences = ["cut.png is damaged or cut short", "missing.png: no such image file"]
    assert said_of(done, sentences) == "Error: as far as this goes"
    assert seen == ["good.png"]


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_ranges_that_are_stopped_are_those_of_what_was_asked(
    tiny_bundle, files, monkeypatch, request, sign
):
    """The third picture is never asked."""
    # a test run in the background has SIGINT ignored
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    for name in ("a.png", "b.png", "c.png"):
        shutil.copyfile("good.png", name)
    whole, asked = Model.encode_image, []

    def encode_image(self, rgb):
        asked.append(rgb)
        if len(asked) == 3:
            os.kill(os.getpid(), sign)
        return whole(self, rgb)

    monkeypatch.setattr(Model, "encode_image", encode_image)
    given = ("a.png", "b.png", "c.png", "-e", "left man", "-e", "the dog")
    done = command("ranges", tiny_bundle, *given, "--out", "ranges.json")
    assert done.exit_code == 130, done.output
    assert "Stopped early: these are the ranges of 4 expressions" in done.stderr
    kept = read_ranges(files / "ranges.json")
    assert kept.samples == 4
    assert kept == measure_ranges(
        open_bundle(tiny_bundle),
        [CalibrationSample(rgb, ("left man", "the dog")) for rgb in asked[:2]],
    )


def test_ranges_that_are_stopped_before_the_first_answer(tiny_bundle, files, monkeypatch):
    def interrupted(self, rgb):
        raise KeyboardInterrupt

    monkeypatch.setattr(Model, "encode_image", interrupted)
    done = command("ranges", tiny_bundle, "good.png", "-e", "x", "--out", "ranges.json")
    assert done.exit_code == 130
    assert not (files / "ranges.json").exists()
