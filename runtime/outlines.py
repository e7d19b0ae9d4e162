"""Outlines of a mask: rings along the edges of its pixels, which fill to the mask again, exactly.

A pixel in column x and row y is the square from (x, y) to (x + 1, y + 1). A ring has a point where
it turns, is not closed by a repeated point, and meets itself nowhere. Outer rings go clockwise as
one sees them, with x to the right and y down; holes go the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]
"""x, y, width and height in pixels, as COCO has it."""

Ring = NDArray[np.int32]
"""Points x, y, int32 [N, 2]."""

_STRIPE = 1 << 20  # pixels that are looked at together: a few temporary arrays of so many bytes

# A corner by the pixels round it that are set: upper left 1, upper right 2, lower left 4, lower
# right 8. Its edges are one to the left or right and one up or down. The mask lies to the right of
# who walks along an edge, so one leads to the corner and the other away.
_UPPER_LEFT, _UPPER_RIGHT, _LOWER_LEFT, _LOWER_RIGHT = 1, 2, 4, 8
_FALLING, _RISING = 9, 6  # two pixels that touch at the corner alone: it is two corners
_EDGE_UP = np.isin(np.arange(16), (1, 2, 13, 14))
_LEAVES_SIDEWAYS = np.isin(np.arange(16), (1, 8, 11, 13))


@dataclass(frozen=True, eq=False)
class Polygon:
    """One part of a mask: pixels that hang together by their sides."""

    outer: Ring
    """The ring round it, int32 [N, 2] of x, y."""

    holes: tuple[Ring, ...] = ()
    """The rings round what is left out of it, int32 [N, 2] each."""

    def joined(self) -> NDArray[np.float64]:
        """Outer ring and holes as one ring, float64 [N, 2], for formats that have no holes.

        A bridge without width leads from the ring to each hole and back, through the part itself.
        """
        ring = self.outer.astype(np.float64)
        for hole in sorted(self.holes, key=lambda hole: hole[:, 0].min()):
            ring = _bridged(ring, hole.astype(np.float64))
        return ring


def box_of(mask: Mask) -> Box | None:
    """The box round the pixels of a mask, bool [H, W]; None where it is empty."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not rows.size:
        return None
    top, bottom = int(rows[0]), int(rows[-1])
    columns = np.flatnonzero(mask[top : bottom + 1].any(axis=0))
    left, right = int(columns[0]), int(columns[-1])
    return left, top, right - left + 1, bottom - top + 1


def polygons_of(mask: Mask, tolerance: float = 0.0) -> list[Polygon]:
    """The parts of a mask as polygons, from top to bottom.

    Args:
        mask: bool [H, W].
        tolerance: How far, in pixels, a ring may be from the pixels' edges, so that it has fewer
            points (Douglas and Peucker). A ring that this leaves less than a triangle of stays
            exact. Simplified rings may touch or cross each other. 0: exact.

    Raises:
        RisError: For a tolerance that is negative or no number.
    """
    if not tolerance >= 0:
        raise RisError(f"the tolerance is a number of pixels from 0 up, got {tolerance}")
    box = box_of(mask)
    if box is None:
        return []
    left, top, width, height = box
    inside = np.asarray(mask[top : top + height, left : left + width], np.bool_)
    origin = np.array([left, top], np.int32)

    def finished(ring: Ring) -> Ring:
        moved: Ring = ring + origin
        return simplified(moved, tolerance) if tolerance else moved

    return [
        Polygon(finished(outer), tuple(map(finished, holes)))
        for outer, holes in _grouped(inside, _rings(inside))
    ]


def _corners(mask: Mask) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """Where outlines turn: x, y and kind of each corner, by rows; in a row from left to right."""
    height, width = mask.shape
    step = max(1, _STRIPE // (width + 1))
    found = [
        _corners_of_stripe(mask, start, min(start + step, height + 1))
        for start in range(0, height + 1, step)
    ]
    xs, ys, kinds = (np.concatenate(parts) for parts in zip(*found, strict=True))

    # of two corners at a point, the one with the edge to the left comes first
    double = (kinds == _FALLING) | (kinds == _RISING)
    times = 1 + double
    first = (np.cumsum(times) - times)[double]
    falling = kinds[double] == _FALLING
    xs, ys, kinds = (np.repeat(values, times) for values in (xs, ys, kinds))
    kinds[first] = np.where(falling, _UPPER_LEFT, _LOWER_LEFT)
    kinds[first + 1] = np.where(falling, _LOWER_RIGHT, _UPPER_RIGHT)
    return xs, ys, kinds


def _corners_of_stripe(
    mask: Mask, start: int, stop: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """The corners on the lines between rows from `start` on, up to `stop`."""
    height, width = mask.shape
    rows = np.zeros((stop - start + 1, width + 2), np.bool_)  # with nothing round the mask
    above, below = max(start - 1, 0), min(stop, height)
    rows[above - start + 1 : below - start + 1, 1:-1] = mask[above:below]

    across = rows[:, 1:] != rows[:, :-1]
    along = rows[1:] != rows[:-1]
    turns = (across[1:] | across[:-1]) & (along[:, 1:] | along[:, :-1])
    ys, xs = np.divmod(np.flatnonzero(turns), width + 1)
    kinds = sum(
        rows[ys + down, xs + right].astype(np.uint8) << (2 * down + right)
        for down in (0, 1)
        for right in (0, 1)
    )
    return xs, ys + start, np.asarray(kinds, np.uint8)


def _rings(mask: Mask) -> list[Ring]:
    """All rings of a mask that is not empty, of outer sides and of holes."""
    xs, ys, kinds = _corners(mask)
    numbers = np.arange(xs.size)
    # in a row, and in a column, edges lie between the first corner and the second, the third and
    # the fourth and so on
    down_the_columns = np.argsort((xs * (mask.shape[0] + 1) + ys) * 2 + ~_EDGE_UP[kinds])
    vertical = np.empty_like(numbers)
    vertical[down_the_columns] = down_the_columns[numbers ^ 1]
    following = np.where(_LEAVES_SIDEWAYS[kinds], numbers ^ 1, vertical).tolist()

    order: list[int] = []
    starts: list[int] = []
    seen = bytearray(len(following))
    for corner in range(len(following)):
        if seen[corner]:
            continue
        starts.append(len(order))
        while not seen[corner]:
            seen[corner] = 1
            order.append(corner)
            corner = following[corner]

    points = np.stack([xs, ys], axis=1).astype(np.int32)[order]
    ring_of = np.empty_like(numbers)
    ring_of[order] = np.repeat(np.arange(len(starts)), np.diff([*starts, len(order)]))
    meets = set(_that_meet_themselves(xs, ys, ring_of).tolist())
    rings: list[Ring] = []
    for number, ring in enumerate(np.split(points, starts[1:])):
        rings += _parted(ring) if number in meets else [ring]
    return rings


def _that_meet_themselves(
    xs: NDArray[np.int64], ys: NDArray[np.int64], ring_of: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The numbers of the rings that have both corners of a point."""
    both = (xs[1:] == xs[:-1]) & (ys[1:] == ys[:-1]) & (ring_of[1:] == ring_of[:-1])
    return ring_of[1:][both]


def _parted(ring: Ring) -> list[Ring]:
    """A ring that meets itself at points as rings that do not."""
    rings: list[Ring] = []
    path: list[tuple[int, int]] = []
    place: dict[tuple[int, int], int] = {}
    for point in map(tuple, ring.tolist()):
        start = place.get(point)
        if start is None:
            place[point] = len(path)
            path.append(point)
            continue
        rings.append(np.array(path[start:], np.int32))
        for passed in path[start + 1 :]:
            del place[passed]
        del path[start + 1 :]
    return [*rings, np.array(path, np.int32)]


def _area(ring: NDArray[np.number]) -> float:
    """Twice the area inside; negative for a hole."""
    x, y = ring.astype(np.float64).T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


def _grouped(mask: Mask, rings: list[Ring]) -> list[tuple[Ring, list[Ring]]]:
    """Outer rings with their holes, from top to bottom."""
    outer_of = [number if _area(ring) > 0 else -1 for number, ring in enumerate(rings)]
    holes = [number for number, outer in enumerate(outer_of) if outer < 0]
    if holes:
        edges = _Edges(mask.shape[0], rings)
        leftmost = {number: min(map(tuple, rings[number].tolist())) for number in holes}
        for number in sorted(holes, key=lambda number: leftmost[number]):
            # what stands to the left of the hole is of its part, up to the nearest edge, which is
            # the part's outer ring or that of a hole further left
            x, y = leftmost[number]
            outside = np.flatnonzero(~mask[y, :x])
            edge = int(outside[-1]) + 1 if outside.size else 0
            outer_of[number] = outer_of[edges.ring_at(edge, y)]

    parts: dict[int, tuple[Ring, list[Ring]]] = {
        number: (ring, []) for number, ring in enumerate(rings) if outer_of[number] == number
    }
    for number in holes:
        parts[outer_of[number]][1].append(rings[number])
    return sorted(parts.values(), key=lambda part: min((y, x) for x, y in part[0].tolist()))


class _Edges:
    """The vertical edges of rings, to be looked up."""

    def __init__(self, height: int, rings: list[Ring]) -> None:
        self._lines = height + 1
        starts = np.concatenate(rings).astype(np.int64)
        ends = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
        ring_of = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
        vertical = starts[:, 0] == ends[:, 0]
        tops = np.minimum(starts[:, 1], ends[:, 1])[vertical]
        places = starts[vertical, 0] * self._lines + tops
        order = np.argsort(places)
        self._places, self._rings = places[order], ring_of[vertical][order]

    def ring_at(self, x: int, row: int) -> int:
        """The ring with an edge to the left of pixel (x, row), which must be one."""
        return int(self._rings[np.searchsorted(self._places, x * self._lines + row, "right") - 1])


def simplified(ring: Ring, tolerance: float) -> Ring:
    """The ring with fewer points, none further than `tolerance` pixels from what was there."""
    far = int(_squares(ring - ring.mean(axis=0)).argmax())
    turned = np.roll(ring, -far, axis=0)
    opposite = int(_squares(turned - turned[0]).argmax())
    closed = np.concatenate([turned, turned[:1]]).astype(np.float64)

    kept = np.array([0, opposite, len(ring)])
    while (further := _worst_between(closed, kept, tolerance)).size:
        kept = np.sort(np.concatenate([kept, further]))
    found: Ring = turned[kept[:-1]]
    return found if len(found) > 2 else ring


def _worst_between(
    points: NDArray[np.float64], kept: NDArray[np.int64], tolerance: float
) -> NDArray[np.int64]:
    """Of each two neighbours that are kept, the point between them that is too far from the line.

    The furthest one, and none where all are near enough.
    """
    segment = np.repeat(np.arange(len(kept) - 1), np.diff(kept))  # of each point but the last
    starts = points[kept[:-1]]
    along = (points[kept[1:]] - starts)[segment]
    offset = points[:-1] - starts[segment]
    share = np.clip((offset * along).sum(axis=1) / np.maximum(_squares(along), 1), 0, 1)
    squares = _squares(offset - share[:, None] * along)
    worst = np.maximum.reduceat(squares, kept[:-1])
    too_far = np.flatnonzero((squares == worst[segment]) & (worst > tolerance**2)[segment])
    _, first = np.unique(segment[too_far], return_index=True)
    return np.asarray(too_far[first])


def _squares(vectors: NDArray[np.number]) -> NDArray[np.float64]:
    """The squared length of each vector [N, 2]."""
    return np.asarray(np.square(vectors, dtype=np.float64).sum(axis=1))


def _bridged(ring: NDArray[np.float64], hole: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ring with a way to the hole, round it and back.

    The way leads from the hole's leftmost point to the left, to the first edge of the ring.
    """
    turned = np.roll(hole, -int(np.lexsort((hole[:, 1], hole[:, 0]))[0]), axis=0)
    x, y = turned[0]
    ends = np.roll(ring, -1, axis=0)
    low, high = np.minimum(ring[:, 1], ends[:, 1]), np.maximum(ring[:, 1], ends[:, 1])
    crosses = np.flatnonzero((low <= y) & (y < high))
    starts, along = ring[crosses], ends[crosses] - ring[crosses]
    at = starts[:, 0] + along[:, 0] * (y - starts[:, 1]) / along[:, 1]
    at = np.where(at <= x, at, -np.inf)
    if np.isfinite(at).any():
        number = int(at.argmax())
        edge, door = int(crosses[number]), np.array([[at[number], y]])
    else:  # a simplified hole that is no longer inside
        edge = int(_squares(ring - turned[0]).argmin())
        door = ring[edge : edge + 1]
    way = [ring[: edge + 1], door, turned, turned[:1], door, ring[edge + 1 :]]
    found = np.concatenate(way)
    return np.asarray(found[(found != np.roll(found, 1, axis=0)).any(axis=1)])
