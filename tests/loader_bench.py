"""How many samples a second training's loader gives at the paper's size.

    python tests/loader_bench.py --workers 0 1 2

A made-up gRefCOCO of 640x480 pictures (`data/scenes/as_refer.py`), groups of 16 samples: with
pictures that are decoded, with kept features that are read, and with pictures through pipes in
place of shared memory. The ways take turns, and the best round of each counts. Beside samples a
second stand the processor's seconds of a sample, of all processes, which a busy machine changes
less.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from ris.data.datasets import ReferImage
from ris.data.scenes.as_refer import write_as_refer
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import tokenizer_from
from ris.training.data import batches
from ris.training.features import FeatureStore
from ris.training.loading import Loading
from ris.training.reading import read_for_training
from ris.training.refer_group import file_hash
from ris.training.refer_source import ReferSource
from ris.training.samples import StoredImage

CONFIG = PRESETS["vitb-vitl336"]
TOKENIZER = tokenizer_from(None, PRESETS["tiny"])


class Store(FeatureStore):
    """A folder of features of the right sizes, without the encoders that would make them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        grid, side = CONFIG.sam.grid, CONFIG.clip.grid
        self._shapes = ((CONFIG.prompt_width, grid, grid), (side**2, CONFIG.clip.width))
        folder.mkdir()

    def fill(self, images: tuple[ReferImage, ...]) -> None:
        """Entries of noise for every picture."""
        rng = np.random.default_rng(0)
        sam, clip = (rng.standard_normal(shape).astype(np.float16) for shape in self._shapes)
        for image in images:
            frame = (image.height, image.width, 1)
            self.write(file_hash(image), StoredImage(sam, clip, frame))


def processor() -> float:
    """Seconds of the processor that this process and its ended children have used."""
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(use.ru_utime + use.ru_stime for use in uses)


def rate(source: ReferSource, loading: Loading, steps: int) -> tuple[float, float]:
    """Samples a second, from the second step on, and the processor's seconds of a sample."""
    used = processor()
    found = batches(source, CONFIG, TOKENIZER, 0, steps + 1, loading)
    first = sum(len(batch.about.places) for batch in next(found))
    begin = time.perf_counter()
    samples = sum(len(batch.about.places) for step in found for batch in step)
    seconds = time.perf_counter() - begin
    found.close()
    return samples / seconds, (processor() - used) / (first + samples)


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--steps", type=int, default=4, help="of 64 samples")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_as_refer(root, "grefcoco", {"train": args.images})
        data = read_for_training("grefcoco", "train", root=root)
        source = ReferSource([(data, 1.0)], CONFIG.sam.image_size, 64, 16)
        store = Store(root / "features")
        store.fill(data.images)
        ways = {}
        for workers in args.workers:
            ways[f"{workers} workers, pictures"] = Loading(workers)
            ways[f"{workers} workers, kept features"] = Loading(workers, features=store)
            if workers:
                ways[f"{workers} workers, pictures through pipes"] = Loading(workers, pipes=True)
        best: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
        for _ in range(args.rounds):
            for name, loading in ways.items():
                best[name].append(rate(source, loading, args.steps))
        for name, found in best.items():
            fastest, cheapest = max(one for one, _ in found), min(one for _, one in found)
            print(f"{name:34} {fastest:6.1f} samples/s, {cheapest:.3f} s of the processor each")


if __name__ == "__main__":
    main()
