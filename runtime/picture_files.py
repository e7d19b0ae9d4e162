"""The one reader of pictures: whatever Pillow decodes becomes upright 8-bit RGB.

Every door reads with it, so that a picture is the same to all: commands, data sets, training and
servers. docs/reference/pictures.md has the rules.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import IO, Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile

from ris.engines.errors import ImageError, RisError
from ris.engines.text import echoed, reason_of
from ris.runtime.orientation import exif_orientation, orientation_of, turned, turned_size
from ris.runtime.picture_folders import NEEDS_HEIF
from ris.runtime.pixels import to_rgb
from ris.runtime.png_files import png_exif, without_texts
from ris.runtime.quiet_pillow import quiet_pillow

ImageFile = str | os.PathLike[str] | bytes | IO[bytes]
"""A path, the bytes of an image file, or a file that is open for reading bytes."""

ImageLike = ImageFile | Image.Image | NDArray[Any]
"""An image file, a PIL image, or an array: uint8 [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA."""

Pixels = Image.Image | NDArray[np.uint8]
"""RGB: a PIL image, or uint8 [H, W, 3]."""

MAX_PIXELS = 120_000_000
"""The most pixels of an image that is read: a 100-megapixel camera's, with room to spare."""

Made = TypeVar("Made")

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class TooManyPixels(ImageError):  # noqa: N818
    """An image of more pixels than are accepted."""


@dataclass(frozen=True)
class Picture:
    """An image as it was decoded."""

    pixels: Pixels
    """RGB, upright; smaller than `height` x `width` where it was decoded as a draft."""

    height: int
    """The height of the image, and of its masks."""

    width: int
    """The width of the image, and of its masks."""

    orientation: int = 1
    """How the file's pixels were turned to be upright, as EXIF numbers it: 1 to 8."""


def load_rgb(source: ImageLike) -> NDArray[np.uint8]:
    """Any image as uint8 RGB [H, W, 3], as a viewer would show it.

    EXIF orientation is applied, 16-bit values are scaled to 8, transparent pixels are laid over
    white, and of an animation the first frame is taken.

    Raises:
        ImageError: Where the image is missing, damaged, too large or of an unknown kind.
    """
    return np.asarray(load_picture(source).pixels)


def load_picture(
    source: ImageLike,
    draft: int | None = None,
    *,
    formats: Collection[str] | None = None,
    pixels: int = MAX_PIXELS,
) -> Picture:
    """`load_rgb` without making an array, for a caller that only resizes the image.

    Args:
        source: The image.
        draft: A JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as
            both sides keep this many pixels. None: never.
        formats: The formats that a file may have, by Pillow's names. None: all that are installed.
        pixels: The most pixels. A file's header is asked, before anything is decoded.

    Raises:
        TooManyPixels: An ImageError, for more.
        ImageError: As `load_rgb`.
    """
    if isinstance(source, np.ndarray):
        array = _from_array(source, pixels)
        return Picture(array, *array.shape[:2])
    if isinstance(source, Image.Image):
        with _one_sentence("the image", pixels):
            _check_size(*source.size, "the image", pixels)
            return _decode(source, "the image", draft)

    def decode(opened: Image.Image, name: str) -> Picture:
        return _decode(opened, name, draft)

    return decoded(source, decode, formats=formats, pixels=pixels)


def decoded(
    source: ImageFile,
    decode: Callable[[Image.Image, str], Made],
    *,
    formats: Collection[str] | None = None,
    pixels: int = MAX_PIXELS,
) -> Made:
    """What `decode` makes of an image file that is opened and not yet loaded.

    A PNG file that fails is tried again without its texts and colour profile.

    Args:
        source: A path, bytes, or an open file.
        decode: Gets the opened image, and what messages call it. Whatever it raises becomes an
            ImageError for this file.
        formats: As for `load_picture`.
        pixels: The most pixels, as for `load_picture`.

    Raises:
        ImageError: As `load_picture`.
    """

    def attempt(file: IO[bytes], name: str) -> Made:
        with _one_sentence(name, pixels), _opened_image(file, name, formats) as opened:
            _check_size(*opened.size, name, pixels)
            return decode(opened, name)

    with _opened_file(source) as (file, name):
        try:
            return attempt(file, name)
        except TooManyPixels:
            raise
        except ImageError:
            # Pillow's readers of some formats close the file; none of them is PNG's
            bare = None if file.closed else without_texts(file)
            if bare is None:
                raise
            with contextlib.suppress(ImageError):
                return attempt(bare, name)
            raise


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(height, width) of an image file as it is shown; its pixels are not decoded.

    Raises:
        ImageError: As `load_rgb`, as far as the file's header tells.
    """
    return decoded(path, _shown_size)


def _shown_size(opened: Image.Image, name: str) -> tuple[int, int]:
    if hasattr(opened, "tag_v2"):  # whether its `size` is of the turned image, versions differ
        width, height = opened.tag_v2[256], opened.tag_v2[257]
    else:
        width, height = opened.size
    orientation = orientation_of(opened)
    if isinstance(opened, PngImageFile) and opened.fp and "exif" not in opened.info:
        orientation = exif_orientation(png_exif(opened.fp) or b"") or orientation
    return turned_size(height, width, orientation)


@contextlib.contextmanager
def _opened_file(source: Any) -> Iterator[tuple[IO[bytes], str]]:
    """The source as a file in which one can seek, and what messages call it."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), "the image"
    elif hasattr(source, "read"):
        yield io.BytesIO(_content(source)), "the image"
    elif isinstance(source, str | os.PathLike):
        name = echoed(source)
        with _file_on_disk(source, name) as file:
            yield (file if file.seekable() else io.BytesIO(file.read())), name
    else:
        raise ImageError(
            "an image is a path, the bytes of an image file, a PIL image or a uint8 array"
            f" [H, W, 3]; got {type(source).__name__}"
        )


def _content(file: Any) -> bytes:
    """Everything in an open file, also where it stands at its end, just written."""
    try:
        if file.seekable():
            file.seek(0)
        content = file.read()
    except (OSError, ValueError, AttributeError) as error:
        raise ImageError(f"the image's file cannot be read: {error}") from None
    if not isinstance(content, bytes):
        raise ImageError("the image's file gives text; open it in binary mode")
    return content


def _file_on_disk(path: str | os.PathLike[str], name: str) -> IO[bytes]:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ImageError(f"{name}: no such image file") from None
    except IsADirectoryError:
        raise ImageError(f"{name} is a folder, not an image file") from None
    except PermissionError:
        raise ImageError(f"{name}: no permission to read this file") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise ImageError(f"{name} cannot be read: {reason}") from None


@contextlib.contextmanager
def _one_sentence(name: str, pixels: int) -> Iterator[None]:
    """Makes an ImageError of whatever a decoder raises: Pillow's raise many kinds."""
    try:
        with quiet_pillow:
            yield
    except RisError:
        raise
    except UnidentifiedImageError:
        raise ImageError(
            f"{name} is not an image that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF, ...)"
        ) from None
    except Image.DecompressionBombError:
        raise TooManyPixels(
            f"{name} has far too many pixels, the limit is {pixels / 1e6:g} megapixels"
        ) from None
    except MemoryError:
        raise ImageError(f"{name} does not fit into memory") from None
    except Exception as error:
        raise ImageError(f"{name} is damaged or cut short: {reason_of(error)}") from None


def _opened_image(file: IO[bytes], name: str, formats: Collection[str] | None) -> Image.Image:
    if formats is not None:
        Image.init()
        return Image.open(file, formats=[one for one in formats if one in Image.OPEN])
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        brand = _iso_brand(file)
        if brand == b"avif":
            raise ImageError(f"{name} cannot be read: AVIF needs Pillow 11.3 or newer") from None
        if brand not in _HEIF_BRANDS:
            raise
        _register_heif(name)
        return Image.open(file)


def _iso_brand(file: IO[bytes]) -> bytes:
    """What kind of ISO media file it says that it is; empty for other files."""
    file.seek(0)
    head = file.read(12)
    return head[8:] if head[4:8] == b"ftyp" else b""


def _register_heif(name: str) -> None:
    try:
        import pillow_heif  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ImageError(f"{name} cannot be read: {NEEDS_HEIF}") from None
    pillow_heif.register_heif_opener()


def _decode(opened: Image.Image, name: str, draft: int | None) -> Picture:
    size = opened.size
    if draft and opened.format == "JPEG":
        opened.draft(None, (draft, draft))
    scaled = opened.size != size

    # of a TIFF before it is loaded, and of a PNG after it
    tiff = orientation_of(opened) if hasattr(opened, "tag_v2") else None
    opened.load()
    rgb = to_rgb(opened, name)
    orientation = tiff or orientation_of(opened)
    if tiff is None:
        rgb = turned(rgb, orientation)

    if scaled:
        return Picture(rgb, *turned_size(size[1], size[0], orientation), orientation)
    return Picture(rgb, rgb.height, rgb.width, orientation)


def _from_array(array: NDArray[Any], pixels: int) -> NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else 1
    known_shape = array.ndim in (2, 3) and channels in (1, 3, 4) and 0 not in array.shape
    if array.dtype != np.uint8 or not known_shape:
        raise ImageError(
            "an image array must be uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA; got"
            f" {array.dtype} {list(array.shape)}"
        )
    _check_size(array.shape[1], array.shape[0], "the image array", pixels)
    if channels == 3:
        return np.ascontiguousarray(array)
    picture = Image.fromarray(array if array.ndim == 2 or channels == 4 else array[..., 0])
    return np.asarray(to_rgb(picture, "the image array"))


def _check_size(width: int, height: int, name: str, pixels: int) -> None:
    if width * height > pixels:
        raise TooManyPixels(
            f"{name} is {width}x{height} pixels, the limit is {pixels / 1e6:g} megapixels"
        )
