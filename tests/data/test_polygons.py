"""COCO's outlines: pycocotools' pixels where it can be asked, and a sentence where it cannot."""

from __future__ import annotations

import math

import numpy as np
import pytest
from pycocotools import mask as coco

from ris.data.datasets.polygons import polygon_mask
from ris.engines.errors import RisError

HEIGHT, WIDTH = 48, 64
BOX = [10, 10, 40, 10, 40, 30, 10, 30]


def of_coco(polygons):
    """What pycocotools itself makes of polygons."""
    merged = coco.merge(coco.frPyObjects(polygons, HEIGHT, WIDTH))
    return coco.decode(merged).astype(bool)


def mask_of(outline, notes=None):
    return polygon_mask(outline, HEIGHT, WIDTH, (notes if notes is not None else []).append)


def random_polygon(random, reach, most=12):
    """3 to `most` points, up to `reach` times the image's size outside; integers at times."""
    points = random.uniform(-reach, 1 + reach, (random.integers(3, most + 1), 2)) * (WIDTH, HEIGHT)
    rounded = points.round(random.choice([0, 2]))
    return [int(v) if v.is_integer() else v for v in rounded.ravel().tolist()]


@pytest.mark.parametrize("reach", [0, 0.2, 3, 100])
def test_random_polygons_have_pycocotools_pixels(reach):
    random = np.random.default_rng(0)
    for _ in range(200 if reach < 50 else 30):
        outline = [random_polygon(random, reach) for _ in range(random.integers(1, 4))]
        np.testing.assert_array_equal(mask_of(outline), of_coco(outline))


def test_polygons_that_are_cut_have_pycocotools_pixels():
    """Outlines of millions of pixels: a pixel on an edge may fall on its other side."""
    random = np.random.default_rng(1)
    other = total = 0
    for _ in range(8):
        outline = [random_polygon(random, 12_000, most=4)]
        want = of_coco(outline)
        other += np.count_nonzero(mask_of(outline) != want)
        total += want.size
    assert other / total < 0.001


@pytest.mark.parametrize(
    ("far", "want"),
    [
        # a triangle over everything, and a strip from the left border to far beyond the right one
        ([-1e9, -1e9, 1e9, -1e9, 0, 1e12], np.ones((HEIGHT, WIDTH), bool)),
        ([-5, 10, 1e300, 10, 1e300, 30, -5, 30], of_coco([[-5, 10, 99, 10, 99, 30, -5, 30]])),
        ([1e8, 1e8, 2e8, 1e8, 2e8, 2e8], np.zeros((HEIGHT, WIDTH), bool)),
        (
            [-1.7e308, 10, 1.7e308, 10, 1.7e308, 30, -1.7e308, 30],
            of_coco([[0, 10, 64, 10, 64, 30, 0, 30]]),
        ),
    ],
)
def test_far_away_coordinates_are_cut(far, want):
    np.testing.assert_array_equal(mask_of([far]), want)


def test_an_outline_that_is_too_long_all_inside_is_refused():
    zigzag = [0, 0, WIDTH, HEIGHT] * 40_000
    with pytest.raises(RisError, match="its outline is longer than 2 million pixels"):
        mask_of([zigzag])


@pytest.mark.parametrize(
    ("outline", "note"),
    [
        ([], "it has no polygon, so its mask is empty"),
        ([[]], "fewer than three points, so its mask is empty"),
        ([[10, 10, 60, 50]], "fewer than three points, so its mask is empty"),
        ([[10, 10, 60, 50, 7]], "fewer than three points, so its mask is empty"),
        ([[500, 500, 600, 500, 600, 600]], "no area in the image, so its mask is empty"),
        ([[10, 10, 20, 10, 30, 10]], "no area in the image, so its mask is empty"),
    ],
)
def test_a_degenerate_outline_is_an_empty_mask_and_a_note(outline, note):
    notes = []
    assert not mask_of(outline, notes).any()
    assert len(notes) == 1
    assert notes[0].endswith(note)


def test_a_degenerate_polygon_beside_a_good_one():
    """Also where it is the first, which pycocotools takes for a box."""
    for outline in ([[1, 2, 3, 4], BOX], [BOX, [1, 2, 3, 4]]):
        notes = []
        np.testing.assert_array_equal(mask_of(outline, notes), of_coco([BOX]))
        assert notes == ["a polygon of it has fewer than three points"]


def test_an_odd_last_number_is_ignored():
    np.testing.assert_array_equal(mask_of([[*BOX, 7]]), of_coco([[*BOX, 7]]))
    np.testing.assert_array_equal(mask_of([[*BOX, 7]]), of_coco([BOX]))


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        ([[10, 10, math.nan, 10, 60, 50]], "not a finite number"),
        ([[10, 10, math.inf, 10, 60, 50]], "not a finite number"),
        ([[10, 10, -math.inf, 10, 60, 50]], "not a finite number"),
        ([[10, 10, 10**400, 10, 60, 50]], "too large a number"),
        ([[10, 10, "20", 10, 60, 50]], "is '20', not a number"),
        ([[10, 10, None, 10, 60, 50]], "is None, not a number"),
        ([[True, True, False, True, False, True]], "is True, not a number"),
        ([BOX, None], "it has NoneType in place of a polygon"),
        (BOX, "it has int in place of a polygon"),
        ([{"size": [1, 1], "counts": [1]}, BOX], "it has dict in place of a polygon"),
        ([[BOX]], "one is nested deeper"),
        ([[[10, 10], [40, 10], [40, 30]]], "one is nested deeper"),
        ([[[10, 10], [40, 10, 3]]], "one is nested deeper"),
    ],
)
def test_what_has_no_meaning_is_one_sentence(outline, words):
    with pytest.raises(RisError, match=words) as caught:
        mask_of(outline)
    assert len(str(caught.value)) < 200
