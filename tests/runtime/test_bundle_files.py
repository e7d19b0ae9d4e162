"""A bundle's other files, damaged: the tokenizer, the categories and the golden arrays."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import bad_manifests
from ris.runtime import BundleError, open_bundle
from ris.runtime.categories import CategoryTable, read_table
from ris.runtime.from_json import DEEPEST, LARGEST, read_json
from ris.runtime.parity import load_golden
from ris.runtime.text import ExpressionTokenizer

TOKENIZER = json.loads((bad_manifests.DEMO / "tokenizer.json").read_text(encoding="utf-8"))


def one_sentence(caught, path):
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400
    return message


def without_special_tokens(data):
    data["post_processor"]["special_tokens"] = {}  # the library panics


def with_large_ids(data):
    data["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [2**32 - 1]


def with_more_ids_than_names(data):
    data["post_processor"]["special_tokens"]["[CLS]"]["ids"] = [2, 3]


def without_unknown(data):
    data["model"]["unk_token"] = "[NOTHING]"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (without_special_tokens, "not a tokenizer that can be read"),
        (without_unknown, "not a tokenizer that can be read"),
        (with_large_ids, "gives ids of more than 32 bits"),
        (with_more_ids_than_names, "gives special tokens another number of ids than of names"),
        (lambda data: data.pop("model"), "not a tokenizer that can be read"),
        (lambda data: data["model"].update(type="Nothing"), "not a tokenizer that can be read"),
        (lambda data: data["model"].update(vocab=7), "not a tokenizer that can be read"),
    ],
)
def test_a_damaged_tokenizer(tmp_path, change, sentence):
    data = json.loads(json.dumps(TOKENIZER))
    change(data)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=sentence) as caught:
        ExpressionTokenizer(path, 35)
    one_sentence(caught, path)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"\x00" * 100, b'{"a": NaN}', b"null"]
)
@pytest.mark.parametrize("read", [lambda path: ExpressionTokenizer(path, 35), CategoryTable.read])
def test_what_is_no_json(tmp_path, data, read):
    path = tmp_path / "file.json"
    path.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        read(path)
    one_sentence(caught, path)


def test_a_byte_order_mark_is_no_fault(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(TOKENIZER), encoding="utf-8-sig")
    assert ExpressionTokenizer(path, 35)(["left man"]).ids[0].any()


def test_how_deep_and_how_large_json_may_be(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("[" * DEEPEST + "]" * DEEPEST)
    assert isinstance(read_json(path), list)
    path.write_text("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1))
    with pytest.raises(BundleError, match=f"nested more than {DEEPEST} deep"):
        read_json(path)
    with path.open("wb") as file:
        file.truncate(LARGEST + 1)
    with pytest.raises(BundleError, match="more than 64 MB"):
        read_json(path)


ROW = {"name": "person", "thing": True, "synonyms": ["man"]}


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "should be a list with rows"),
        ({}, "should be a list"),
        (["person"], "0 should be an object"),
        ([{"name": "person"}], "0.thing is missing"),
        ([ROW | {"name": None}], "0.name should be text"),
        ([ROW | {"name": ["person"]}], "0.name should be text"),
        ([ROW | {"thing": 1}], "0.thing should be true or false"),
        ([ROW | {"synonyms": "man"}], "0.synonyms should be a list"),
        ([ROW | {"synonyms": [1]}], "0.synonyms.0 should be text"),
    ],
)
def test_a_damaged_table_says_where(tmp_path, rows, problem):
    path = tmp_path / "categories.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(BundleError, match=problem) as caught:
        CategoryTable.read(path)
    one_sentence(caught, path)


def npy(array):
    return lambda path: np.save(path.open("wb"), array, allow_pickle=True)


@pytest.mark.parametrize(
    "write",
    [
        npy(np.zeros((2, 4))),
        npy(np.zeros((3, 4), np.float32)),
        npy(np.zeros(2, np.float32)),
        npy(np.zeros((2, 0), np.float32)),
        npy(np.zeros((2, 2, 2), np.float32)),
        npy(np.full((2, 4), np.nan, np.float32)),
        npy(np.array([{"a": 1}, None])),  # a pickle
        npy(np.zeros(2, [("a", "f4")])),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order'"),
        lambda path: np.savez(path.open("wb"), a=np.zeros((2, 4), np.float32)),
    ],
)
def test_damaged_features(tmp_path, write):
    names, features = tmp_path / "categories.json", tmp_path / "categories.npy"
    names.write_text(json.dumps([ROW, ROW | {"name": "dog"}]))
    write(features)
    with pytest.raises(BundleError) as caught:
        read_table(names, features)
    one_sentence(caught, features)


def test_a_header_that_says_too_much_takes_no_memory(tmp_path):
    names, features = tmp_path / "categories.json", tmp_path / "categories.npy"
    names.write_text(json.dumps([ROW]))
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 99999999999999), }"
    features.write_bytes(b"\x93NUMPY\x01\x00\x76\x00" + header.ljust(117) + b"\n")
    with pytest.raises(BundleError, match=r"categories\.npy"):
        read_table(names, features)


def test_features_of_the_table(tmp_path):
    names, features = tmp_path / "categories.json", tmp_path / "categories.npy"
    names.write_text(json.dumps([ROW]))
    np.save(features, np.ones((1, 4), np.float32))
    table, found = read_table(names, features)
    assert table.names == ["person"]
    assert found.shape == (1, 4)


GOLDEN = {
    "an array missing": (lambda arrays: arrays.pop("sam_image"), "has no array sam_image"),
    "another kind": (lambda a: a.update(rgb=a["rgb"].astype(float)), "has rgb as float64"),
    "fewer axes": (lambda a: a.update(rgb=a["rgb"][0]), "has rgb as uint8"),
    "other counts": (
        lambda a: a.update(expressions=a["expressions"][:1]),
        "has arrays of 1 and 2 expressions",
    ),
    "nothing": (lambda arrays: arrays.clear(), "has no array rgb"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_that_lacks_something(tmp_path, name):
    change, sentence = GOLDEN[name]
    arrays = dict(np.load(bad_manifests.DEMO / "golden.npz"))
    change(arrays)
    np.savez(tmp_path / "golden.npz", **arrays)
    with pytest.raises(BundleError, match=sentence) as caught:
        load_golden(replace(open_bundle(bad_manifests.DEMO), path=tmp_path))
    one_sentence(caught, tmp_path / "golden.npz")


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: b"", lambda d: d[9000:]])
def test_a_damaged_golden_file(tmp_path, damage):
    whole = (bad_manifests.DEMO / "golden.npz").read_bytes()
    (tmp_path / "golden.npz").write_bytes(damage(whole))
    with pytest.raises(BundleError, match="cannot be read") as caught:
        load_golden(replace(open_bundle(bad_manifests.DEMO), path=tmp_path))
    one_sentence(caught, tmp_path / "golden.npz")
