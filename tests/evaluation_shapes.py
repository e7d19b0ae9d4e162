"""What the made-up evaluation sets are built of: shapes, images, annotations, references, answers.

`evaluation_set.py` says which of them a data set has. Everything follows from the random numbers,
so the order in which they are drawn is part of the result.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from pycocotools import mask as coco

SIZES = (480, 1024)
"""The sides of the squares at which answers are given, in pixels."""

GRID = 32
"""Grid shapes have their edges on 1/32 of the image, which is a whole pixel at both sizes."""

FULL_GRID = ((160, 96), (96, 160), (64, 128), (128, 64))
"""Width and height of the images in which 1/32 is a whole pixel too."""

ADJECTIVES = [
    *("red", "green", "tall", "small", "striped", "blurry"),
    *("wooden", "shiny", "old", "leftmost", "plain", "bright"),
]
NOUNS = [
    *("man", "dog", "cup", "car", "horse", "kite"),
    *("bench", "woman", "clock", "zebra", "boat", "umbrella"),
]
PLACES = [
    *("by the door", "near the window", "in the back"),
    *("on the left", "at the far right", "behind the fence"),
]
CATEGORIES = [(1, "person"), (3, "car"), (18, "dog"), (47, "cup"), (85, "clock")]

Spot = tuple[float, float, float]
"""Where an object is: centre x, centre y and radius, in shares of the image."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom, in shares of the image."""


class Shape:
    """What an answer covers, as a function of (x, y) in 0..1, tested at pixel centres.

    Args:
        kind: none; box (left, top, right, bottom); pixels (the same in pixels of the side asked);
            ellipse (centre x and y, radius x and y).
        numbers: The kind's numbers, all but those of pixels in shares of the image.
    """

    def __init__(self, kind: str, *numbers: float):
        self.kind, self.numbers = kind, numbers

    def at(self, side: int) -> np.ndarray:
        """The mask, (side, side) uint8 of 0 and 1."""
        if self.kind == "none":
            return np.zeros((side, side), np.uint8)
        at = np.arange(side)
        x, y = (at + 0.5)[None, :] / side, (at + 0.5)[:, None] / side
        if self.kind == "pixels":
            x, y = at[None, :], at[:, None]
        a, b, c, d = self.numbers
        if self.kind == "ellipse":
            return (((x - a) / c) ** 2 + ((y - b) / d) ** 2 <= 1).astype(np.uint8)
        return ((x >= a) & (x < c) & (y >= b) & (y < d)).astype(np.uint8)


NONE = Shape("none")


class Pool:
    """The images that data sets share, by (width, height).

    Args:
        rng: Draws the sides and the ids.
        first_id: The ids are above it.
        prefixes: What the files' names begin with, in turn.
    """

    def __init__(self, rng: np.random.Generator, first_id: int, prefixes: tuple[str, ...]):
        sides = [s for s in range(41, 158) if 480 % s and 1024 % s and s % 32]
        self.odd: list[tuple[int, int]] = []
        for number in range(8):
            a, b = sorted(int(v) for v in rng.choice(sides, 2, replace=False))
            self.odd.append((a, b) if number % 3 == 0 else (b, a))
        self.images: dict[tuple[int, int], dict] = {}
        for number, (width, height) in enumerate([*FULL_GRID, *self.odd]):
            first_id += int(rng.integers(1, 900))
            name = f"{prefixes[number % len(prefixes)]}_{first_id:012d}.jpg"
            entry = {"id": first_id, "file_name": name, "height": height, "width": width}
            self.images[width, height] = entry


def rle(mask: np.ndarray) -> dict:
    """COCO's compressed run-length code of a mask (H, W) uint8, as JSON has it."""
    code = coco.encode(np.asfortranarray(mask))
    return {"size": [int(s) for s in code["size"]], "counts": code["counts"].decode("ascii")}


def runs(rng: np.random.Generator, image: dict) -> list[int]:
    """Uncompressed run lengths of some bars."""
    found, left = [], image["height"] * image["width"]
    while left > 0:
        run = min(left, int(rng.integers(5, 40)))
        found.append(run)
        left -= run
    return found


def box_polygon(x0: float, y0: float, x1: float, y1: float) -> list[float]:
    """The corners of a box, as COCO writes a polygon."""
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def box_and_area(image: dict, segmentation: Any) -> tuple[list[float], float]:
    """`bbox` and `area` of an annotation; of polygons the box around them and its area."""
    if isinstance(segmentation, dict):
        code = segmentation
        if isinstance(code["counts"], list):
            code = coco.frPyObjects(code, image["height"], image["width"])
        return coco.toBbox(code).tolist(), float(coco.area(code))
    pairs = [np.asarray(p[: len(p) // 2 * 2], float).reshape(-1, 2) for p in segmentation]
    low, high = np.concatenate(pairs).min(0), np.concatenate(pairs).max(0)
    return [*low.tolist(), *(high - low).tolist()], float(np.prod(high - low))


class Data:
    """One data set: images, annotations, references and the answers about them.

    Args:
        name: As in the answers' `dataset`; it decides the form of `ann_id`.
        rng: Draws all that is made.
        first_id: The ids of annotations, references and sentences follow from it.
        pool: The images to choose from.
    """

    def __init__(self, name: str, rng: np.random.Generator, first_id: int, pool: Pool):
        self.name, self.rng, self.pool = name, rng, pool
        self.images: list[dict] = []
        self.annotations: list[dict] = []
        self.refs: list[dict] = []
        self.predictions: list[dict] = []
        self.next_ann, self.next_ref = first_id * 10 + 500, first_id + 7
        self.next_sent = first_id * 3 + 100

    # what the files have

    def image(self, width: int, height: int) -> dict:
        """The pool's image of that size, which the data set has from then on."""
        found = self.pool.images[width, height]
        if found not in self.images:
            self.images.append(found)
        return found

    def odd_image(self, tall: bool = False) -> dict:
        """An image whose sides divide neither 480 nor 1024."""
        fitting = [size for size in self.pool.odd if (size[1] > size[0]) == tall]
        return self.image(*fitting[int(self.rng.integers(len(fitting)))])

    def annotation(self, image: dict, segmentation: Any, crowd: int = 0) -> dict:
        """A new annotation of a drawn category."""
        box, area = box_and_area(image, segmentation)
        found = {
            "id": self.next_ann,
            "image_id": image["id"],
            "category_id": self.any_category(),
            "iscrowd": crowd,
            "bbox": box,
            "area": area,
            "segmentation": segmentation,
        }
        self.next_ann += int(self.rng.integers(1, 50))
        self.annotations.append(found)
        return found

    def reference(
        self, image: dict, annotations: list[dict], split: str, shapes: list, **extra: Any
    ) -> None:
        """A new reference with its sentences, and an answer for each of them.

        Args:
            image: The image's entry.
            annotations: What it refers to; none where nothing is meant.
            split: The reference's `split`.
            shapes: The answer to each sentence: a Shape, or a dict of mask and tie (Shapes),
                nt (two logits) and long (how many pairs of words more).
            extra: Further fields of the reference.
        """
        answers = [s if isinstance(s, dict) else {"mask": s} for s in shapes]
        sentences = [self.sentence(answer.get("long", 0)) for answer in answers]
        one = self.name in ("refcoco", "refcoco+", "refcocog")
        ids = [a["id"] for a in annotations]
        categories = [a["category_id"] for a in annotations]
        own = self.mostly(categories[0]) if one else sorted(set(categories)) or [-1]
        no_file = image["file_name"].replace(".jpg", f"_{ids[0] % 20 if ids else 0}.jpg")
        found = {
            "ref_id": self.next_ref,
            "ann_id": ids[0] if one else ids or [-1],
            "category_id": own,
            "image_id": image["id"],
            "file_name": no_file,
            "split": split,
            "sent_ids": [s["sent_id"] for s in sentences],
            "sentences": sentences,
            **extra,
        }
        self.next_ref += int(self.rng.integers(1, 12))
        self.refs.append(found)
        for answer, sentence in zip(answers, sentences, strict=True):
            logits = answer.get("nt") or self.logits(bool(annotations))
            self.predictions.append(self.line(found, sentence, answer) | {"nt_logits": logits})

    def sentence(self, long: int = 0) -> dict:
        """A sentence that is like no other, with so many pairs of words more."""
        pick = self.rng.choice
        adjective, noun, place, number = pick(ADJECTIVES), pick(NOUNS), pick(PLACES), self.next_sent
        more = " ".join(f"{pick(ADJECTIVES)} {pick(NOUNS)}" for _ in range(long))
        raw = f"The {adjective.upper()} {noun}, {place} (No. {number})!"
        sent = f"{adjective} {noun} {place} {number}"
        if more:
            raw, sent = f"{raw} {more.title()}.", f"{sent} {more}"
        if number % 4 == 0:
            sent = f" {sent} "  # one of the evaluators strips it
        self.next_sent += int(self.rng.integers(1, 6))
        return {"tokens": sent.split(), "raw": raw, "sent_id": number, "sent": sent}

    def line(self, reference: dict, sentence: dict, answer: dict) -> dict:
        """A line of the answers' file, without the logits."""
        mask, tie = answer["mask"], answer.get("tie", NONE)
        found: dict[str, Any] = {
            "dataset": self.name,
            "ref_id": reference["ref_id"],
            "sent_id": sentence["sent_id"],
            "image_id": reference["image_id"],
            "mask": {str(side): rle(mask.at(side)) for side in SIZES},
            "tie": {},
        }
        if tie.kind != "none":
            both = {str(side): rle(tie.at(side) & (1 - mask.at(side))) for side in SIZES}
            found["tie"] = both
        return found

    # what is drawn

    def any_category(self) -> int:
        """A category's id."""
        return int(self.rng.choice([number for number, _ in CATEGORIES]))

    def mostly(self, own: int) -> int:
        """A reference's category: one in three times drawn anew."""
        return own if self.rng.random() < 2 / 3 else self.any_category()

    def logits(self, targeted: bool) -> list[float]:
        """Target and no target, mostly right: one in six is wrong, and they are never equal.

        They are multiples of 1/8, so that float32 holds them exactly.
        """
        refuse = (not targeted) != (self.rng.random() < 1 / 6)
        low, gap = self.rng.integers(-24, 24) / 8, self.rng.integers(1, 30) / 8
        return [float(low), float(low + gap)] if refuse else [float(low + gap), float(low)]

    def spot(self) -> Spot:
        """A place in the middle of the image."""
        draw = self.rng.uniform
        return float(draw(0.3, 0.7)), float(draw(0.3, 0.7)), float(draw(0.12, 0.28))

    def star(self, image: dict, x: float, y: float, radius: float, points: int = 9) -> list[float]:
        """A polygon around a spot.

        Args:
            image: The image's entry.
            x: The spot's centre, as a share of the width.
            y: The same of the height.
            radius: The points are half of it to all of it away.
            points: How many.

        Returns:
            x and y in turn, in pixels, rounded to two decimals.
        """
        angle = np.sort(self.rng.random(points)) * 2 * np.pi
        reach = radius * (0.5 + self.rng.random(points) / 2)
        xs = (x + reach * np.cos(angle)) * image["width"]
        ys = (y + reach * np.sin(angle)) * image["height"]
        return [round(float(v), 2) for pair in zip(xs, ys, strict=True) for v in pair]

    def near(self, x: float, y: float, radius: float) -> Shape:
        """An answer for an object there: an ellipse or a box, more or less right."""
        a, b = x + self.rng.normal(0, radius / 6), y + self.rng.normal(0, radius / 6)
        c, d = radius * self.rng.uniform(0.5, 1.0), radius * self.rng.uniform(0.5, 1.0)
        if self.rng.random() < 0.5:
            return Shape("ellipse", a, b, c, d)
        return Shape("box", a - c, b - d, a + c, b + d)

    def grid_box(self, image: dict) -> tuple[list[float], Box]:
        """A box of 10 by 10 grid units, as a polygon of floats in pixels and as a box."""
        u, v = (int(n) for n in self.rng.integers(1, GRID - 11, 2))
        left, top, right, bottom = u / GRID, v / GRID, (u + 10) / GRID, (v + 10) / GRID
        w, h = image["width"], image["height"]
        return box_polygon(left * w, top * h, right * w, bottom * h), (left, top, right, bottom)
