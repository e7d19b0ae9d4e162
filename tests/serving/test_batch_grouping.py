"""Many lines are brought together by image on disk as few are in memory."""

from __future__ import annotations

import tracemalloc

import pytest

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')

from ris.engines.errors import RisError
from ris.serving.batch import grouping
from ris.serving.batch.asked import Asked, Given, Location, unusable
from ris.serving.batch.grouping import grouped
from ris.serving.batch.inputs import group_by_image
from ris.serving.batch.parts import Job
from ris.serving.batch.run import BatchOptions, plan_batch


def lines():
    """Images that come again and again, tables' rows, names that are not UTF-8, and errors."""
    for i in range(60):
        if i % 7 == 3:
            yield unusable(f"line {i}", "not JSON")
        elif i % 5 == 0:
            yield Asked(f"t {i}", Location("t.parquet", row=i % 10), ("x", "y \ud83d"))
        else:
            place = Location(f"caf\udce9{i % 4}.png", i % 3 or None, 9)
            yield Asked(f"image {i % 12}", place, (f"e{i}",), ("person",) if i % 2 else None)


def test_many_lines_are_grouped_as_few_are(tmp_path, monkeypatch):
    expected = group_by_image(lines())
    assert list(grouped(lines(), tmp_path)) == expected
    for most in (0, 1, 59):
        monkeypatch.setattr(grouping, "_IN_MEMORY", most)
        assert list(grouped(lines(), tmp_path)) == expected
    assert list(tmp_path.iterdir()) == []


def test_a_plan_is_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(grouping, "_IN_MEMORY", 100)
    count = 6000
    many = (
        Asked(f"{i}.png", Location(f"/images/{i}.png"), ("a" * 100, "b" * 100))
        for i in range(count)
    )
    job = Job(tmp_path)
    tracemalloc.start()
    try:
        parts = job.write_plan(grouped(many, job.plan_folder), 300, {})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parts == count // 150
    assert peak < 1_500_000, "6,000 tasks take more than 3 MB"
    assert [task.rows for task in job.tasks(parts - 1)][-1] == [2 * count - 2, 2 * count - 1]


def test_a_plan_that_could_not_be_made_leaves_nothing(tmp_path, served_bundle):
    bad = tmp_path / "bad.tar"
    bad.write_bytes(b"no tar")
    with pytest.raises(RisError, match="cannot be read"):
        plan_batch(tmp_path / "out", served_bundle, [bad], Given(), BatchOptions())
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    with pytest.raises(RisError, match="there is nothing in the input"):
        plan_batch(tmp_path / "out", served_bundle, [empty], Given(), BatchOptions())
    assert not (tmp_path / "out").exists()
