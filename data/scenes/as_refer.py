"""A made-up data set in RefCOCO's or gRefCOCO's own files, of drawn scenes.

    python -m ris.data.scenes.as_refer --root made-up --data refcoco --train 200 --val 40

For tests, and to try a whole training run and its evaluation without COCO: pictures of a
photograph's size, lying and upright, polygons, sentences whose `raw` is not their `sent`, and in
gRefCOCO's form several objects and none. The sizes are not those that the authors state, which
`ris-data check` says.
"""

from __future__ import annotations

import argparse
import json
import pickle
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris import pip_install
from ris.data.scenes.glyphs import Split
from ris.data.scenes.grammar import WEIGHTS, make_samples
from ris.data.scenes.scene import Scene, make_scene
from ris.data.scenes.words import NOUNS, category
from ris.data.scenes.writer import Sample
from ris.engines.errors import RisError

FORMS = {"refcoco": "refs(unc).p", "refcocog": "refs(umd).p", "grefcoco": "grefs(unc).json"}
"""Data set whose form is written -> its list of references."""

SIDE = 640
"""The longer side of a picture, pixels; the other is three quarters of it."""

_ASKED = 10  # expressions of a scene, of which those that the form can hold are kept
_SENTENCES = 3  # of a reference, at most
_UPRIGHT = 3  # every third picture is
_FIRST = 1_000_000  # scenes of a split are numbered this far from those of the one before


def write_as_refer(
    root: Path, name: str, images: Mapping[str, int], *, side: int = SIDE, first: int = 0
) -> None:
    """Writes a data set of drawn scenes below `root`, as its authors would.

    Args:
        root: The folder that the data set's folder and `images/train2014` are in.
        name: One of `FORMS`.
        images: Split ("train", "val", "testA", ...) -> how many images; those of test splits show
            held-out scenes.
        side: The longer side of a picture.
        first: The number of the first scene; other numbers give other pictures.

    Raises:
        RisError: For an unknown form, and where contourpy is not installed.
    """
    if name not in FORMS:
        raise RisError(f"drawn scenes are written as {', '.join(FORMS)}, not as {name!r}")
    files = _Files(name, side)
    pictures = root / "images" / "train2014"
    pictures.mkdir(parents=True, exist_ok=True)
    for place, (split, count) in enumerate(images.items()):
        drawn: Split = "heldout" if split.startswith("test") else "train"
        for number in range(count):
            scene = make_scene(first + place * _FIRST + number, drawn, max(64, side * 3 // 4))
            rgb, file = files.add(scene, split)
            rgb.save(pictures / file, quality=95)

    folder = root / name
    folder.mkdir(parents=True, exist_ok=True)
    references = folder / FORMS[name]
    if references.suffix == ".p":
        references.write_bytes(pickle.dumps(files.references, protocol=2))
    else:
        references.write_text(json.dumps(files.references))
    (folder / "instances.json").write_text(json.dumps(files.instances()))


@dataclass
class _Files:
    """What the files of the data set will hold."""

    name: str
    """The form."""

    side: int
    """The longer side of a picture."""

    references: list[dict[str, Any]] = field(default_factory=list)
    """The list of references."""

    images: list[dict[str, Any]] = field(default_factory=list)
    """Of instances.json."""

    annotations: list[dict[str, Any]] = field(default_factory=list)
    """Of instances.json."""

    sentences: int = 0
    """Sentences so far."""

    def add(self, scene: Scene, split: str) -> tuple[Image.Image, str]:
        """A scene with all that is asked about it: its picture, and the name of the file."""
        # of the scene, so that data sets of several forms may share the folder of images
        number = 1 + scene.seed + (_FIRST // 2 if scene.split == "heldout" else 0)
        lying = (self.side, self.side * 3 // 4)
        width, height = lying[::-1] if number % _UPRIGHT == 0 else lying
        file = f"COCO_train2014_{number:012d}.jpg"
        self.images.append({"id": number, "file_name": file, "height": height, "width": width})
        scale = (width / scene.image.shape[1], height / scene.image.shape[0])
        objects = {
            place: self._annotate(number, thing.mask, _CATEGORY_OF.get(thing.kind), scale)
            for place, thing in enumerate(scene.objects)
        }
        for targets, samples in self._grouped(scene):
            ids = [objects[place] for place in targets]
            self._refer((number, file, split), ids, samples)
        resized = Image.fromarray(scene.image).resize((width, height), Image.Resampling.BICUBIC)
        return resized, file

    def _grouped(self, scene: Scene) -> Iterator[tuple[tuple[int, ...], list[Sample]]]:
        """The objects that expressions mean, and the expressions of each, a reference each."""
        by_targets: dict[Any, list[Sample]] = defaultdict(list)
        for sample in make_samples(scene, scene.seed, _ASKED, WEIGHTS):
            general = self.name == "grefcoco"
            # one object of a COCO category in RefCOCO; each sentence about nothing by itself
            if general or (len(sample.targets) == 1 and sample.category is not None):
                by_targets[sample.targets or sample.expression].append(sample)
        for samples in by_targets.values():
            yield samples[0].targets, samples[:_SENTENCES]

    def _annotate(
        self, image: int, mask: NDArray[np.bool_], name: str | None, scale: tuple[float, float]
    ) -> int:
        """Adds an object; its number."""
        polygons = outlines_of(mask, scale)
        points = np.concatenate([np.reshape(polygon, (-1, 2)) for polygon in polygons])
        low, high = points.min(0), points.max(0)
        number = 1000 + len(self.annotations)
        self.annotations.append(
            {
                "id": number,
                "image_id": image,
                "category_id": _CATEGORIES.index(name) + 1 if name else 0,
                "segmentation": polygons,
                "area": float(mask.sum() * scale[0] * scale[1]),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "iscrowd": 0,
            }
        )
        return number

    def _refer(self, picture: tuple[int, str, str], ids: list[int], samples: list[Sample]) -> None:
        """Adds a reference to these objects.

        Args:
            picture: The image's number, its file, and the split.
            ids: The objects' numbers.
            samples: The sentences.
        """
        image, file, split = picture
        sentences = []
        for sample in samples:
            sent = sample.expression
            raw = _written(sent, self.sentences)
            own = {"raw": raw, "sent": sent, "tokens": sent.split(), "sent_id": self.sentences}
            sentences.append(own)
            self.sentences += 1
        reference = {
            "ref_id": len(self.references),
            "image_id": image,
            "split": split,
            "file_name": file,
            "sentences": sentences,
            "sent_ids": [one["sent_id"] for one in sentences],
        }
        own_category = [self.annotations[number - 1000]["category_id"] for number in ids]
        if self.name == "grefcoco":
            reference |= {"ann_id": ids or [-1], "category_id": own_category or [-1]}
            reference["no_target"] = not ids
        else:
            reference |= {"ann_id": ids[0], "category_id": own_category[0]}
        self.references.append(reference)

    def instances(self) -> dict[str, Any]:
        """What instances.json holds."""
        categories = [{"id": i, "name": name} for i, name in enumerate(_CATEGORIES, 1)]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}


_CATEGORY_OF = {
    kind: name
    for noun in NOUNS
    if len(noun.kinds) == 1 and (name := category(noun)) is not None
    for kind in noun.kinds
}
_CATEGORIES = sorted(set(_CATEGORY_OF.values()))


def _written(sent: str, number: int) -> str:
    """A sentence as an author may have typed it; `sent` is what cleaning leaves of it."""
    return (sent.capitalize() + ".", sent.upper(), sent.capitalize(), f"  {sent} ")[number % 4]


def outlines_of(mask: NDArray[np.bool_], scale: tuple[float, float]) -> list[list[float]]:
    """COCO polygons around a mask's parts; holes are filled.

    Args:
        mask: bool [H, W], not empty.
        scale: What x and y are multiplied by.

    Raises:
        RisError: Where contourpy is not installed.
    """
    try:
        from contourpy import contour_generator
    except ImportError as error:
        raise RisError(
            f"outlines of drawn scenes need contourpy: {pip_install('train')}"
        ) from error
    # from the centres of pixels, of a mask with a rim, to their corners
    lines: Any = contour_generator(z=np.pad(mask, 1).astype(np.float64)).lines(0.5)
    parts = sorted(((_area(line), line) for line in lines), key=lambda one: -one[0])
    kept = [line for area, line in parts if area >= 4] or [parts[0][1]]
    return [np.round((line[:-1] - 0.5) * scale, 2).ravel().tolist() for line in kept]


def _area(line: NDArray[np.float64]) -> float:
    """Above 0 around what is higher, below 0 around a hole; pixels."""
    x, y = line[:-1].T
    return float((x * np.roll(y, -1) - y * np.roll(x, -1)).sum() / 2)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m ris.data.scenes.as_refer", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--root", type=Path, required=True, help="folder of the data sets' folders")
    add("--data", choices=sorted(FORMS), default="refcoco", help="whose form")
    add("--train", type=int, default=200, help="images of the split train")
    add("--val", type=int, default=40, help="images of the split val")
    add("--test", type=int, default=40, help="images of testA (refcocog: test), held-out scenes")
    add("--side", type=int, default=SIDE, help="longer side of a picture in pixels")
    add("--first", type=int, default=0, help="number of the first scene")
    args = parser.parse_args()
    test = "test" if args.data == "refcocog" else "testA"
    images = {"train": args.train, "val": args.val, test: args.test}
    write_as_refer(args.root, args.data, images, side=args.side, first=args.first)
    print(f"{args.root}: {args.data} with {sum(images.values())} images")


if __name__ == "__main__":
    main()
