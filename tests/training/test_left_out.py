"""A bad image, outline or expression of a data set is named and left out of the batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ris.data.datasets import read_lines
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle
from ris.training.refer_source import ReferSource, ReferSubset

MASK = np.zeros((30, 40), bool)
MASK[5:20, 8:30] = True


def data_set(folder, *rows):
    """A data set of such lines; an image that is not there is made, "bad.png" is damaged."""
    whole = {"expression": "left man", "mask": dict(encode_rle(MASK))}
    rows = [whole | row for row in rows]
    for row in rows:
        Image.new("RGB", (40, 30), "red").save(folder / row["image"])
    (folder / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = read_lines(folder / "own.jsonl")
    if (folder / "bad.png").exists():
        whole = (folder / "bad.png").read_bytes()
        (folder / "bad.png").write_bytes(whole[: len(whole) // 2])
    return data


BAD = (
    {"image": "a.png"},
    {"image": "bad.png"},
    {"image": "b.png", "mask": {"size": [30, 40], "counts": "zz"}},
    {"image": "c.png", "expression": "the tree"},
    {"image": "c.png", "mask": "nosuch.png"},
    {"image": "d.png", "mask": dict(encode_rle(MASK[:9]))},
)


def test_another_sentence_takes_the_place_of_a_bad_one(tmp_path):
    source = ReferSource([(data_set(tmp_path, *BAD), 1.0)], 32, 6, 6)
    batch = source.batch(0)
    assert set(batch.expressions) == {"left man", "the tree"}
    assert len(batch.examples) == 6
    said = "\n".join(batch.left_out)
    assert "bad.png is damaged or cut short" in said
    for line in (3, 5, 6):
        assert f"own.jsonl, line {line}: " in said
    again = source.batch(0)
    assert (again.expressions, again.left_out) == (batch.expressions, batch.left_out)


def test_what_takes_its_place_has_the_same_orientation(tmp_path):
    rows = [{"image": f"{i}.png", "expression": "wide"} for i in range(9)]
    rows += [{"image": "bad.png", "expression": "wide"}]
    data = data_set(tmp_path, *rows)
    Image.new("RGB", (30, 40)).save(tmp_path / "high.png")
    high = {"image": "high.png", "expression": "high", "mask": None}
    with (tmp_path / "own.jsonl").open("a") as file:
        file.write("".join("\n" + json.dumps(high) for _ in range(9)))
    Image.new("RGB", (40, 30), "red").save(tmp_path / "bad.png")
    data = read_lines(tmp_path / "own.jsonl")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    source = ReferSource([(data, 1.0)], 32, 3, 3)
    batches = [source.batch(step) for step in range(30)]
    assert any(batch.left_out for batch in batches)
    for batch in batches:
        assert len(set(batch.expressions)) == 1


def test_nothing_at_all_is_one_sentence(tmp_path):
    source = ReferSource([(data_set(tmp_path, {"image": "bad.png"}), 1.0)], 32, 1, 1)
    with pytest.raises(RisError, match=r"100 sentences of own\.jsonl in a row.*bad\.png"):
        source.batch(0)


def test_a_validation_asks_the_others(tmp_path):
    subset = ReferSubset(data_set(tmp_path, *BAD), 32, group=2)
    batches = [subset.batch(step) for step in range(subset.steps)]
    assert [None if one is None else one.expressions for one in batches] == [
        ("left man",),
        ("the tree",),
        None,
    ]
