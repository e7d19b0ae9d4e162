"""Made-up data sets in the benchmarks' own formats, with a file of answers to each.

    python tests/evaluation_set.py --seed 0 --out FOLDER

makes those of `tests/golden/evaluation`, from which the authors' own code computed what is there.
Everything but the bytes of the JPEG files follows from the seed. The sets hold what tells the
evaluators apart: exact ratios, few pixels, odd sides, overlapping and odd polygons, refusals.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from evaluation_shapes import (
    CATEGORIES,
    FULL_GRID,
    GRID,
    NONE,
    Box,
    Data,
    Pool,
    Shape,
    Spot,
    box_polygon,
    runs,
)

Made = tuple[list, list]
"""The polygons of an annotation, and the answers to the sentences about it."""

# references of one object, by what they try


def part(box: Box, tenths: int) -> Shape:
    """The left tenths of a box."""
    left, top, right, bottom = box
    return Shape("box", left, top, left + (right - left) * tenths / 10 - 1e-9, bottom)


def exact(
    data: Data, split: str, tenths: tuple[int, ...], size: tuple[int, int], **extra: Any
) -> None:
    """IoUs of exactly so many tenths, by a part of the object.

    Args:
        data: The data set.
        split: The reference's split.
        tenths: A sentence each.
        size: Width and height of the image, one of FULL_GRID.
        extra: Further fields of the reference.
    """
    image = data.image(*size)
    polygon, box = data.grid_box(image)
    annotation = data.annotation(image, [polygon])
    data.reference(image, [annotation], split, [part(box, t) for t in tenths], **extra)


def wider(data: Data, split: str, **extra: Any) -> None:
    """IoUs of 1 and of nearly 1 by masks that are not less than the object."""
    image = data.image(*FULL_GRID[int(data.rng.integers(2))])
    polygon, (left, top, right, bottom) = data.grid_box(image)
    annotation = data.annotation(image, [polygon])
    shapes = [Shape("box", at, top, right, bottom) for at in (left, left - 1 / GRID)]
    data.reference(image, [annotation], split, shapes, **extra)


def edge_columns(data: Data, split: str, **extra: Any) -> None:
    """A box with odd pixels as edges in an image 64 or 128 wide.

    There the rule of the nearest neighbour decides which columns it has.
    """
    image = data.image(*FULL_GRID[2 + int(data.rng.integers(2))])
    w, h = image["width"], image["height"]
    left, top = (int(n) * 2 + 1 for n in data.rng.integers(3, 8, 2))
    right, bottom = left + 2 * int(data.rng.integers(8, 12)), top + 2 * int(data.rng.integers(5, 9))
    right, bottom = min(right, w - 3), min(bottom, h - 3)
    polygon = box_polygon(float(left), float(top), float(right), float(bottom))
    shapes = [
        Shape("box", left / w, top / h, right / w, bottom / h),
        {"mask": NONE, "nt": [2.0, -1.0]},
    ]
    data.reference(image, [data.annotation(image, [polygon])], split, shapes, **extra)


def few_pixels(data: Data, split: str) -> None:
    """16 pixels at 1024, 8 of them answered: a small number added to U decides about 1/2."""
    image = data.image(128, 64)
    x, y = (int(n) for n in data.rng.integers(20, 40, 2))
    annotation = data.annotation(image, [box_polygon(float(x), float(y), x + 0.5, y + 0.25)])
    shape = Shape("pixels", x * 8, y * 16, x * 8 + 2, y * 16 + 4)
    data.reference(image, [annotation], split, [shape])


def ten_pixels(data: Data, split: str) -> None:
    """10 pixels of the image, 7 of them answered."""
    image = data.image(160, 96)
    x, y = (int(n) for n in data.rng.integers(20, 60, 2))
    annotation = data.annotation(image, [box_polygon(float(x), float(y), x + 10.0, y + 1.0)])
    shape = Shape("box", x / 160, y / 96, (x + 7) / 160 - 1e-9, (y + 1) / 96 - 1e-9)
    data.reference(image, [annotation], split, [shape])


# references of one drawn outline: each gets the image, the spot, a star there and an answer near it


def one(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """One polygon; a tie around the second answer, a long text to the third."""
    x, y, r = spot
    tied = {"mask": data.near(x, y, r), "tie": data.near(x, y, r * 1.3)}
    return [star], [near, tied, {"mask": NONE, "long": 9}]


def apart(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Three polygons that do not touch."""
    x, y, r = spot
    others = [(1 - x, 0.1), (0.05, 1 - y)]
    segmentation = [star, *(data.star(image, *at, r / 3) for at in others)]
    return segmentation, [near, {"mask": data.near(x, y, r), "nt": [-0.5, 0.75], "long": 17}]


def overlapping(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Three polygons over each other."""
    x, y, r = spot
    others = [data.star(image, x + r / 3, y, r), data.star(image, x + r / 4, y, r)]
    return [star, *others], [near, data.near(x, y, r)]


def whole(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Every number a whole one, none a float."""
    return [[round(v) for v in star]], [near, data.near(*spot)]


def border(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Reaches past the image."""
    w, h = image["width"], image["height"]
    corners = [
        [-4.5, -3.25, w * 0.4, -6.0, w * 0.3, h * 0.45, -2.0, h * 0.4],
        [w * 0.7, h * 0.7, w + 8.5, h * 0.6, w + 3.0, h + 9.0, w * 0.75, h + 0.5],
    ]
    shapes = [Shape("box", 0, 0, 0.33, 0.4), Shape("box", 0.7, 0.65, 1, 1)]
    return [[round(float(v), 2) for v in polygon] for polygon in corners], shapes


def odd(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """The second polygon has 7 numbers."""
    seven = [*data.star(image, 0.15, 0.15, 0.12, 3), 3.5]
    return [star, seven], [near, Shape("box", 0.05, 0.05, 0.25, 0.25)]


def only_odd(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """The only polygon has 7 numbers."""
    return [[*data.star(image, *spot, 3), 3.5]], [near]


def two_points(image: dict, spot: Spot) -> list[float]:
    """A polygon that is none."""
    x, y, _ = spot
    w, h = image["width"], image["height"]
    return [round(x * w, 2), round(y * h, 2), round(w * 0.9, 2), round(h * 0.8, 2)]


def short(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """The second polygon has two points."""
    return [star, two_points(image, spot)], [near]


def only_short(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Two points and a half."""
    return [[*two_points(image, spot), 3.5]], [near, NONE]


def thin(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """A pixel wide."""
    x, y, _ = spot
    w, h = image["width"], image["height"]
    left, top = round(x * w, 2), round(y * h, 2)
    right = round(left + 1.3, 2)
    shapes = [Shape("box", x, y, x + 2 / w, 0.95), Shape("box", x - 1 / w, y, x + 1 / w, 0.9)]
    return [[left, top, right, top, right, h * 0.95, left, h * 0.95]], shapes


def small(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """Some two by two pixels."""
    x, y, _ = spot
    w, h = image["width"], image["height"]
    left, top = round(x * w, 2), round(y * h, 2)
    sides = [(2, 2), (3, 2.5)]
    shapes = [Shape("box", x, y, x + right / w, y + down / h) for right, down in sides]
    return [box_polygon(left, top, round(left + 2.6, 2), round(top + 2.1, 2))], shapes


def line(data: Data, image: dict, spot: Spot, star: list, near: Shape) -> Made:
    """No pixel at any size."""
    shapes = [
        {"mask": NONE, "nt": [1.0, -1.0]},
        {"mask": Shape("box", 0.1, 0.1, 0.2, 0.2), "nt": [1.0, -1.0]},
        {"mask": NONE, "nt": [-1.0, 1.0]},
    ]
    return [[10.0, 10.0, 20.0, 10.0, 31.5, 10.0]], shapes


Outline = Callable[[Data, dict, Spot, list, Shape], Made]
OUTLINES: tuple[Outline, ...] = (
    *(one, apart, overlapping, whole, border, odd, only_odd, thin, small, line, short, only_short),
)
"""In the order in which RefCOCO's splits have them."""


def outlined(data: Data, split: str, outline: Outline, **extra: Any) -> None:
    """A reference of one annotation, outlined in that manner.

    Args:
        data: The data set.
        split: The reference's split.
        outline: One of OUTLINES.
        extra: Further fields of the reference.
    """
    image = data.odd_image(tall=outline in (one, whole))
    spot = data.spot()
    star = data.star(image, *spot)
    segmentation, shapes = outline(data, image, spot, star, data.near(*spot))
    data.reference(image, [data.annotation(image, segmentation)], split, shapes, **extra)


# references of several objects, and of none


def several(
    data: Data, split: str, count: int, overlap: bool, crowd: str | None = None, **extra: Any
) -> None:
    """A reference of several objects.

    Args:
        data: The data set.
        split: The reference's split.
        count: How many objects.
        overlap: They share pixels.
        crowd: There is a crowd too, its outline compressed or runs. None: none.
        extra: Further fields of the reference.
    """
    image = data.odd_image()
    places = [data.spot() for _ in range(count)]
    if overlap:
        places = [(places[0][0] + i * 0.08, places[0][1] + i * 0.05, 0.2) for i in range(count)]
    annotations = [data.annotation(image, [data.star(image, *place)]) for place in places]
    if crowd:
        outline = {"size": [image["height"], image["width"]], "counts": runs(data.rng, image)}
        if crowd == "compressed":
            outline = coco.frPyObjects(outline, image["height"], image["width"])
            outline["counts"] = outline["counts"].decode("ascii")
        at = int(data.rng.integers(count + 1))
        annotations.insert(at, data.annotation(image, outline, crowd=1))
    shapes = [
        data.near(*places[0]),
        data.near(*places[-1]),
        {"mask": data.near(*places[0]), "nt": [-1.5, 0.25]},
    ]
    data.reference(image, annotations, split, shapes[: 2 + int(data.rng.integers(2))], **extra)


def nothing(data: Data, split: str, **extra: Any) -> None:
    """No target: refused or not, with 0, 1, 49, 50 and many pixels, and with equal scores."""
    image = data.odd_image(tall=True)
    yes, no, tie, full = [-0.75, 1.0], [0.5, -2.0], [0.625, 0.625], [20.0, 25.0]
    shapes = [
        {"mask": NONE, "nt": yes},
        {"mask": NONE, "nt": no},
        {"mask": data.near(0.4, 0.5, 0.2), "nt": yes},
        {"mask": data.near(0.6, 0.5, 0.1), "nt": no},
        {"mask": Shape("pixels", 100, 7, 101, 8), "nt": no},
        {"mask": Shape("pixels", 100, 7, 107, 14), "nt": no},
        {"mask": Shape("pixels", 30, 9, 40, 14), "nt": no},
        {"mask": data.near(0.3, 0.3, 0.1), "nt": tie},
        {"mask": data.near(0.3, 0.6, 0.1), "nt": full},
    ]
    if split not in ("val", "test"):
        shapes = [shapes[int(i)] for i in data.rng.permutation(len(shapes))[:5]]
    half = len(shapes) // 2
    data.reference(image, [], split, shapes[:half], **extra)
    data.reference(image, [], split, shapes[half:], **extra)


def small_answer(data: Data, split: str) -> None:
    """A small mask for what is there, not refused."""
    image = data.odd_image()
    x, y, _ = data.spot()
    shape = {"mask": Shape("box", x, y, x + 6 / 480, y + 6 / 480), "nt": [2.0, 0.5]}
    annotation = data.annotation(image, [data.star(image, x, y, 0.05)])
    data.reference(image, [annotation], split, [shape])


# the data sets


def shuffle(data: Data) -> Data:
    """The splits come mixed in the files."""
    data.refs = [data.refs[int(i)] for i in data.rng.permutation(len(data.refs))]
    return data


def refcoco(data: Data, splits: tuple[str, ...], outlines: tuple[Outline, ...]) -> Data:
    """One of RefCOCO, RefCOCO+ and RefCOCOg, with those splits and outlines."""
    for number, split in enumerate(splits):
        if split == "train":
            outlined(data, split, one)
            continue
        tenths = (5, 6, 7, 8, 9) if number % 2 else (9, 7, 5, 8, 6)
        exact(data, split, tenths, FULL_GRID[number % 2])
        wider(data, split)
        edge_columns(data, split)
        few_pixels(data, split)
        ten_pixels(data, split)
        for outline in outlines:
            outlined(data, split, outline)
    spare = data.images[0]
    not_referred_to = {
        "size": [spare["height"], spare["width"]],
        "counts": runs(data.rng, spare),
    }
    data.annotation(spare, not_referred_to, crowd=1)
    return shuffle(data)


def grefcoco(data: Data) -> Data:
    """gRefCOCO."""
    several(data, "train", 2, False)
    for number, split in enumerate(("val", "testA", "testB"), 1):
        exact(data, split, (7, 8, 9, 6, 5), FULL_GRID[number % 2])
        edge_columns(data, split)
        few_pixels(data, split)
        several(data, split, 1, False)
        several(data, split, 2, False)
        several(data, split, 3, True)
        several(data, split, 2, True, "compressed" if number % 2 else "runs")
        validation = (overlapping, whole, odd, line)
        for outline in validation if split == "val" else (whole, line, border):
            outlined(data, split, outline)
        small_answer(data, split)
        nothing(data, split)
    for ref in data.refs[:3]:  # one object may be written without a list
        if len(ref["ann_id"]) == 1:
            ref["ann_id"], ref["category_id"] = ref["ann_id"][0], ref["category_id"][0]
    return shuffle(data)


def ref_zom(data: Data) -> Data:
    """Ref-ZOM."""
    several(data, "train", 2, False, source="many")
    nothing(data, "train", source="zero")
    exact(data, "test", (5, 6, 7, 8, 9), FULL_GRID[0], source="one")
    wider(data, "test", source="one")
    edge_columns(data, "test", source="one")
    several(data, "test", 2, False, source="many")
    several(data, "test", 3, True, source="many")
    for outline in (one, overlapping, whole, border, odd, only_odd, thin, line, only_short):
        outlined(data, "test", outline, source="one")
    nothing(data, "test", source="zero")
    for ref in data.refs:
        if ref["source"] == "zero":
            ref["ann_id"], ref["category_id"] = [], []
        elif ref["source"] == "one" and ref["ref_id"] % 2:
            ref["ann_id"] = ref["ann_id"][0]
    return data


def google(refs: list[dict], rng: np.random.Generator) -> list[dict]:
    """Another partition of RefCOCOg's references, which has train and val alone."""
    return [{**ref, "split": "val" if rng.random() < 0.4 else "train"} for ref in refs]


# files


def write_images(pool: Pool, folder: Path, rng: np.random.Generator) -> None:
    """Writes small JPEGs of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for entry in pool.images.values():
        noise = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
        size = (entry["width"], entry["height"])
        picture = Image.fromarray(noise).resize(size, Image.Resampling.BILINEAR)
        picture.save(folder / entry["file_name"], quality=5, optimize=True)


def write(data: Data, out: Path, lists: dict[str, list[dict]]) -> None:
    """Writes a data set's folder below `out`, and the answers beside it.

    `lists` has the references by the name of their file.
    """
    folder = out / data.name
    folder.mkdir(parents=True, exist_ok=True)
    instances = {
        "info": {},
        "licenses": [],
        "images": data.images,
        "annotations": data.annotations,
        "categories": [{"id": i, "name": n, "supercategory": "thing"} for i, n in CATEGORIES],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    for name, refs in lists.items():
        if name.endswith(".json"):
            (folder / name).write_text(json.dumps(refs))
        else:
            (folder / name).write_bytes(pickle.dumps(refs, protocol=2))
    lines = "".join(json.dumps(answer) + "\n" for answer in data.predictions)
    (out / f"predictions-{data.name}.jsonl").write_text(lines)


def make(seed: int, out: Path, pictures: bool = True) -> None:
    """Writes all data sets of a seed, and their answers, into the folder `out`."""
    rngs = [np.random.default_rng([seed, n]) for n in range(8)]
    pool = Pool(rngs[6], 1000, ("COCO_train2014",))
    both = Pool(rngs[7], 50000, ("COCO_train2014", "COCO_val2014"))
    four, three = ("train", "val", "testA", "testB"), ("train", "val", "test")

    coco_unc = refcoco(Data("refcoco", rngs[0], 1000, pool), four, OUTLINES)
    write(coco_unc, out, {"refs(unc).p": coco_unc.refs})
    plus = refcoco(Data("refcoco+", rngs[1], 3000, pool), four[1:], (one, overlapping, whole))
    write(plus, out, {"refs(unc).p": plus.refs})
    umd = refcoco(Data("refcocog", rngs[2], 5000, pool), three, OUTLINES[:6])
    lists = {"refs(umd).p": umd.refs, "refs(google).p": google(umd.refs, rngs[5])}
    write(umd, out, lists)
    general = grefcoco(Data("grefcoco", rngs[3], 7000, pool))
    write(general, out, {"grefs(unc).json": general.refs})
    zom = ref_zom(Data("ref-zom", rngs[4], 9000, both))
    write(zom, out, dict.fromkeys(("Ref-ZOM(final).p", "refs(final).p"), zom.refs))
    if pictures:
        write_images(pool, out / "images" / "train2014", rngs[6])
        write_images(both, out / "images" / "trainval2014", rngs[7])


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    make(given.seed, given.out)


if __name__ == "__main__":
    main()
