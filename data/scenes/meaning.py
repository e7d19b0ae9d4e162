"""What an expression means: which objects it picks, decided on the centroids of visible masks with
clear margins.

Every function returns None where a person might hesitate. Distances are shares of the image's side.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ris.data.scenes.scene import SceneObject

EXTREME_MARGIN = 0.12  # between the leftmost (rightmost, ...) and the next
ORDER_MARGIN = 0.06  # between neighbours that are counted
SIZE_RATIO = 1.25  # between the biggest (smallest) and the next, in drawn scale
AREA_RATIO = 1.25  # and in visible area
_CLEAR = 0.12  # how far above (below, left, right of) is clearly so
_NONE = 0.02  # up to where it is clearly not so
_CONE = 1.0  # sideways per way along the direction: clearly in that direction
_WIDE = 3.0  # clearly not in that direction
_NEAR, _FAR = 1.5, 2.0  # centre distance over the sum of half sizes: clearly next to, clearly not

AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
"""Direction -> axis (0 is x) and the sign with which it is sorted: the first is the one furthest
that way.
"""
_TOWARDS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}


def in_order(things: list[SceneObject], direction: str) -> list[int]:
    """Positions in `things`, from the one furthest in `direction` on."""
    axis, sign = AXES[direction]
    return sorted(range(len(things)), key=lambda i: sign * things[i].centre[axis])


def _gaps(things: list[SceneObject], order: list[int], direction: str, side: int) -> list[float]:
    """Distances between neighbours in the order."""
    axis, _ = AXES[direction]
    along = [things[i].centre[axis] / side for i in order]
    return [abs(b - a) for a, b in pairwise(along)]


def extreme(things: list[SceneObject], direction: str, side: int) -> int | None:
    """Position of the one furthest in `direction`; one thing alone must clearly be in that half of
    the image.
    """
    axis, sign = AXES[direction]
    if len(things) == 1:
        return 0 if sign * (things[0].centre[axis] / side - 0.5) < -EXTREME_MARGIN else None
    order = in_order(things, direction)
    return order[0] if _gaps(things, order, direction, side)[0] >= EXTREME_MARGIN else None


def middle(things: list[SceneObject], side: int) -> int | None:
    """Position of the middle one of exactly three in a row or in a column."""
    if len(things) != 3:
        return None
    spreads = [float(np.ptp([t.centre[axis] for t in things])) for axis in (0, 1)]
    direction = "left" if spreads[0] > spreads[1] else "top"
    if min(spreads) > 0.6 * max(spreads):
        return None
    order = in_order(things, direction)
    return order[1] if min(_gaps(things, order, direction, side)) >= EXTREME_MARGIN else None


def nth(things: list[SceneObject], number: int, direction: str, side: int) -> int | None:
    """Position of the `number`-th from `direction`, counted from 1, of two or more."""
    if not 1 <= number <= len(things) or len(things) < 2:
        return None
    order = in_order(things, direction)
    return order[number - 1] if min(_gaps(things, order, direction, side)) >= ORDER_MARGIN else None


def by_size(things: list[SceneObject], largest: bool) -> int | None:
    """Position of the largest or the smallest of two or more."""
    if len(things) < 2:
        return None
    order = sorted(range(len(things)), key=lambda i: things[i].size, reverse=largest)
    first, second = (things[i] for i in order[:2])
    big, small = (first, second) if largest else (second, first)
    areas = [things[i].area for i in order[1:]]
    rival = max(areas) if largest else min(areas)
    clear = first.area >= AREA_RATIO * rival if largest else first.area * AREA_RATIO <= rival
    return order[0] if big.size >= SIZE_RATIO * small.size and clear else None


def related(things: list[SceneObject], anchor: SceneObject, relation: str, side: int) -> int | None:
    """Position of the only one that is in this relation to the anchor: clearly so, and the others
    clearly not.
    """
    answers = [_holds(thing, anchor, relation, side) for thing in things]
    return answers.index(True) if answers.count(True) == 1 and None not in answers else None


def _holds(thing: SceneObject, anchor: SceneObject, relation: str, side: int) -> bool | None:
    """True or False where it is clear, None where it is not."""
    away = [(thing.centre[axis] - anchor.centre[axis]) / side for axis in (0, 1)]
    if relation == "beside":
        distance = float(np.hypot(away[0], away[1])) * side / ((thing.size + anchor.size) / 2)
        if distance <= _NEAR and abs(away[1]) <= abs(away[0]):
            return True
        return False if distance >= _FAR else None
    axis, sign = _TOWARDS[relation]
    along, across = sign * away[axis], abs(away[1 - axis])
    if along >= _CLEAR and across <= _CONE * along:
        return True
    return False if along <= _NONE or across >= _WIDE * along else None
