"""A letterbox: the whole picture at the top left of a square, with its aspect ratio."""

from __future__ import annotations


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
