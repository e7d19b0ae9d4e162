"""Outlines fill to the mask again, part by part; pycocotools agrees with polygons and boxes."""

from __future__ import annotations

import numpy as np
import pytest
from pycocotools import mask as coco
from scipy import ndimage

from ris.engines.errors import RisError
from ris.runtime.outlines import Polygon, box_of, polygons_of, simplified

RING = np.hypot(*np.mgrid[-30:31, -40:41])
RING = (RING < 28) & (RING > 11)


def filled(rings, shape):
    """What lies inside an odd number of rings along pixels' edges, bool [H, W]."""
    height, width = shape
    crossings = np.zeros((height, width + 1), int)
    for ring in rings:
        for (x, y), (to_x, to_y) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
            assert (x == to_x) != (y == to_y), "an edge along neither axis, or of no length"
            if x == to_x:
                crossings[int(min(y, to_y)) : int(max(y, to_y)), int(x)] += 1
    return np.cumsum(crossings, axis=1)[:, :width] % 2 == 1


def rings_of(polygon):
    return [polygon.outer, *polygon.holes]


def area(ring):
    x, y = ring.T.astype(float)
    return (x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def of_pycocotools(polygons, shape):
    rings = [polygon.joined().ravel().tolist() for polygon in polygons]
    return coco.decode(coco.merge(coco.frPyObjects(rings, *shape))).astype(bool)


def masks():
    random = np.random.default_rng(0)
    for _ in range(150):
        shape = random.integers(1, 16, 2)
        yield random.random(shape) < random.random()
    for share in (0.2, 0.5, 0.7):
        noise = ndimage.gaussian_filter(random.random((150, 190)), 3)
        yield noise > np.quantile(noise, share)
    yield np.indices((9, 12)).sum(axis=0) % 2 == 0  # a chessboard
    yield RING
    yield np.ones((4, 5), bool)


@pytest.mark.parametrize("number", range(len(list(masks()))))
def test_filling_the_outlines_gives_the_mask_part_by_part(number):
    mask = list(masks())[number]
    polygons = polygons_of(mask)
    labels, count = ndimage.label(mask)  # pixels that hang together by their sides
    assert len(polygons) == count
    for polygon in polygons:
        part = filled(rings_of(polygon), mask.shape)
        [label] = np.unique(labels[part])
        np.testing.assert_array_equal(part, labels == label)
        np.testing.assert_array_equal(filled([polygon.joined()], mask.shape), part)
        assert area(polygon.outer) > 0
        assert all(area(hole) < 0 for hole in polygon.holes)
        for ring in rings_of(polygon):
            assert ring.dtype == np.int32
            assert len(np.unique(ring, axis=0)) == len(ring) >= 4, "a ring meets itself"
    if count:
        np.testing.assert_array_equal(of_pycocotools(polygons, mask.shape), mask)
        theirs = coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8))))
        assert list(box_of(mask)) == theirs.tolist()


def test_a_ring_and_what_is_in_its_hole():
    mask = np.pad(np.ones((5, 6), bool), 1)
    mask[2:5, 2:6] = False
    mask[3, 3] = True
    outer, inner = polygons_of(mask)
    assert outer.outer.tolist() == [[1, 1], [7, 1], [7, 6], [1, 6]]
    assert [hole.tolist() for hole in outer.holes] == [[[2, 2], [2, 5], [6, 5], [6, 2]]]
    assert (inner.outer.tolist(), inner.holes) == ([[3, 3], [4, 3], [4, 4], [3, 4]], ())
    assert outer.joined().tolist()[:3] == [[1, 1], [7, 1], [7, 6]]


def test_nothing_has_no_outline_and_no_box():
    for shape in ((0, 0), (3, 4)):
        assert polygons_of(np.zeros(shape, bool)) == []
        assert box_of(np.zeros(shape, bool)) is None


def test_a_mask_of_a_twelve_megapixel_picture():
    y, x = np.mgrid[-1500:1500, -2000:2000]
    distance = np.hypot(x, y)
    mask = (distance < 1400) & (np.abs(distance - 700) > 100)
    polygons = polygons_of(mask)
    assert [len(polygon.holes) for polygon in polygons] == [1, 0]
    np.testing.assert_array_equal(of_pycocotools(polygons, mask.shape), mask)


@pytest.mark.parametrize("tolerance", [0.5, 1.0, 3.0])
def test_simpler_outlines_have_fewer_points_and_stay_near(tolerance):
    mask = np.kron(RING, np.ones((8, 8), bool))
    [exact], [simple] = polygons_of(mask), polygons_of(mask, tolerance)
    for before, after in zip(rings_of(exact), rings_of(simple), strict=True):
        assert len(after) <= len(before)
        assert {*map(tuple, after.tolist())} <= {*map(tuple, before.tolist())}
        assert max(distance_to(point, after) for point in before) <= tolerance + 1e-9
    found = of_pycocotools([simple], mask.shape)
    assert (found & mask).sum() / (found | mask).sum() > 0.97


def distance_to(point, ring):
    starts, along = ring.astype(float), np.roll(ring, -1, axis=0) - ring
    share = ((point - starts) * along).sum(axis=1) / (along**2).sum(axis=1)
    nearest = starts + np.clip(share, 0, 1)[:, None] * along
    return np.hypot(*(point - nearest).T).min()


def test_what_would_vanish_stays_exact():
    pixel = np.array([[3, 3], [4, 3], [4, 4], [3, 4]], np.int32)
    np.testing.assert_array_equal(simplified(pixel, 5.0), pixel)


def test_a_hole_that_a_simpler_ring_leaves_outside_is_joined_all_the_same():
    outer = np.array([[0, 0], [9, 0], [9, 9]], np.int32)
    hole = np.array([[-3, 20], [-3, 21], [-2, 21], [-2, 20]], np.int32)
    joined = Polygon(outer, (hole,)).joined()
    assert {*map(tuple, hole.tolist())} <= {*map(tuple, joined.tolist())}


@pytest.mark.parametrize("tolerance", [-1.0, float("nan")])
def test_a_tolerance_is_a_number_from_0_up(tolerance):
    with pytest.raises(RisError, match="a number of pixels from 0 up"):
        polygons_of(RING, tolerance)
