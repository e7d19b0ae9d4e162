"""The README's picture: which scenes it shows, and how many of its answers are wrong."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageFont

from conftest import REPO
from ris.data.samples import PER_SCENE, scene_images
from ris.evaluation.metrics import Tally
from ris.runtime import BUILT_IN, load

DEMO = (REPO / "docs" / "reference" / "models" / "demo.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def script():
    """examples/draw_answers.py, which no package has."""
    spec = importlib.util.spec_from_file_location(
        "draw_answers", REPO / "examples" / "draw_answers.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def model(script):
    with load(BUILT_IN, engine=script.ENGINE) as opened:
        yield opened


@pytest.fixture(scope="module")
def answered(script, model):
    """The held-out scenes from 0 on, as far as the choice looks."""
    seen = []
    script.choose_tiles(seen.append(tile) or tile for tile in script.first_expressions(model))
    return seen


@pytest.fixture(scope="module")
def tiles(script, answered):
    return script.choose_tiles(answered)


def numbers(tiles):
    return [int(tile.name.removeprefix("heldout-")) for tile in tiles]


def test_the_tiles_are_the_first_scenes_that_are_wrong_as_often_as_the_score(
    script, answered, tiles
):
    """What is wrong, by the metrics' own counts."""
    tally = Tally()
    for tile in answered:
        refused = tile.answer.is_no_target
        tally.add(tile.answer.mask, tile.truth.mask, refused, tile.truth.targeted)
    figures = tally.figures()
    wrong = ~np.where(figures.targeted, figures.iou >= 0.5, figures.refused)

    assert round(script.TILES * (1 - script.RIGHT / script.ASKED)) == script.WRONG
    rows = [int(row.sum()) for row in sliding_window_view(wrong, script.TILES)]
    assert rows.index(script.WRONG) == numbers(tiles)[0]
    assert [not tile.is_right for tile in answered] == wrong.tolist()


def test_the_scenes_and_expressions_are_those_of_the_score(answered, tiles):
    """Scenes from 0 on without a gap, with the first expression that `ris-eval` asks of each."""
    asked = scene_images("heldout", PER_SCENE * len(answered))
    assert [(tile.name, tile.truth.expression) for tile in answered] == [
        (image.name, image.truths[0].expression) for image in asked
    ]
    assert tiles == answered[-len(tiles) :]


def test_wrong_answers_are_marked(script, tiles):
    for tile in tiles:
        assert tile.verdict.startswith("wrong") == (not tile.is_right)
        assert bool(tile.verdict) == (not tile.is_right or not tile.truth.targeted)


def test_every_expression_fits_below_its_scene(script, tiles):
    font = ImageFont.load_default(script.FONT_SIZE)
    for tile in tiles:
        lines = script.wrap(f"“{tile.truth.expression}”", font, script.SIDE)
        assert len(lines) <= script.LINES
        assert font.getlength(tile.verdict) < script.SIDE


def test_the_picture_is_the_same_each_time(script, model, tiles):
    first = numbers(tiles)[0]
    again = [tile for _, tile in zip(tiles, script.first_expressions(model, first), strict=False)]
    for one, other in zip(tiles, again, strict=True):
        assert (one.name, one.truth.expression) == (other.name, other.truth.expression)
        assert np.array_equal(one.answer.mask, other.answer.mask)
    assert np.array_equal(script.draw_picture(tiles), script.draw_picture(again))


def test_the_picture_in_the_repository_is_of_this_layout(script, tiles):
    with Image.open(script.PICTURE) as picture:
        assert picture.size == script.draw_picture(tiles).size
    assert script.PICTURE.stat().st_size < 500_000


def test_the_document_says_what_is_drawn(script, tiles):
    first, *_, last = numbers(tiles)
    words = " ".join(DEMO.split())
    assert f"{script.RIGHT:,} of the {script.ASKED:,} answers" in words
    assert f"scenes {first} to {last}" in words
    assert f"{script.WRONG} of the {script.TILES} answers" in words
