"""Short training runs of the tiny model, in this process or in processes of their own.

    python training_runs.py RUN FOLDER

starts one by name; the tests start several at once, or kill one.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from refer_files import write_refer
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import tokenizer_from
from ris.training import command, devices
from ris.training.initialise import fresh_model
from ris.training.loop import Trainer
from ris.training.options import HardwareOptions, RunOptions
from ris.training.reading import read_for_training
from ris.training.recipe import RECIPES, Recipe
from ris.training.refer_source import ReferSource, ReferSubset
from ris.training.samples import RawBatch, Sources
from ris.training.scene_source import SceneSource

TINY = PRESETS["tiny"]

DEMO = replace(
    RECIPES["demo"], images=2, expressions=3, steps=4, warmup=2, mixed_precision=False, lessons=0
)
"""The demo's recipe, four steps long."""

SUPPLEMENT = replace(
    RECIPES["supplement"],
    samples=4,
    group=2,
    parts=2,
    steps=4,
    mixed_precision=False,
    learning_rate=1e-3,
)
"""The supplement's recipe, four steps of two groups long."""

QUIET = RunOptions(trackers=())


class FewScenes(SceneSource):
    """Two batches in turn, each drawn once."""

    def __init__(self, images: int, expressions: int) -> None:
        super().__init__("train", TINY.sam.image_size, images, expressions)
        self._drawn: dict[int, RawBatch] = {}

    def batch(self, step, number=0, stored=None):
        if step % 2 not in self._drawn:
            self._drawn[step % 2] = super().batch(step % 2)
        return self._drawn[step % 2]


def scenes_run(folder: Path, recipe: Recipe = DEMO, source=None, **options) -> Trainer:
    """A run on drawn scenes; the options are `RunOptions`'."""
    source = source or FewScenes(recipe.images, recipe.expressions)
    return Trainer(
        folder,
        recipe,
        lambda: fresh_model(TINY, 0, recipe.objective),
        Sources(source, source, validation_steps=1),
        tokenizer_from(None, TINY),
        HardwareOptions(workers=0),
        replace(QUIET, **options),
    )


def refer_run(folder: Path, recipe: Recipe = SUPPLEMENT) -> Trainer:
    """A run on gRefCOCO's files with stored features; files and features lie beside the folder."""
    root = folder.parent / "data"
    if not root.exists():
        root.mkdir()
        write_refer(root, "grefcoco")
    train, val = (
        # the loader leaves run lengths out
        read_for_training("grefcoco", split, root=root, skipped=lambda sentence: None)
        for split in ("train", "val")
    )
    side = TINY.sam.image_size
    subset = ReferSubset(val, side)
    return Trainer(
        folder,
        recipe,
        lambda: fresh_model(TINY, 0),
        Sources(
            ReferSource([(train, 1.0)], side, recipe.samples, recipe.group), subset, subset.steps
        ),
        tokenizer_from(None, TINY),
        HardwareOptions(workers=0),
        replace(QUIET, features=folder.parent / "features"),
    )


def shared(folder: Path) -> None:
    """Twenty steps of two groups, which any number of processes share."""
    recipe = replace(SUPPLEMENT, steps=20)
    scenes_run(folder, recipe, FewScenes(2, 2)).run(log_every=1, validate_every=1000)


def commanded(folder: Path) -> None:
    """`ris-train` on a data set, in FP32, which any number of processes share.

    In bfloat16, rounding would hide what the processes do differently.
    """
    devices.precision_of = lambda device: "no"
    data = f"--data grefcoco --root {folder.parent / 'data'} --protocol released"
    size = "--preset tiny --random-encoders --batch 4 --group 2 --validation-samples 12"
    run = "--steps 4 --log-every 1 --validate-every 2 --workers 0 --threads 1 --log csv"
    command.main([*f"{data} {size} {run}".split(), "--out", str(folder)])


def killed(folder: Path) -> None:
    """A run with stored features that kills itself with SIGKILL in its third step."""
    run = refer_run(folder)
    step = run.train_step

    def dies(groups):
        if run.step == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(groups)

    run.train_step = dies
    run.resume()
    run.run(log_every=1, save_every=1, validate_every=2)


RUNS: dict[str, Callable[[Path], None]] = {
    "shared": shared,
    "commanded": commanded,
    "killed": killed,
}

if __name__ == "__main__":
    torch.set_num_threads(1)
    RUNS[sys.argv[1]](Path(sys.argv[2]))
