"""What ignoring embedded colour profiles costs: the demo's masks of wide-gamut pictures.

    python examples/measure_profiles.py --scenes 48

Drawn scenes are written as a camera would that works in another colour space: the same colours in
other numbers, and the profile beside them. Ignoring the profile takes those numbers for sRGB;
converting gives the scene back, up to rounding.
"""

from __future__ import annotations

import argparse
import io
import struct
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ris.data.samples import AnnotatedImage, scene_images
from ris.runtime import BUILT_IN, Model, Segmentation, load

Array = NDArray[np.float64]

BRADFORD = np.array(
    [[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]]
)
"""XYZ to the responses in which white points are exchanged."""

D50 = (0.9642, 1.0, 0.8249)
"""White in an ICC profile, XYZ."""

D65_XY, D50_XY = (0.3127, 0.3290), (0.3457, 0.3585)

SRGB_CURVE = struct.pack(
    ">4s4xHHiiiii",
    b"para",
    3,
    0,
    *(round(value * 65536) for value in (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)),
)
"""sRGB's curve, which Display P3 has too, as a profile's tag."""


@dataclass(frozen=True)
class Space:
    """An RGB colour space."""

    name: str
    """What tables call it."""

    primaries: tuple[tuple[float, float], ...]
    """The chromaticities of red, green and blue, as x and y."""

    white: tuple[float, float]
    """The chromaticity of white."""

    curve: bytes
    """Numbers to light, as a profile's tag."""


def gamma(value: float) -> bytes:
    """A power as a profile's tag."""
    return struct.pack(">4s4xHHi", b"para", 0, 0, round(value * 65536))


SPACES = (
    Space("Display P3", ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65_XY, SRGB_CURVE),
    Space("Adobe RGB", ((0.640, 0.330), (0.210, 0.710), (0.150, 0.060)), D65_XY, gamma(563 / 256)),
    Space(
        "ProPhoto RGB", ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)), D50_XY, gamma(1.8)
    ),
)


def profile(space: Space) -> bytes:
    """An ICC profile (version 4, matrix and curves) of the space."""
    text = struct.pack(">4s4xII2s2sII", b"mluc", 1, 12, b"en", b"US", 2 * len(space.name), 28)
    text += space.name.encode("utf-16-be")
    colours = [struct.pack(">4s4xiii", b"XYZ ", *fixed(xyz)) for xyz in columns(space)]
    tags = dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours, strict=True))
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), space.curve)
    tags |= {b"desc": text, b"cprt": text, b"wtpt": struct.pack(">4s4xiii", b"XYZ ", *fixed(D50))}

    table, data, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content.ljust(-(-len(content) // 4) * 4, b"\0")
    head = struct.pack(
        ">I4xI4s4s4s12x4s", start + len(data), 0x04000000, b"mntr", b"RGB ", b"XYZ ", b"acsp"
    )
    head = head.ljust(68, b"\0") + struct.pack(">iii", *fixed(D50))
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + data


def fixed(values: tuple[float, ...] | Array) -> list[int]:
    """Numbers in sixteenths of 16 bits, as profiles have them."""
    return [round(float(value) * 65536) for value in values]


def columns(space: Space) -> Array:
    """What red, green and blue are in XYZ under D50, [3, 3], one a row."""
    light = np.array([xyz(x, y) for x, y in space.primaries]).T
    white = np.array(xyz(*space.white))
    to_xyz = light * np.linalg.solve(light, white)
    scale = (BRADFORD @ np.array(D50)) / (BRADFORD @ white)
    adapted: Array = np.linalg.inv(BRADFORD) @ np.diag(scale) @ BRADFORD @ to_xyz
    return adapted.T


def xyz(x: float, y: float) -> tuple[float, float, float]:
    """A chromaticity as XYZ of brightness 1."""
    return x / y, 1.0, (1 - x - y) / y


@dataclass
class Sums:
    """What is added up over the scenes."""

    levels: float = 0.0
    """Mean difference of the squares' levels, of 255."""

    largest: int = 0
    """The largest difference."""

    iou: float = 0.0
    """IoUs of the targeted expressions with their truths."""

    alike: float = 0.0
    """IoUs with the masks of the scene itself."""

    changed: int = 0
    """Expressions that were refused and are not, or the other way round."""


def applied(picture: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    """The picture in the transform's other colour space."""
    converted = ImageCms.applyTransform(picture, transform)
    assert converted is not None  # it is None for a change in place
    return converted


def overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU; 1 where both are empty."""
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 1.0


def ask(model: Model, rgb: NDArray[np.uint8], image: AnnotatedImage) -> list[Segmentation]:
    """Everything that is asked of the scene, of these pixels."""
    return model.encode_image(rgb).segment_many([truth.expression for truth in image.truths])


def add(
    sums: Sums,
    image: AnnotatedImage,
    rgb: NDArray[np.uint8],
    given: list[Segmentation],
    own: list[Segmentation],
) -> None:
    """Adds one scene.

    Args:
        sums: What it is added to.
        image: The scene.
        rgb: Its pixels as they were read.
        given: The answers about those.
        own: The answers about the scene itself.
    """
    difference = np.abs(rgb.astype(int) - image.rgb)
    sums.levels += float(difference.mean())
    sums.largest = max(sums.largest, int(difference.max()))
    for truth, answer, before in zip(image.truths, given, own, strict=True):
        sums.iou += overlap(answer.mask, truth.mask) if truth.targeted else 0.0
        sums.alike += overlap(answer.mask, before.mask)
        sums.changed += answer.is_no_target != before.is_no_target


def main() -> None:
    """Draws, asks and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--scenes", type=int, default=48)
    parser.add_argument("--bundle", default=str(BUILT_IN))
    options = parser.parse_args()

    model = load(options.bundle, engine="onnxruntime")
    srgb = ImageCms.createProfile("sRGB")
    images = list(scene_images("heldout", 4 * options.scenes))
    own = {image.name: ask(model, image.rgb, image) for image in images}
    asked = sum(len(image.truths) for image in images)
    targeted = sum(truth.targeted for image in images for truth in image.truths)
    plain = Sums()
    for image in images:
        add(plain, image, image.rgb, own[image.name], own[image.name])
    print(f"{asked} expressions about {len(images)} scenes, {targeted} of them targeted")
    print(f"{'as drawn':28} mIoU {plain.iou / targeted:.4f}")

    for space in SPACES:
        wide = ImageCms.ImageCmsProfile(io.BytesIO(profile(space)))
        there = ImageCms.buildTransform(srgb, wide, "RGB", "RGB")
        back = ImageCms.buildTransform(wide, srgb, "RGB", "RGB")
        ignored, converted = Sums(), Sums()
        for image in images:
            stored = applied(Image.fromarray(image.rgb), there)
            for sums, read in (
                (ignored, stored),
                (converted, applied(stored, back)),
            ):
                rgb = np.asarray(read)
                add(sums, image, rgb, ask(model, rgb, image), own[image.name])
        for name, sums in (("ignored", ignored), ("converted", converted)):
            print(
                f"{space.name + ', ' + name:28} mIoU {sums.iou / targeted:.4f}, IoU with the masks"
                f" as drawn {sums.alike / asked:.4f}, refused differently {sums.changed};"
                f" levels off by {sums.levels / len(images):.2f}, at most {sums.largest}"
            )

    photo = Image.fromarray(images[0].rgb).resize((4000, 3000))
    start = time.perf_counter()
    applied(photo, back)
    print(f"converting 12 megapixels takes {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
