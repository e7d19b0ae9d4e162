"""Both variants through the whole path, from files to weights: what reaches the model, resuming.

A published set's own files, a checkpoint to begin from, and the runs that `ris-train` prepares.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from ris.data.scenes.as_refer import write_as_refer
from ris.engines.errors import CheckpointError
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.training.command import main
from ris.training.forward import ask, encode
from ris.training.initialise import fresh_model
from ris.training.options import DataOptions, HardwareOptions, ModelOptions
from ris.training.prepare import Request, prepare_run
from ris.training.recipe import FROZEN
from ris.training.run_folder import LOG, WEIGHTS, write_weights
from training_runs import QUIET, SUPPLEMENT, TINY

DATA = {"category": "refcoco", "cls": "grefcoco"}
VARIANTS = pytest.mark.parametrize("variant", sorted(DATA))
TABLE = "text_embeddings"
OWN = {"category": "clip_mlpl.weight", "cls": "decoder.nt_embed.layers.0.weight"}
"""What only one variant trains."""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """RefCOCO and gRefCOCO of a few drawn scenes."""
    folder = tmp_path_factory.mktemp("data")
    for name in DATA.values():
        write_as_refer(folder, name, {"train": 6, "val": 2}, side=96)
    return folder


def table(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(TINY.categories, TINY.clip.embed_dim, generator=generator)


def checkpoint(path, variant, rows):
    """A whole checkpoint of the variant with these rows in its category table."""
    model = fresh_model(TINY.with_category_query() if variant == "category" else TINY, 0)
    write_weights(path, model.state_dict() | {TABLE: rows}, model, {})
    return path


def prepared(out, root, variant, rows=None, steps=2):
    """The run that begins with these rows."""
    rows = table() if rows is None else rows
    start = checkpoint(out.parent / f"{out.name}.safetensors", variant, rows)
    recipe = replace(SUPPLEMENT, steps=steps).for_data(DATA[variant])
    request = Request(
        recipe=recipe,
        data=DataOptions(((DATA[variant], 1.0),), root, validation_samples=6),
        model=ModelOptions(variant=variant, files={"checkpoint": start}),
        hardware=HardwareOptions(threads=1, workers=0),
        options=QUIET,
    )
    return prepare_run(out, request)


def losses(folder):
    lines = (folder / LOG).read_text().splitlines()
    return [json.loads(line)["losses"] for line in lines]


def first_batch(run):
    return next(run.batches(1))[0]


def asked_rows(run, steps):
    """The table's rows that the first steps ask with."""
    return {int(row) for groups in run.batches(steps) for one in groups for row in one.category}


@VARIANTS
def test_what_a_variant_has_of_its_own_learns(tmp_path, root, variant):
    run = prepared(tmp_path / "run", root, variant)
    run.run(log_every=1)
    begun = load_file(tmp_path / "run.safetensors")
    ended = load_file(tmp_path / "run" / WEIGHTS)
    assert torch.equal(ended[TABLE], table())
    assert all(torch.equal(ended[k], v) for k, v in begun.items() if k.startswith(FROZEN))
    adam = run.learner.optimisers[0].state
    # by its gradient: weight decay moves weights that have none, too
    learnt = {n for n, p in run.learner.trained.items() if p in adam and adam[p]["exp_avg"].any()}
    assert [name for name in OWN.values() if name in learnt] == [OWN[variant]]
    assert not torch.equal(ended[OWN[variant]], begun[OWN[variant]])
    assert ("no_target" in losses(tmp_path / "run")[0]) == (variant == "cls")


def test_a_sentence_is_asked_with_the_category_of_its_reference(tmp_path, root):
    run = prepared(tmp_path / "run", root, "category")
    batch = first_batch(run)
    entries = [run.sources.training.entry(place) for place in batch.about.places]
    names = [COCO_PANOPTIC[row] for row in batch.category]
    assert names == [entry.reference.category for entry in entries]
    assert "background" not in names

    def answered(category):
        model = run.model.eval()
        with torch.no_grad():
            encoded = encode(model, batch.image, batch.clip_image, trained=False)
            index = batch.targets.image_index
            return ask(model, *encoded, batch.input_ids, index, category).mask_logits

    own, others = answered(batch.category), answered(batch.category + 1)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(own, others, strict=True))


@pytest.mark.parametrize(
    ("variant", "changed", "matters"),
    [("category", "asked", True), ("category", "others", False), ("cls", "all", False)],
)
def test_the_rows_that_are_asked_with_are_those_that_matter(
    tmp_path, root, variant, changed, matters
):
    run = prepared(tmp_path / "run", root, variant)
    rows, other = table(), table(1)
    places = sorted(asked_rows(run, 2)) if variant == "category" else range(len(rows))
    if changed == "others":
        places = sorted(set(range(len(rows))) - set(places))
    assert places
    rows[list(places)] = other[list(places)]
    run.run(log_every=1)
    prepared(tmp_path / "changed", root, variant, rows).run(log_every=1)
    first, second = losses(tmp_path / "run"), losses(tmp_path / "changed")
    assert (first != second) == matters
    assert (first[0]["mask_dice"] != second[0]["mask_dice"]) == matters


@VARIANTS
def test_a_run_that_was_stopped_is_the_uninterrupted_one(tmp_path, root, variant):
    """By the command, with the encoders' features kept."""
    start = checkpoint(tmp_path / "start.safetensors", variant, table())
    words = "--preset tiny --batch 4 --group 2 --steps 2 --log-every 1 --validate-every 1 --log csv"
    fixed = [*words.split(), "--validation-samples", 6, "--threads", 1, "--workers", 0]
    data = ["--data", DATA[variant], "--root", root, "--checkpoint", start, "--variant", variant]

    def train(name, *more):
        kept = ["--features", tmp_path / f"{name}-features", "--out", tmp_path / name]
        result = CliRunner().invoke(main, list(map(str, [*fixed, *data, *kept, *more])))
        assert result.exit_code == 0, result.output
        return result.output

    train("whole")
    train("broken", "--stop", 1)
    assert "goes on at step 1" in train("broken")
    whole, broken = (load_file(tmp_path / name / WEIGHTS) for name in ("whole", "broken"))
    assert whole.keys() == broken.keys()
    assert all(torch.equal(value, broken[key]) for key, value in whole.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "broken")


def test_a_run_does_not_go_on_beside_another_table(tmp_path, root):
    prepared(tmp_path / "run", root, "category").run(stop=1)
    with pytest.raises(CheckpointError, match="other frozen weights"):
        prepared(tmp_path / "run", root, "category", table(1)).resume()
