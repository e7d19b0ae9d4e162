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
from ris.runtime.interpolate import Float, resize_maps, resize_rows
from ris.runtime.manifest import PICTURE, HostImage, Resize
from ris.runtime.picture_files import Pixels
from ris.runtime.segmentation import Timings, timed
from ris.runtime.text import ExpressionTokenizer, Tokens

Levels = NDArray[np.uint8]
"""RGB of 8 bits, [H, W, 3]."""


def prepare_images(rgb: Pixels, images: Mapping[str, HostImage]) -> dict[str, Float]:
    """A picture as the images that the host makes of it, normalised, float32 [1, 3, S, S].

    Args:
        rgb: The picture.
        images: How each is made (`Host.images`).

    Returns:
        The images by the names of their values.
    """
    squares: dict[int, Levels] = {}
    for image in images.values():
        if image.of == PICTURE and image.size not in squares:
            squares[image.size] = resize_picture(rgb, image.size)
    return {
        name: normalise(squares[image.size], image)
        if image.of == PICTURE
        else _smaller(squares[images[image.of].size], image)
        for name, image in images.items()
    }


def resize_picture(rgb: Pixels, size: int) -> Levels:
    """A square of 8-bit levels [size, size, 3], by Pillow's bilinear filter."""
    if isinstance(rgb, np.ndarray) and rgb.shape[:2] != (size, size):
        rgb = Image.fromarray(rgb)
    if isinstance(rgb, Image.Image) and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def normalise(square: Levels, wanted: HostImage) -> Float:
    """8-bit levels [S, S, 3] less the mean and divided by the deviation, float32 [1, 3, S, S]."""
    image = np.empty((1, 3, wanted.size, wanted.size), np.float32)
    for channel, plane in enumerate(image[0]):
        plane[:] = square[..., channel]
        if wanted.levels == 1:
            plane /= np.float32(255)
        plane -= np.float32(wanted.mean[channel])
        plane /= np.float32(wanted.std[channel])
    return image


def _smaller(square: Levels, wanted: HostImage) -> Float:
    """A square of another size, resized without antialiasing and normalised."""
    # rows first, on interleaved channels; then columns, as the rows of the transposed image
    tall = resize_rows(square, wanted.size, wanted.filter)  # [c, S, 3]
    turned = np.ascontiguousarray(tall.transpose(1, 2, 0))  # [S, 3, c]
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
            bundle.file(text.tokenizer), text.max_tokens, text.pad_id
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

    def images(self, rgb: Pixels) -> dict[str, Float]:
        """The picture as the host's images, by value."""
        return prepare_images(rgb, self._host.images)

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
