"""What every door checks before the model sees a request: sizes, counts, queue and time.

An error's HTTP status says what kind of refusal it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import ExpressionError, ImageError, RisError
from ris.runtime.image import TooManyPixels, load_picture
from ris.runtime.picture_files import decoded
from ris.runtime.text import MAX_CHARACTERS

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF")
"""The image formats that are read, by Pillow's names.

Pillow decodes these by itself: none starts a program, none follows a name inside the file to
another file.
"""


_HANGS_AFTER = 3
"""What a request may take is over after so many times `Limits.seconds`.

Behind the image and each group of expressions it would have seen that its time is up.
"""

_LEAST_HANG = 60.0
"""Nothing hangs that has been at work for fewer seconds, however short the limit is."""


class LimitError(RisError):
    """A request beyond a limit."""

    status: int
    """The HTTP status that it corresponds to: 413 too large, 504 too slow, ..."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def _size(opened: Image.Image, name: str) -> tuple[int, int]:
    return opened.size


def status_of(error: RisError) -> int:
    """The HTTP status of an error: 400 and 413 the sender's, 504 too slow, 500 ours."""
    if isinstance(error, LimitError):
        return error.status
    return 400 if isinstance(error, ImageError | ExpressionError) else 500


@dataclass(frozen=True)
class Limits:
    """What a door accepts.

    `answer_pixels`, `mask_bytes` and `held_bytes` are of Triton alone; `HttpSettings` has what
    bounds the memory of `ris-serve http`.
    """

    image_bytes: int = 32_000_000
    """Bytes of an image file as it is sent."""

    pixels: int = 50_000_000
    """Width times height of an image."""

    side: int = 65_535
    """Pixels of an image's longer side; JPEG has no longer one.

    A mask's logits are as wide as the image before they are as high: a line of fifty million pixels
    would take gigabytes.
    """

    expressions: int = 32
    """Expressions of one request."""

    characters: int = MAX_CHARACTERS
    """Characters of one expression."""

    waiting: int = 64
    """Requests in the queue."""

    seconds: float = 60.0
    """Seconds that a request may wait, and then that many again for the work on it.

    `ris-serve http` and the page: from a request's first byte to its answer, both together. In a
    batch: of one step, such as encoding an image.
    """

    answer_pixels: int = 400_000_000
    """Width times height times expressions of one request: the pixels of all its masks."""

    mask_bytes: int = 50_000_000
    """Bytes of the masks of one request that are sent whole, one a pixel; run lengths are few."""

    held_bytes: int = 512_000_000
    """Bytes of all requests that a server has taken in and has not answered."""

    @property
    def hang_seconds(self) -> float:
        """Seconds at work after which a request does not come back any more: the engine hangs."""
        return max(_HANGS_AFTER * self.seconds, _LEAST_HANG)

    def check_expressions(self, expressions: Sequence[str]) -> None:
        """Raises ExpressionError for no expression, LimitError for too many or a too long one."""
        if not expressions:
            raise ExpressionError('nothing to look for; send an expression, such as "left man"')
        if len(expressions) > self.expressions:
            raise LimitError(
                f"{len(expressions)} expressions, at most {self.expressions} are accepted", 413
            )

        longest = max(len(text) for text in expressions)
        if longest > self.characters:
            raise LimitError(
                f"an expression has {longest} characters, at most {self.characters} are accepted",
                413,
            )

    def check_answer(self, pixels: int, expressions: int, masks: bool) -> None:
        """Raises LimitError for more masks than are computed, or sent, for one request.

        Args:
            pixels: Width times height of the image, as `pixels_of` says it.
            expressions: How many are asked.
            masks: Whether the masks themselves are to be sent, and not their run lengths alone.
        """
        asked = pixels * expressions
        size = f"{expressions} masks of {pixels / 1e6:.1f} megapixels"
        if asked > self.answer_pixels:
            raise LimitError(
                f"{size} are more than the {self.answer_pixels / 1e6:g} megapixels of one request;"
                " send fewer expressions at a time",
                413,
            )
        if masks and asked > self.mask_bytes:
            raise LimitError(
                f"{size} are more than the {self.mask_bytes / 1e6:g} MB that are sent; ask for"
                " rle_counts in place of mask, or send fewer expressions at a time",
                413,
            )

    def decode(self, data: bytes) -> NDArray[np.uint8]:
        """The bytes of an image file as uint8 RGB [H, W, 3].

        The size in the file's header is checked before a pixel is decoded. Raises ImageError for
        what is no image, LimitError for one that is too large.
        """
        self.pixels_of(data)
        try:
            return np.asarray(load_picture(data, formats=FORMATS, pixels=self.pixels).pixels)
        except TooManyPixels as error:
            raise LimitError(str(error), 413) from None

    def pixels_of(self, data: bytes) -> int:
        """How many pixels an image file has, by its header; none is decoded.

        Raises as `decode`, as far as the header tells.
        """
        self.check_file_size(data)
        try:
            width, height = decoded(data, _size, formats=FORMATS, pixels=self.pixels)
        except TooManyPixels as error:
            raise LimitError(str(error), 413) from None
        if max(width, height) > self.side:
            raise LimitError(
                f"the image is {width}x{height} pixels, the limit is {self.side} to a side", 413
            )
        return width * height

    def check_file_size(self, data: bytes) -> None:
        """Raises LimitError for a file of more bytes than are accepted."""
        if len(data) > self.image_bytes:
            found, accepted = len(data) / 1e6, self.image_bytes / 1e6
            raise LimitError(
                f"the image file has {found:.1f} MB, at most {accepted:g} MB are accepted", 413
            )

    def deadline(self) -> Deadline:
        """Starts the clock of one request."""
        return Deadline(self.seconds)


class Deadline:
    """When a request has taken too long.

    It is checked between passes of the model: a pass itself is not interrupted.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = time.monotonic() + seconds

    def check(self) -> None:
        """Raises LimitError once the time is up."""
        if time.monotonic() > self._end:
            raise LimitError(
                f"the request took longer than {self._seconds:g} s; send fewer expressions at a"
                " time",
                504,
            )
