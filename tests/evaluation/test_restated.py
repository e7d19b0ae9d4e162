"""`ris-eval score` against an independent restatement of the evaluators, on sets made anew.

`test_published.py` compares with what the authors' own code computed, on one set. Here the sets
are others, and the restatement, which is checked against the authors' figures first, says what is
right.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from pycocotools import mask as coco

from conftest import GOLDEN
from evaluation_restated import restated
from evaluation_set import make
from ris.evaluation.command import main

PUBLISHED = GOLDEN / "evaluation"
FAMILY = ("lavt", "rela", "released", "dmmi", "cgformer")
PROTOCOLS = {
    **dict.fromkeys(("refcoco", "refcoco+", "refcocog"), FAMILY),
    "grefcoco": ("rela", "released"),
    "ref-zom": ("released", "dmmi"),
}
"""Data set -> whose code counted the golden set."""

COUNTS = {name: (*known, "lisa") if "lavt" in known else known for name, known in PROTOCOLS.items()}
"""Data set -> who can count it; of LISA's evaluator nothing but the rules was at hand."""

SPLITS = [
    *(f"refcoco/unc/{split}" for split in ("val", "testA", "testB")),
    *(f"refcoco+/unc/{split}" for split in ("val", "testA", "testB")),
    *("refcocog/umd/val", "refcocog/umd/test", "refcocog/google/val"),
    *(f"grefcoco/unc/{split}" for split in ("val", "testA", "testB")),
    "ref-zom/final/test",
]
NAMES = {"lavt": "LAVT", "rela": "ReLA", "released": "dfam", "dmmi": "DMMI", "cgformer": "CGFormer"}
COMPUTED = ("metrics", "questions", "truth", "cgformer-masks", "trouble")
"""The golden files that are the authors' results; the others the generator made."""

SEEDS = (1, 2)


@pytest.fixture(scope="module")
def authors():
    """File's name -> what the authors' code computed."""
    return {
        name: json.loads((PUBLISHED / f"{name}.json").read_text("utf-8")) for name in COMPUTED[:4]
    }


@pytest.fixture(scope="module", params=SEEDS)
def made(request, tmp_path_factory):
    """A folder with the sets and answers of a seed."""
    out = tmp_path_factory.mktemp(f"seed{request.param}")
    make(request.param, out, pictures=False)
    return out


def restate(folder, protocol, where):
    data, split_by, split = where.split("/")
    answers = folder / f"predictions-{data}.jsonl"
    return restated(folder, protocol, data, split_by, split, answers)


def author(protocol, where):
    """What the authors' evaluator is called in their results, and whose loader made the truth."""
    if protocol == "released" and where.startswith("ref-zom"):
        return "dfam-refzom", "DMMI"
    return NAMES[protocol], NAMES[protocol]


def test_the_generator_makes_the_golden_set_again(tmp_path):
    make(0, tmp_path)
    given = {path.relative_to(PUBLISHED) for path in PUBLISHED.rglob("*") if path.is_file()}
    found = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert found == given - {Path(f"{name}.json") for name in COMPUTED}
    data = [path for path in found if path.suffix != ".jpg"]
    assert not [p for p in data if (tmp_path / p).read_bytes() != (PUBLISHED / p).read_bytes()]


@pytest.mark.parametrize("where", SPLITS)
def test_the_restatement_is_the_authors_code_on_the_golden_set(authors, where):
    for protocol in PROTOCOLS[where.split("/")[0]]:
        evaluator, loader = author(protocol, where)
        ours = restate(PUBLISHED, protocol, where)
        theirs, questions = authors["metrics"][evaluator][where], authors["questions"][loader]
        names = ("ref_id", "sent_id", "image_id", "text")
        assert ours["questions"] == [tuple(map(one.get, names)) for one in questions[where]]
        assert ours["categories"] == [one.get("category") for one in questions[where]]

        pairs = zip(ours["added"], theirs["samples"], strict=True)
        assert all(added == (one["I"], one["U"]) for added, one in pairs if "I" in one)
        figures = {k: v for k, v in theirs["metrics"].items() if not k.startswith("sum_")}
        assert ours["metrics"] == pytest.approx(figures, rel=0, abs=1e-9)

        [truths] = [found for at, found in authors["truth"].items() if at.startswith(loader)]
        found = {str(q[0]): mask for q, mask in zip(ours["questions"], ours["truth"], strict=True)}
        assert set(found) == set(truths[where])
        assert all(np.array_equal(found[at], coco.decode(truths[where][at])) for at in found)
        if protocol == "cgformer":
            resized = [coco.decode(one["mask"]) for one in authors["cgformer-masks"][where]]
            assert all(map(np.array_equal, ours["masks"], resized))


@pytest.mark.parametrize("where", SPLITS)
def test_the_product_finds_what_the_restatement_finds(made, where):
    data, split_by, split = where.split("/")
    place = ["--data", data, "--root", made, "--split", split, "--split-by", split_by]
    answers = made / f"predictions-{data}.jsonl"
    arguments = [answers, *place, "--protocol", "all", "--json"]
    done = CliRunner().invoke(main, ["score", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    product = json.loads(done.stdout)["protocols"]
    assert sorted(product) == sorted(COUNTS[data])

    right = {protocol: restate(made, protocol, where) for protocol in product}
    references = {p: {question[0] for question in right[p]["questions"]} for p in right}
    every = set().union(*references.values())
    for protocol, found in product.items():
        assert found["metrics"] == pytest.approx(right[protocol]["metrics"], rel=0, abs=1e-9)
        assert {int(one) for one in found["left_out"]} == every - references[protocol]
        assert not found["missing"] + found["doubled"] + found["unreadable"]
