"""A bad image, outline or expression of a data set is named and left out of the batches."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ris.data.datasets import read_lines
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle
from ris.training.refer_source import ReferSource

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
        (folder / "bad.png").write_bytes(b"no picture")
    return data


def names(batch):
    return list(batch.image_keys)


def test_what_is_bad_is_named_and_the_rest_makes_the_batch(tmp_path):
    data = data_set(
        tmp_path,
        {"image": "a.png"},
        {"image": "a.png", "expression": "  "},
        {"image": "bad.png"},
        {"image": "b.png", "mask": {"size": [30, 40], "counts": "zz"}},
        {"image": "c.png", "expression": "the tree"},
        {"image": "c.png", "mask": "nosuch.png"},
    )
    source = ReferSource(data, 32, 4, 8, shuffle=False)
    batch = source.batch(0)
    assert (names(batch), batch.expressions) == (["a", "c"], ("left man", "the tree"))
    assert list(batch.image_index) == [0, 1]
    assert [sentence.split(": ")[0] for sentence in batch.left_out] == [
        "own.jsonl, line 2",
        batch.left_out[1].split(": ")[0],
        "own.jsonl, line 4",
        "own.jsonl, line 6",
    ]
    assert "bad.png is not an image" in batch.left_out[1]


def test_another_expression_takes_the_place_of_a_bad_one(tmp_path):
    rows = [{"image": "a.png", "expression": " " if i % 2 else f"man {i}"} for i in range(8)]
    source = ReferSource(data_set(tmp_path, *rows), 32, 1, 3)
    for step in range(8):
        batch = source.batch(step)
        assert len(set(batch.expressions)) == 3
        again = source.batch(step)
        assert (again.expressions, again.left_out) == (batch.expressions, batch.left_out)


def test_an_empty_batch_is_the_next_one_that_has_something(tmp_path):
    data = data_set(tmp_path, {"image": "a.png"}, {"image": "bad.png"})
    source = ReferSource(data, 32, 1, 1, shuffle=False)
    assert names(source.batch(1)) == ["a"]
    assert "bad.png" in source.batch(1).left_out[0]
    assert source.batch(0).left_out == ()


def test_nothing_at_all_is_one_sentence(tmp_path):
    source = ReferSource(data_set(tmp_path, {"image": "bad.png"}), 32, 1, 1)
    with pytest.raises(RisError, match=r"nothing of own\.jsonl's split all can be used.*bad\.png"):
        source.batch(0)
