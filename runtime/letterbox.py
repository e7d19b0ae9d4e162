"""How large a picture becomes whose aspect ratio is kept: inside a square, or around one."""

from __future__ import annotations

from ris.engines.errors import ImageError

MOST_SIDES = 100
"""A picture whose middle is cut out may be so many times as long as it is wide."""


def letterbox_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of a picture whose longest side becomes that of the square.

    Halves are rounded up, in double precision; no side is below 1.

    Args:
        height: The picture's height in pixels.
        width: The picture's width in pixels.
        side: The square's side in pixels.
    """
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def covering_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of a picture whose shortest side becomes that of the square.

    The other one is rounded down, in double precision.

    Args:
        height: The picture's height in pixels.
        width: The picture's width in pixels.
        side: The square's side in pixels.

    Raises:
        ImageError: Where one side is more than `MOST_SIDES` times the other.
    """
    if max(height, width) > MOST_SIDES * min(height, width):
        raise ImageError(
            f"the picture has {width}x{height} pixels; this model takes none that is more than"
            f" {MOST_SIDES} times as long as it is wide"
        )
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)
