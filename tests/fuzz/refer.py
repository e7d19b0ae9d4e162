"""RefCOCO's files: lists of references as pickles and as JSON, instances.json, pictures."""

from __future__ import annotations

import functools
import inspect
import json
import pickle
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.json_tree import DEEP, mutated_json, mutated_tree, write
from fuzz.kinds import Input, Kind, require
from fuzz.lines import annotated
from fuzz.mutate import mutate
from fuzz.pickles import mutated_pickle
from refer_files import write_refer
from ris.data.datasets.refer import read
from ris.data.samples import refer_images
from ris.training.reading import read_for_training
from ris.training.refer_source import ReferSubset

SETS = {"refer-pickle": "refcoco", "refer-json": "grefcoco"}
TRAINED = {"refer-training": "refcoco", "refer-training-json": "grefcoco"}
REFS = {"refcoco": "refcoco/refs(unc).p", "grefcoco": "grefcoco/grefs(unc).json"}


@functools.cache
def _good(name: str) -> tuple[dict[str, bytes], tuple[Any, Any]]:
    """The files of a small data set, and what its split "val" gives: asked, and trained on."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_refer(root, name, images=4, size=72)
        files = {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}
        asked = annotated(refer_images(read(root, name, "val")))
        said: list[str] = []
        return files, (asked, (_samples(root, name, said), said))


def _samples(root: Path, name: str, skipped: list[str]) -> list[tuple[str, bytes]]:
    """The sentences and masks of the split as training has them, in the square."""
    data = read_for_training(name, "val", root=root, skipped=skipped.append)
    subset = ReferSubset(data, 48, group=3)
    batches = [subset.batch(step) for step in range(subset.steps)]
    skipped += [said for batch in batches if batch is not None for said in batch.left_out]
    return [
        (one.expression, np.packbits(one.mask).tobytes())
        for batch in batches
        if batch is not None
        for one in batch.examples
    ]


def _make(name: str, trained: bool, rng: random.Random, control: bool) -> Input:
    good, expected = _good(name)
    files = dict(good)
    if control:
        return Input(files, expected=expected[trained])
    instances = f"{name}/instances.json"
    match rng.choice(("refs", "instances", "instances", "instances", "picture", "outline", "swap")):
        case "refs":
            files[REFS[name]] = _mutated_refs(good[REFS[name]], rng)
        case "instances":
            files[instances] = mutated_json(json.loads(good[instances]), rng)
        case "outline":
            files[instances] = _mutated_outlines(good[instances], rng)
        case "picture":
            picture = rng.choice([f for f in good if f.startswith("images/")])
            files[picture] = mutate(good[picture], rng)
        case "swap":
            one, two = rng.sample(sorted(good), 2)
            files[one], files[two] = good[two], good[one]
    return Input(files)


def _mutated_refs(data: bytes, rng: random.Random) -> bytes:
    if not data.startswith(b"\x80"):
        return mutated_json(json.loads(data), rng)
    if rng.random() < 0.5:
        return mutated_pickle(data, rng)
    return pickle.dumps(mutated_tree(pickle.loads(data), rng), rng.choice((2, 4)))


def _mutated_outlines(data: bytes, rng: random.Random) -> bytes:
    """instances.json with outlines as only some programs write them, or none at all."""
    tree = json.loads(data)
    far = rng.choice((1e3, 1e5, 1e9, 1e18, 1e300, float("inf"), float("nan"), -1e6))
    choices: tuple[Any, ...] = (
        [],
        None,
        [[]],
        [[1, 2]],
        [[1, 2, 3, 4]],
        [[1, 2, 3, 4, 5]],
        [[5, 5, 9, 5, 20, 5]],
        [[5, 5, far, 5, 20, 30]],
        [[far, far, 10, 10, 30, 10, 30, 30]],
        [5, 5, 20, 5, 20, 20],
        [[["5", "5"], [20, 5], [20, 20]]],
        [["5", "5", "20", "5", "20", "20"]],
        [[5, 5, 20, 5, 20, 20], None],
        {"size": [72, 96], "counts": [10, 20, far]},
        {"size": [72, 96], "counts": [10, -20, 72 * 96 + 10]},
        {"size": [72, 96], "counts": "0" * 50},
        {"size": [72, 96], "counts": "\x00~~~~~~~~"},
        {"size": [2**31, 2**31], "counts": [2**62]},
        {"size": [72, 96]},
        [{"size": [72, 96], "counts": [0, 72 * 96]}],
        "polygon",
        [DEEP % 2000],
    )
    for annotation in tree["annotations"]:
        if rng.random() < 0.5:
            annotation["segmentation"] = rng.choice(choices)
        if rng.random() < 0.1:
            annotation["iscrowd"] = 1
    return write(tree)


_TAKES_SKIPPED = "skipped" in inspect.signature(read).parameters


def _door(name: str, folder: Path, expected: Any) -> list[str]:
    skipped: list[str] = []
    more: dict[str, Any] = {"skipped": skipped.append} if _TAKES_SKIPPED else {}
    data = read(folder, name, "val", **more)
    found = annotated(refer_images(data, skipped=skipped.append))
    require(expected is None or found == expected, f"{found}")
    return skipped


def _training_door(name: str, folder: Path, expected: Any) -> list[str]:
    skipped: list[str] = []
    found = _samples(folder, name, skipped)
    if expected is None:
        return skipped
    # even whole files have sentences of which some are left out: run lengths
    require((found, skipped) == expected, f"{found}, {skipped}")
    return []


KINDS = {
    kind: Kind(functools.partial(_make, name, False), functools.partial(_door, name))
    for kind, name in SETS.items()
} | {
    kind: Kind(functools.partial(_make, name, True), functools.partial(_training_door, name))
    for kind, name in TRAINED.items()
}
