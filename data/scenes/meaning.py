"""What an expression means: which objects of a scene it picks.

That is decided on the centroids of visible masks, with clear margins: every function returns None
where a person might hesitate. Distances are shares of the image's side.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from ris.data.scenes.scene import SceneObject

EXTREME_MARGIN = 0.12
"""Between the leftmost (rightmost, ...) and the next."""

ORDER_MARGIN = 0.06
"""Between neighbours that are counted."""

SIZE_RATIO = 1.25
"""Between the biggest (smallest) and the next, in drawn scale."""

AREA_RATIO = 1.25
"""The same in visible area."""

_CLEAR = 0.12  # from this distance on a thing is clearly above (below, left of, right of) another
_NONE = 0.02  # up to this distance it clearly is not
_CONE = 1.0  # sideways per way along a direction: up to this clearly in that direction
_WIDE = 3.0  # from this on clearly not in that direction
# distance of centres over the mean size: up to the first clearly next to it, from the second on not
_NEAR, _FAR = 1.5, 2.0

AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}
"""Direction -> axis (0 is x), and the sign by which the one furthest that way is sorted first."""

_TOWARDS = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}


def in_order(things: list[SceneObject], direction: str) -> list[int]:
    """Positions in `things`, the one furthest in `direction` first."""
    axis, sign = AXES[direction]
    return sorted(range(len(things)), key=lambda i: sign * things[i].centre[axis])


def extreme(things: list[SceneObject], direction: str, side: int) -> int | None:
    """Position of the one furthest in `direction`.

    One thing alone must clearly be in that half of the image.
    """
    if len(things) == 1:
        axis, sign = AXES[direction]
        from_middle = sign * (things[0].centre[axis] / side - 0.5)
        return 0 if from_middle < -EXTREME_MARGIN else None
    order = in_order(things, direction)
    return order[0] if _gaps(things, order, direction, side)[0] >= EXTREME_MARGIN else None


def middle(things: list[SceneObject], side: int) -> int | None:
    """Position of the middle one of exactly three in a row or in a column."""
    if len(things) != 3:
        return None
    spreads = [float(np.ptp([thing.centre[axis] for thing in things])) for axis in (0, 1)]
    if min(spreads) > 0.6 * max(spreads):  # neither a row nor a column
        return None
    direction = "left" if spreads[0] > spreads[1] else "top"
    order = in_order(things, direction)
    return order[1] if min(_gaps(things, order, direction, side)) >= EXTREME_MARGIN else None


def nth(things: list[SceneObject], number: int, direction: str, side: int) -> int | None:
    """Position of the `number`-th from a side, of two things or more.

    Args:
        things: What is counted.
        number: Which one, counted from 1.
        direction: The side from which to count, one of `AXES`.
        side: The image's side in pixels.
    """
    if not 1 <= number <= len(things) or len(things) < 2:
        return None
    order = in_order(things, direction)
    return order[number - 1] if min(_gaps(things, order, direction, side)) >= ORDER_MARGIN else None


def by_size(things: list[SceneObject], largest: bool) -> int | None:
    """Position of the largest or the smallest of two or more."""
    if len(things) < 2:
        return None
    order = sorted(range(len(things)), key=lambda i: things[i].size, reverse=largest)
    first, second = things[order[0]], things[order[1]]
    areas = [things[i].area for i in order[1:]]
    if largest:
        clear = first.size >= SIZE_RATIO * second.size and first.area >= AREA_RATIO * max(areas)
    else:
        clear = second.size >= SIZE_RATIO * first.size and first.area * AREA_RATIO <= min(areas)
    return order[0] if clear else None


def related(things: list[SceneObject], anchor: SceneObject, relation: str, side: int) -> int | None:
    """Position of the only thing that is clearly in a relation to another, all others clearly not.

    Args:
        things: Those of which one is meant.
        anchor: The other thing, "the tree" in "dog left of the tree".
        relation: "beside", "above", "below", "left" or "right".
        side: The image's side in pixels.
    """
    answers = [_holds(thing, anchor, relation, side) for thing in things]
    return answers.index(True) if answers.count(True) == 1 and None not in answers else None


def _gaps(things: list[SceneObject], order: list[int], direction: str, side: int) -> list[float]:
    """Distances between neighbours in the order."""
    axis, _ = AXES[direction]
    along = [things[i].centre[axis] / side for i in order]
    return [abs(b - a) for a, b in pairwise(along)]


def _holds(thing: SceneObject, anchor: SceneObject, relation: str, side: int) -> bool | None:
    """Whether the relation holds; None where that is not clear."""
    away = [(thing.centre[axis] - anchor.centre[axis]) / side for axis in (0, 1)]
    if relation == "beside":
        distance = float(np.hypot(away[0], away[1])) * side / ((thing.size + anchor.size) / 2)
        # next to each other means side by side, not one above the other
        if distance <= _NEAR and abs(away[1]) <= abs(away[0]):
            return True
        return False if distance >= _FAR else None

    axis, sign = _TOWARDS[relation]
    along, across = sign * away[axis], abs(away[1 - axis])
    if along >= _CLEAR and across <= _CONE * along:
        return True
    return False if along <= _NONE or across >= _WIDE * along else None
