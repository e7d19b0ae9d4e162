"""Mutated inputs: a few of each kind, and that what would be a fault is found.

`make fuzz-inputs` sends thousands; `tests/fuzz` has the kinds.
"""

from __future__ import annotations

import pytest

from fuzz import pool
from fuzz.broken import WAYS
from fuzz.kinds import MODULES, SHARES, make_input, plan
from fuzz.record import Record, groups, table

FEW = 350


def judged(tasks, home):
    verdicts = {}
    pool.run(tasks, home, lambda task, verdict, _: verdicts.update({task["kind"]: verdict}))
    return verdicts


def test_a_few_mutated_inputs_of_each_kind_are_answered_or_refused_in_a_sentence(tmp_path):
    record = Record(tmp_path, seed=0)
    tasks = [{"kind": k, "number": n, "seed": 0} for k, n in plan(FEW, list(SHARES))]
    pool.run(tasks, tmp_path / "scratch", record.add, workers=1)  # imports PyTorch once
    found = [verdict for verdict in record.verdicts if verdict.outcome == "finding"]
    assert not found, f"{groups(found, 0)}\n{table(record.verdicts)}"
    assert {verdict.kind for verdict in record.verdicts} == set(SHARES)


def test_every_way_to_fail_is_found(tmp_path):
    # the one that hangs is given up soon; the others have time on a busy machine
    tasks = [
        {"kind": f"broken-{w}", "number": 1, "seed": 0, "seconds": 2 if w == "hang" else 60}
        for w in WAYS
    ]
    verdicts = judged(tasks, tmp_path)
    said = {way: verdicts[f"broken-{way}"].what for way in WAYS}
    assert said == {way: finding for way, (_, finding) in WAYS.items()}
    assert verdicts["broken-noise"].stderr == len("a library speaks\n")
    assert verdicts["broken-sentence"].message == "input.txt is no picture"


@pytest.mark.parametrize("kind", [k for k in SHARES if not k.startswith(("weights", "parquet"))])
def test_an_input_is_a_function_of_seed_kind_and_number(kind):
    assert make_input(kind, 5, 7).files == make_input(kind, 5, 7).files
    assert any(make_input(kind, 5, n).files != make_input(kind, 6, n).files for n in (1, 2, 3))


def test_a_run_that_was_killed_goes_on(tmp_path):
    first = Record(tmp_path, seed=1)
    tasks = [{"kind": "requests-jsonl", "number": n, "seed": 1} for n in range(3)]
    pool.run(tasks[:2], tmp_path / "scratch", first.add, workers=1)
    with (tmp_path / "run-1.jsonl").open("a") as file:
        file.write('{"kind": "requests-js')  # a torn line
    again = Record(tmp_path, seed=1)
    assert again.known == {("requests-jsonl", 0), ("requests-jsonl", 1)}
    again.add(tasks[2], first.verdicts[0], tmp_path)
    assert len(Record(tmp_path, seed=1).verdicts) == 3


def test_each_kind_gets_its_part():
    planned = [kind for kind, _ in plan(10_000, list(SHARES))]
    assert abs(len(planned) - 10_000) < 20
    assert {kind: planned.count(kind) for kind in SHARES}["picture-png"] > 1000
    assert min(planned.count(kind) for kind in SHARES) >= 40
    assert set(MODULES) - {"broken"} == {kind.partition("-")[0] for kind in SHARES}
