"""What memory and time one training step of the paper's model takes, and how many operations.

    python tests/training_step_bench.py --batch 1 2 4
    python tests/training_step_bench.py --operations --batch 1 2

Made-up weights, a made-up gRefCOCO of 640x480 pictures, one group a step. Each way (samples in the
group, gradient checkpointing, kept features) is a process of its own, so that its peak is its own.
The optimiser has its moments before the first step; of `--rounds` steps the last is timed, as
`training/dry_run.py` does. Peaks of several sizes make a fixed part and one a sample, by least
squares. `--operations` has torch count those of the
matrix products and convolutions of a step, the frozen encoders by themselves.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ris.data.scenes.as_refer import write_as_refer
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import tokenizer_from
from ris.training import devices
from ris.training.dry_run import measure_step, peak_memory
from ris.training.forward import encode
from ris.training.initialise import fresh_model
from ris.training.loop import Trainer
from ris.training.options import HardwareOptions, RunOptions
from ris.training.reading import read_for_training
from ris.training.recipe import RECIPES
from ris.training.refer_group import file_hash
from ris.training.refer_source import ReferSource, ReferSubset
from ris.training.samples import Sources, StoredImage

CHOICES = {"no": (False,), "yes": (True,), "both": (False, True)}
"""What a choice between with and without means."""

PICTURES = 60
"""Of the made-up data set: so many that a group has few images twice."""


@dataclass(frozen=True)
class Way:
    """What is measured in a process of its own."""

    batch: int
    """Samples in the step's one group."""

    fewer_activations: bool
    """Whether with gradient checkpointing."""

    kept: bool
    """Whether the encoders' outputs are read, not computed."""

    variant: str
    """What the sparse branch asks with, "cls" or "category"."""

    recipe: str
    """A key of `RECIPES`."""

    preset: str
    """A key of `PRESETS`."""

    precision: str
    """What it computes in, "mixed" or "fp32"."""

    device: str
    """As `ris-train --device` takes it."""

    rounds: int
    """Steps, of which the last is timed."""


def trainer_of(way: Way, root: Path) -> Trainer:
    """The run whose first step is measured."""
    config = PRESETS[way.preset]
    if way.variant == "category":
        config = config.with_category_query()
    recipe = replace(
        RECIPES[way.recipe],
        samples=way.batch,
        group=way.batch,
        mixed_precision=way.precision == "mixed",
    )
    data = read_for_training("grefcoco", "train", root=root)
    side = config.sam.image_size
    subset = ReferSubset(data, side, 1)
    with tempfile.TemporaryDirectory(dir=root) as folder:
        features = Path(folder) / "features" if way.kept else None
        trainer = Trainer(
            root / "run",
            recipe,
            lambda: fresh_model(config, 0),
            Sources(ReferSource([(data, 1.0)], side, way.batch, way.batch), subset, 1),
            tokenizer_from(None, PRESETS["tiny"]),
            HardwareOptions(way.device, workers=0, fewer_activations=way.fewer_activations),
            RunOptions(features=features, trackers=()),
        )
        if trainer.features is not None:
            keep_noise(trainer, [(file_hash(one), one.height, one.width) for one in data.images])
        return ready(trainer)


def keep_noise(trainer: Trainer, images: list[tuple[str, int, int]]) -> None:
    """Features of the right sizes for all images, by their hash, height and width."""
    config, store = trainer.model.config, trainer.features
    assert store is not None
    rng = np.random.default_rng(0)
    grid = config.sam.grid
    shapes = (config.prompt_width, grid, grid), (config.clip.grid**2, config.clip.width)
    sam, clip = (rng.standard_normal(shape).astype(np.float16) for shape in shapes)
    for key, height, width in images:
        store.write(key, StoredImage(sam, clip, (height, width, 1)))


def ready(trainer: Trainer) -> Trainer:
    """The trainer with the groups of its first step made."""
    groups = next(trainer.batches(1))
    trainer.batches = lambda last: iter([groups])  # type: ignore[method-assign]
    return trainer


def make_moments(trainer: Trainer) -> None:
    """Gives the optimisers the moments that they have from their first step on."""
    for optimiser in trainer.learner.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = 0.0
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        optimiser.zero_grad()


def measured(way: Way, root: Path) -> dict[str, float]:
    """Peak and seconds of a step, as JSON."""
    trainer = trainer_of(way, root)
    device = trainer.accelerator.device
    make_moments(trainer)
    before = peak_memory(device)
    seconds = measure_step(trainer, 0, way.rounds)
    return {"before": before, "peak": peak_memory(device), "seconds": seconds}


def counted(way: Way, root: Path) -> dict[str, float]:
    """Operations of a step with kept features, and of both encoders on an image."""
    trainer = trainer_of(way, root)
    groups = next(trainer.batches(1))
    trainer.model.train()
    # torch counts no fused attention of the CPU's
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as of_step:
            trainer.train_step(groups)
        config = trainer.model.config
        sam, clip = (
            torch.zeros(1, 3, n, n) for n in (config.sam.image_size, config.clip.image_size)
        )
        with FlopCounterMode(display=False) as of_encoders:
            encode(trainer.model, sam, clip, trained=False)
    return {"step": of_step.get_total_flops(), "encoders": of_encoders.get_total_flops()}


def in_a_process(way: Way, root: Path, what: str) -> dict[str, float]:
    """What `measured` or `counted` says, found in a process of its own."""
    arguments = [sys.executable, __file__, "--one", json.dumps(vars(way)), "--what", what]
    done = subprocess.run(
        [*arguments, "--root", str(root)], stdout=subprocess.PIPE, check=True, env=os.environ
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def fitted(sizes: list[int], values: list[float]) -> tuple[float, float]:
    """The fixed part and that of a sample, by least squares; of one size alone no fixed part."""
    if len(sizes) == 1:
        return 0.0, values[0] / sizes[0]
    each, fixed = np.polyfit(sizes, values, 1)
    return float(fixed), float(each)


Choices = tuple[tuple[bool, ...], tuple[bool, ...]]
"""Whether with kept features, and whether with gradient checkpointing; both where several."""


def show_memory(base: Way, sizes: list[int], choices: Choices, root: Path) -> None:
    """Prints a line for each way, and the parts of the peaks of those that differ in size alone."""
    for kept, fewer in product(*choices):
        name = f"{'kept features' if kept else 'encoders run'}, {'' if fewer else 'no '}checkpoints"
        peaks, seconds = [], []
        for batch in sizes:
            way = replace(base, batch=batch, kept=kept, fewer_activations=fewer)
            found = in_a_process(way, root, "measured")
            peaks.append(found["peak"] / 1e9)
            seconds.append(found["seconds"])
            before = found["before"] / 1e9
            print(
                f"{name:32} {batch:3} samples: peak {peaks[-1]:6.2f} GB ({before:.2f} before the"
                f" first step), {seconds[-1]:7.2f} s",
                flush=True,
            )
        fixed, each = fitted(sizes, peaks)
        of_time, of_each = fitted(sizes, seconds)
        print(
            f"{name:32} {fixed:.2f} GB + {each:.3f} GB, {of_time:.2f} s + {of_each:.2f} s a sample"
        )


def show_operations(base: Way, sizes: list[int], root: Path) -> None:
    """Prints the operations of a step by its samples, and those of the encoders."""
    steps, encoders = [], 0.0
    for batch in sizes:
        found = in_a_process(replace(base, batch=batch, kept=True), root, "counted")
        steps.append(found["step"] / 1e12)
        encoders = found["encoders"] / 1e12
        print(f"{batch:3} samples: {steps[-1]:.3f} TFLOP a step with kept features", flush=True)
    fixed, each = fitted(sizes, steps)
    print(f"{fixed:.3f} TFLOP + {each:.3f} TFLOP a sample; {encoders:.3f} TFLOP an image to encode")


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--preset", choices=sorted(PRESETS), default="vitb-vitl336")
    parser.add_argument("--recipe", choices=("supplement", "released"), default="released")
    parser.add_argument("--variant", choices=("cls", "category"), default="cls")
    parser.add_argument("--precision", choices=("mixed", "fp32"), default="mixed")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--features", choices=CHOICES, default="both", help="kept ones")
    parser.add_argument("--checkpointing", choices=CHOICES, default="both")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--operations", action="store_true", help="count in place of measuring")
    parser.add_argument("--root", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--what", choices=("measured", "counted"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one: Callable[[Way, Path], dict[str, Any]] = {"measured": measured, "counted": counted}[
            args.what
        ]
        print(json.dumps(one(Way(**json.loads(args.one)), args.root)))
        return
    shared = {
        field.name: vars(args)[field.name] for field in fields(Way) if field.name in vars(args)
    }
    base = Way(**(shared | {"batch": 1, "fewer_activations": False, "kept": False}))
    with tempfile.TemporaryDirectory() as folder:
        write_as_refer(Path(folder), "grefcoco", {"train": PICTURES})
        if args.operations:
            show_operations(base, args.batch, Path(folder))
            return
        precision = devices.precision_of(args.device) if args.precision == "mixed" else "no"
        print(f"{vars(base)}, autocast: {precision}, {torch.get_num_threads()} threads")
        choices = CHOICES[args.features], CHOICES[args.checkpointing]
        show_memory(base, args.batch, choices, Path(folder))


if __name__ == "__main__":
    main()
