"""How long scoring takes, beside decoding the same masks and counting I and U with numpy.

    python tests/score_bench.py --expressions 50000

A made-up RefCOCO of 640x480 images, with polygons as COCO has them. The baseline decodes each
answer and truth by pycocotools and counts the pixels, in one process, at the answers' size: the
image's own, and for the evaluator that compares at 1024x1024 that one. Each evaluator runs after
its baseline; the table has seconds, ratios and memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from pycocotools import mask as coco

from ris.data.datasets.refer_files import ReferFiles
from ris.evaluation.predictions import Predictions
from ris.evaluation.scoring import protocols_of, rules_of, score

Size = tuple[int, int]
"""(height, width), pixels."""

HEIGHT, WIDTH = 480, 640
SENTENCES = 3  # of a reference, about as RefCOCO has them


def outline(generator: np.random.Generator) -> list[float]:
    """A wobbly polygon of 12 to 60 points."""
    points = int(generator.integers(12, 60))
    angles = np.sort(generator.uniform(0, 2 * np.pi, points))
    radii = generator.uniform(40, 160) * generator.uniform(0.8, 1.2, points)
    x = np.clip(generator.uniform(100, WIDTH - 100) + radii * np.cos(angles), 0, WIDTH)
    y = np.clip(generator.uniform(100, HEIGHT - 100) + radii * np.sin(angles), 0, HEIGHT)
    return np.round(np.stack([x, y], 1).reshape(-1), 2).tolist()


def scaled(polygon: np.ndarray, size: Size) -> list[float]:
    """A polygon of the image's pixels in a mask of this (height, width)."""
    points = np.asarray(polygon).reshape(-1, 2) * (size[1] / WIDTH, size[0] / HEIGHT)
    return points.reshape(-1).tolist()


def made_up(expressions: int, size: Size, folder: Path) -> tuple[ReferFiles, Path]:
    """A data set and a file of answers to it, which have this (height, width)."""
    generator = np.random.default_rng(0)
    references, annotations, images = [], {}, {}
    path = folder / "predictions.jsonl"
    with path.open("w") as file:
        for number in range(-(-expressions // SENTENCES)):
            polygon = outline(generator)
            images[number] = {"id": number, "height": HEIGHT, "width": WIDTH}
            annotations[number] = {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "iscrowd": 0,
                "bbox": [0.0, 0.0, 1.0, 1.0],
                "segmentation": [polygon],
            }
            ids = [number * SENTENCES + i for i in range(SENTENCES)][:expressions]
            sentences = [{"sent_id": i, "raw": f"thing {i}", "sent": f"thing {i}"} for i in ids]
            references.append(
                {
                    "ref_id": number,
                    "ann_id": number,
                    "image_id": number,
                    "category_id": 1,
                    "split": "val",
                    "sentences": sentences,
                    "sent_ids": ids,
                }
            )
            for i in ids:
                moved = np.asarray(polygon) + generator.uniform(-12, 12)
                [code] = coco.frPyObjects([scaled(moved, size)], *size)
                mask = {"size": code["size"], "counts": code["counts"].decode()}
                row = {"ref_id": number, "sent_id": i, "mask": mask, "nt_logits": [2.0, -1.0]}
                file.write(json.dumps(row) + "\n")
    files = ReferFiles("refcoco", "unc", tuple(references), images, annotations, {1: "person"})
    return files, path


def baseline(files: ReferFiles, path: Path, size: Size) -> float:
    """Decoding and counting alone, at this (height, width); returns the seconds."""
    rows = [json.loads(line) for line in path.open()]
    truths = {
        number: coco.frPyObjects([scaled(annotation["segmentation"][0], size)], *size)[0]
        for number, annotation in files.annotations.items()
    }
    begin = time.perf_counter()
    intersection = union = 0
    for row in rows:
        mask = coco.decode(row["mask"]).astype(np.bool_)
        truth = coco.decode(truths[row["ref_id"]]).astype(np.bool_)
        intersection += int(np.logical_and(mask, truth).sum())
        union += int(np.logical_or(mask, truth).sum())
    assert 0 < intersection < union
    return time.perf_counter() - begin


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--expressions", type=int, default=50_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for size in ((HEIGHT, WIDTH), (1024, 1024)):
            files, path = made_up(args.expressions, size, Path(folder))
            alone = baseline(files, path, size)
            print(
                f"baseline at {size[1]}x{size[0]}: {alone:.1f} s for {args.expressions}"
                " expressions, one process",
                flush=True,
            )
            for name in protocols_of("refcoco"):
                if (rules_of(name, "refcoco").truth.side == 1024) == (size[0] == 1024):
                    measure(files, path, name, alone)


def measure(files: ReferFiles, path: Path, name: str, alone: float) -> None:
    """Scores by one evaluator and prints its row; `alone` is the baseline's seconds."""
    before = psutil.Process().memory_info().rss
    begin = time.perf_counter()
    scored = score(files, "val", name, Predictions(path))
    seconds = time.perf_counter() - begin
    grown = (psutil.Process().memory_info().rss - before) / 1e6
    worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
    print(
        f"{name:9} {seconds:6.1f} s, {seconds / alone:.2f} of the baseline;"
        f" {len(scored.figures.truth)} answers, {grown:+.0f} MB here, a worker at most"
        f" {worker:.0f} MB",
        flush=True,
    )


if __name__ == "__main__":
    main()
