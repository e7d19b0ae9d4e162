"""What the host does before and between the graphs: squares, tokens, masks, indices, resizes.

Each of a manifest's host values is made here (`ris.runtime.manifest.Host`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines import HostStep, Value
from ris.engines.errors import BundleError
from ris.runtime.bundle import Bundle
from ris.runtime.categories import CategoryTable, read_table
from ris.runtime.drawn import draw, for_each
from ris.runtime.interpolate import Float, resize_maps, resize_rows
from ris.runtime.letterbox import covering_size, letterbox_size
from ris.runtime.manifest import PICTURE, HostImage, Resize
from ris.runtime.masks import Size
from ris.runtime.picture_files import Pixels
from ris.runtime.segmentation import Timings, timed
from ris.runtime.text import ExpressionTokenizer, Tokens

Levels = NDArray[np.uint8]
"""RGB of 8 bits, [H, W, 3]."""

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def prepare_images(
    rgb: Pixels, images: Mapping[str, HostImage], size: Size | None = None
) -> dict[str, Float]:
    """A picture as the images that the host makes of it, normalised, float32 [1, 3, S, S].

    Args:
        rgb: The picture.
        images: How each is made (`Host.images`).
        size: The picture's own (height, width), where it was decoded smaller. None: as `rgb` has
            them.

    Returns:
        The images by the names of their values.
    """
    own = size or _size(rgb)
    fitted: dict[tuple[str, str, int], Levels] = {}

    def levels(image: HostImage) -> Levels:
        """Those of an image of the picture."""
        way = image.fit, image.filter, image.size
        if way not in fitted:
            fitted[way] = fit_picture(rgb, image, own)
        return fitted[way]

    def made(image: HostImage) -> Float:
        if image.antialias:
            return normalise(levels(image), image)
        return _sampled(np.asarray(rgb) if image.of == PICTURE else levels(images[image.of]), image)

    return {name: made(image) for name, image in images.items()}


def fit_picture(rgb: Pixels, image: HostImage, own: Size) -> Levels:
    """A picture's levels as one of the host's images has them, [S, S, 3], or less of a letterbox.

    Args:
        rgb: The picture.
        image: How the image is made.
        own: The picture's own (height, width).

    Raises:
        ImageError: Where the picture is too narrow for an image that the middle is cut out for.
    """
    side = image.size
    if image.fit == "letterbox":
        return resize_picture(rgb, letterbox_size(*own, side), image.filter)
    if image.fit == "square":
        return resize_picture(rgb, (side, side), image.filter)
    height, width = covering_size(*own, side)
    top, left = (height - side) // 2, (width - side) // 2
    whole = resize_picture(rgb, (height, width), image.filter)
    return whole[top : top + side, left : left + side]


def _size(rgb: Pixels) -> Size:
    if isinstance(rgb, Image.Image):
        return rgb.height, rgb.width
    return rgb.shape[0], rgb.shape[1]


def resize_picture(rgb: Pixels, size: Size, filter_: str = "bilinear") -> Levels:
    """A picture of another (height, width), uint8 [*size, 3], by Pillow's filter of that name."""
    if isinstance(rgb, np.ndarray) and rgb.shape[:2] != size:
        rgb = Image.fromarray(rgb)
    if isinstance(rgb, Image.Image) and (rgb.height, rgb.width) != size:
        rgb = rgb.resize(size[::-1], _FILTERS[filter_])
    return np.asarray(rgb)


def normalise(levels: Levels, wanted: HostImage) -> Float:
    """8-bit levels less the mean and divided by the deviation, float32 [1, 3, S, S].

    levels: [S, S, 3], or less of a letterbox, whose other places are zeros.
    """
    height, width = levels.shape[:2]
    make = np.empty if height == width == wanted.size else np.zeros
    image = make((1, 3, wanted.size, wanted.size), np.float32)
    for channel, plane in enumerate(image[0, :, :height, :width]):
        plane[:] = levels[..., channel]
        if wanted.levels == 1:
            plane /= np.float32(255)
        plane -= np.float32(wanted.mean[channel])
        plane /= np.float32(wanted.std[channel])
    return image


def _sampled(levels: Levels, wanted: HostImage) -> Float:
    """A square of levels [H, W, 3], resized without antialiasing and normalised."""
    # rows first, on interleaved channels; then columns, as the rows of the transposed image
    tall = resize_rows(levels, wanted.size, wanted.filter)  # [c, W, 3]
    turned = np.ascontiguousarray(tall.transpose(1, 2, 0))  # [W, 3, c]
    small = resize_rows(turned, wanted.size, wanted.filter)  # [c (x), 3, c (y)]

    if wanted.levels == 1:
        small /= np.float32(255)
    small -= np.asarray(wanted.mean, np.float32)[:, None]
    small /= np.asarray(wanted.std, np.float32)[:, None]
    return np.ascontiguousarray(small.transpose(1, 2, 0))[None]  # [1, 3, c (y), c (x)]


class HostSide:
    """The host's part of a bundle: its tokenizer, its table of categories, its resizes.

    The constructor raises BundleError where the tokenizer or the table cannot be read, and where a
    stage takes rows of another width.
    """

    tokenize: ExpressionTokenizer
    """Expressions to token ids."""

    categories: CategoryTable | None
    """The table of a model that asks by category, None for others."""

    def __init__(self, bundle: Bundle) -> None:
        self._host = bundle.manifest.host
        self._resizes = bundle.wiring.resizes
        text = self._host.text
        self.tokenize = ExpressionTokenizer(
            bundle.file(text.tokenizer),
            text.max_tokens,
            text.pad_id,
            text.end_id,
            text.form_named,
            text.lengths,
        )
        self.categories = None
        self._features: Float | None = None
        if (files := self._host.categories) is not None:
            self.categories, self._features = read_table(
                bundle.file(files.names), bundle.file(files.features)
            )
            width = self._features.shape[1]
            for stage in bundle.manifest.stages:
                for spec in stage.inputs:
                    if spec.value == files.value and spec.shape[1] != width:
                        raise BundleError(
                            f"{bundle.file(files.features)} has rows of {width} numbers, the stage"
                            f" {stage.name!r} takes {spec.shape[1]}; export the bundle again"
                        )

    def images(self, rgb: Pixels, size: Size | None = None) -> dict[str, Float]:
        """The picture as the host's images, by value; the arguments are `prepare_images`'s."""
        return prepare_images(rgb, self._host.images, size)

    def texts(self, tokens: Tokens) -> dict[str, Value]:
        """The values of N expressions: ids and their mask, and that all ask the one image."""
        text, values = self._host.text, dict[str, Value]()
        values[text.ids] = tokens.ids
        if text.mask is not None:
            values[text.mask] = tokens.mask
        if (name := self._host.image_index) is not None:
            values[name] = np.zeros(len(tokens.ids), np.int32)
        return values

    def asked(self, rows: Sequence[int]) -> dict[str, Value]:
        """The values of the asked rows of the table of categories; none for other models."""
        if self._host.categories is None or self._features is None:
            return {}
        return {self._host.categories.value: np.ascontiguousarray(self._features[list(rows)])}

    def drawn(
        self, expressions: int, seed: int | None = None, number: int = 0
    ) -> dict[str, NDArray[np.float32]]:
        """The random numbers of a draw as values of N expressions; none for other models.

        Args:
            expressions: How many there are.
            seed: What is drawn from. None: the bundle's own seed.
            number: The number of the draw, from 0 on.
        """
        return for_each(draw(self._host.drawn, seed, number), expressions)

    def steps(self, stage: str, spent: Timings) -> dict[str, HostStep]:
        """By a stage's outputs: what the host makes of them before another stage takes them.

        spent: gets the seconds of each resize, by the value that it gives.
        """
        return {
            resize.of: HostStep(_resizer(name, resize, spent), (resize.size, resize.size))
            for name, resize in self._resizes[stage].items()
        }

    def renamed(self, stage: str, outputs: Mapping[str, Value]) -> dict[str, Value]:
        """A stage's outputs after `steps`, the resized ones under their own names."""
        names = {resize.of: name for name, resize in self._resizes[stage].items()}
        return {names.get(name, name): value for name, value in outputs.items()}

    def resized(self, stage: str, outputs: Mapping[str, NDArray]) -> dict[str, NDArray]:
        """The values that the host makes of a stage's outputs on the host, beside them."""
        return {
            name: resize_maps(outputs[resize.of], resize.size, resize.size, resize.interpolation)
            for name, resize in self._resizes[stage].items()
        }


def _resizer(name: str, resize: Resize, spent: Timings) -> Callable[[Float], Float]:
    def work(maps: Float) -> Float:
        with timed(spent, name):
            return resize_maps(maps, resize.size, resize.size, resize.interpolation)

    return work
