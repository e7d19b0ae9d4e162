"""Whether the published weights of the losses teach a model where a phrase points.

    python examples/prove_learning.py --out build/learning

`ris-train` trains the category variant on a made-up RefCOCO and the [CLS] variant on a made-up
gRefCOCO. As with published weights, the encoders know what things are (they are the built-in
demo's) and everything else has the recipe's starting values. Each run is made with the recipe
`supplement` as it is, and with its sentence term 25 times as heavy and DFAM's mask terms a quarter:
what becomes of the weights where DFAM's four outputs are averaged and the sentence term is summed
over 100 queries. Data, order, starting values and matching are the same.

Writes `table.md` and `curves.png`. A run that was stopped goes on, one that is done is kept.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from matplotlib import pyplot
from safetensors.torch import load_file
from torch import Tensor

from ris.data.scenes import make_scene
from ris.data.scenes.as_refer import write_as_refer
from ris.data.scenes.words import COCO
from ris.export.sources import DEMO_WEIGHTS
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.keys import BERT
from ris.reference.dfam.model import RISModel
from ris.reference.dfam.preprocess import prepare_squares
from ris.training import command
from ris.training.initialise import fresh_model
from ris.training.matching import match
from ris.training.recipe import RECIPES
from ris.training.run_folder import LOG, WEIGHTS, write_weights

DATA = {"category": "refcoco", "cls": "grefcoco"}
"""Variant -> the data set in whose files its scenes are."""

RECIPE = "supplement"
"""Without a class term: the demo's CLIP has no text tower."""

KNOWN = ("sam.image_encoder.", "sam.prompt_encoder.", "clip_dense.", BERT)
"""What begins trained."""

TABLE_SCENES, TABLE_FIRST = 200, 9 * 10**6
"""The scenes that the category table is made from; they are in no data set."""

FIGURES = {"category": ("mIoU", "oIoU", "Pr@0.5"), "cls": ("gIoU", "cIoU", "T_acc", "N_acc")}
"""What the evaluator of the data set's papers prints; the first is drawn."""


@dataclass(frozen=True)
class Run:
    """One training run."""

    variant: str
    """A key of `DATA`."""

    sentence: float | None
    """The weight of the sentence term in the other balance; None: the published weights."""

    rate: float
    """The learning rate."""

    seed: int
    """Of starting values and order."""

    @property
    def balance(self) -> str:
        """The weights in words."""
        return "published" if self.sentence is None else f"sentence × {self.sentence:g}, masks / 4"

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.variant}-{self.sentence or 'published'}-{self.rate:g}-{self.seed}"


def begin(path: Path, variant: str, seed: int) -> None:
    """Writes the checkpoint that a run begins with: trained encoders and nothing else trained."""
    config = PRESETS["demo"]
    model = fresh_model(config.with_category_query() if variant == "category" else config, seed)
    trained = {k: v.float() for k, v in load_file(DEMO_WEIGHTS).items() if k.startswith(KNOWN)}
    model.load_state_dict(trained, strict=False)
    if variant == "category":
        model.text_embeddings.copy_(category_table(model))
    write_weights(path, model.state_dict(), model, {})


@torch.no_grad()
def category_table(model: RISModel) -> Tensor:
    """A category table [134, 64] in place of a text tower's: where CLIP's patches of things point.

    A row is the mean of a category's patches less that of all categories, through CLIP's own
    projection, at length 1. Categories that no scene shows stay zero.
    """
    config, found = model.config, defaultdict(list)
    for number in range(TABLE_SCENES):
        scene = make_scene(TABLE_FIRST + number, "train", config.sam.image_size)
        tokens = model.encode_clip(prepare_squares(scene.image[None], config)[1])[0]
        for thing in scene.objects:
            mask = torch.tensor(thing.mask)[None].float()
            covered = F.adaptive_avg_pool2d(mask, config.clip.grid).flatten() > 0.5
            if thing.kind in COCO:
                found[COCO[thing.kind]].append(tokens[covered])
    means = {name: torch.cat(patches).mean(0) for name, patches in found.items()}
    middle = torch.stack(list(means.values())).mean(0)
    visual: Any = model.clip_dense.clip_model.visual
    table = torch.zeros_like(model.text_embeddings)
    for name, mean in means.items():
        table[COCO_PANOPTIC.index(name)] = F.normalize((mean - middle) @ visual.proj, dim=0)
    return table


def other_balance(sentence: float) -> ExitStack:
    """For the block `ris-train`'s recipe has the other balance, and matches as before."""
    recipe, stack = RECIPES[RECIPE], ExitStack()
    own = recipe.weights
    dice, bce, vl = own.dfam_dice / 4, own.dfam_bce / 4, own.vl * sentence
    other = replace(recipe, weights=replace(own, dfam_dice=dice, dfam_bce=bce, vl=vl))

    def matched(*given: Any) -> Any:
        return match(given[0], given[1], own, given[3])  # in place of the other weights

    stack.enter_context(mock.patch.dict(RECIPES, {RECIPE: other}))
    stack.enter_context(mock.patch("ris.training.losses.match", matched))
    return stack


def train(run: Run, data: Path, options: argparse.Namespace) -> None:
    """One run of `ris-train`; what it prints goes into a file beside its folder."""
    folder, start = options.out / run.name, options.out / f"{run.variant}-{run.seed}.safetensors"
    if (folder / WEIGHTS).exists():
        return  # done
    asked = {
        **{"--checkpoint": start, "--data": DATA[run.variant], "--root": data, "--out": folder},
        **{"--recipe": RECIPE, "--steps": options.steps, "--learning-rate": run.rate},
        **{"--batch": options.batch, "--group": options.batch, "--seed": run.seed},
        **{"--validate-every": options.validate_every, "--validation-samples": 10**6},
        **{"--features": options.out / "features", "--save-every": options.validate_every},
        **{"--log": "csv", "--log-every": 25, "--workers": 0, "--threads": 1},
    }
    arguments = [str(word) for pair in asked.items() for word in pair]
    with ExitStack() as stack:
        said = stack.enter_context((options.out / f"{run.name}.txt").open("a"))
        stack.enter_context(redirect_stdout(said))
        stack.enter_context(redirect_stderr(said))
        if run.sentence is not None:
            stack.enter_context(other_balance(run.sentence))
        if code := command.main(arguments, standalone_mode=False):
            raise RuntimeError(f"{said.name}: ris-train left with exit code {code}")


def lines_of(run: Run, out: Path) -> list[dict[str, Any]]:
    """The log of a run."""
    return [json.loads(line) for line in (out / run.name / LOG).read_text().splitlines()]


def validated(run: Run, out: Path) -> list[tuple[int, dict[str, float]]]:
    """(step, figures) of each validation of a run."""
    lines = lines_of(run, out)
    return [(line["step"], line["validation"]["all"]) for line in lines if line["validation"]]


def rows(runs: list[Run], out: Path) -> Iterator[str]:
    """The table, in Markdown; the loss is the main mask's, which is weighted alike in all."""
    yield "| variant | weights | rate, seed | step: figure | at the end | loss |"
    yield "|---|---|---|---|---|---|"
    for run in runs:
        found = validated(run, out)
        first, *others = FIGURES[run.variant]
        places = sorted({0, len(found) // 4, len(found) // 2, len(found) - 1})
        rise = ", ".join(f"{found[i][0]}: {found[i][1][first]:.1f}" for i in places)
        ends = ", ".join(f"{name} {found[-1][1][name]:.2f}" for name in others)
        losses = [line["losses"] for line in lines_of(run, out)]
        began, ended = (losses[i]["mask_bce"] + losses[i]["mask_dice"] for i in (0, -1))
        about = f"{run.variant} | {run.balance} | {run.rate:g}, {run.seed}"
        yield f"| {about} | {first} {rise} | {ends} | {began:.2f} to {ended:.2f} |"


def draw(runs: list[Run], out: Path) -> None:
    """Draws the validation of all runs."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 3.6))
    balances = list(dict.fromkeys(run.balance for run in runs))
    for axes, (variant, name) in zip(panels, DATA.items(), strict=True):
        for run in (one for one in runs if one.variant == variant):
            found = validated(run, out)
            values = [figures[FIGURES[variant][0]] for _, figures in found]
            colour, label = f"C{balances.index(run.balance)}", f"{run.balance} ({run.rate:g})"
            axes.plot([step for step, _ in found], values, color=colour, label=label)
        words = {"xlabel": "step", "ylabel": FIGURES[variant][0], "title": f"{variant}, {name}"}
        axes.set(**words, ylim=(0, None))
        axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(out / "curves.png", dpi=90)


def main() -> None:
    """Writes the data and the checkpoints, trains, and reports."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--out", type=Path, required=True, help="folder of everything")
    add("--train", type=int, default=300, help="pictures to train on, in either form")
    add("--val", type=int, default=25, help="pictures to validate on")
    add("--steps", type=int, default=600)
    add("--batch", type=int, default=8, help="samples a step, one group")
    add("--rates", type=float, nargs="+", default=[5e-4], help="learning rates")
    add("--sentence", type=float, nargs="+", default=[25.0], help="weights of the sentence term")
    add("--seeds", type=int, nargs="+", default=[0])
    add("--validate-every", type=int, default=100, help="steps")
    add("--at-once", type=int, default=2, help="runs at the same time, each on one thread")
    options = parser.parse_args()

    weights = [None, *options.sentence]
    chosen = product(options.seeds, options.rates, weights, DATA)
    runs = [Run(variant, sentence, rate, seed) for seed, rate, sentence, variant in chosen]
    data = options.out / f"data-{options.train}-{options.val}"
    for name in DATA.values():
        if not (data / name / "instances.json").exists():
            write_as_refer(data, name, {"train": options.train, "val": options.val})
    for variant, seed in product(DATA, options.seeds):
        if not (start := options.out / f"{variant}-{seed}.safetensors").exists():
            begin(start, variant, seed)

    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.at_once, fresh, max_tasks_per_child=1) as pool:
        for done in [pool.submit(train, run, data, options) for run in runs]:
            done.result()
    table = "\n".join(rows(runs, options.out))
    (options.out / "table.md").write_text(f"{table}\n")
    draw(runs, options.out)
    print(table)


if __name__ == "__main__":
    main()
