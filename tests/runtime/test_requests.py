"""One bad source, line or expression does not cost the others."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from ris.engines.errors import RisError
from ris.runtime.requests import Request, collect, looks_like_image, read_jsonl


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("a.png")
    return tmp_path


def write(path, *lines):
    path.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    return path


def test_bad_lines_and_expressions_are_named_by_their_line(here):
    path = write(
        here / "in.jsonl",
        {"image": "a.png", "expression": "left man"},
        {"image": "./a.png", "expression": ["the dog", "  "]},
        "{broken",
        {"image": "b.png", "expression": "cut \ud83d"},
        {"image": "b.png", "expression": "x" * 1001},
        {"image": "b.png", "expression": []},
        {"image": "b.png", "expression": "y", "mask": None},
        {"image": "b.png", "expression": ["y", "z"], "category": ["cat", "dog", "cow"]},
        {"image": 3, "expression": "y"},
        {"image": "a.png", "expression": "the tree"},
    )
    said = []
    found = read_jsonl(path, said.append)
    asked = [(request.image.name, request.expressions, request.places) for request in found]
    place = f"{path}, line "
    assert asked == [
        ("a.png", ("left man", "the dog", "the tree"), (f"{place}1", f"{place}2", f"{place}10"))
    ]
    assert [sentence.removeprefix(place).split(": ", 1) for sentence in said] == [
        ["2", 'the expression is empty; say what to find, such as "left man"'],
        ["3", "not JSON: Expecting property name enclosed in double quotes at character 2"],
        ["4", "the expression is not valid Unicode text"],
        ["5", said[3].split(": ", 1)[1]],
        ["6", '"expression" must be text or a list of texts'],
        ["7", "unknown fields: 'mask'"],
        ["8", "2 expressions need as many categories, got 3"],
        ["9", 'not of the form {"image": path, "expression": text}'],
    ]
    assert "1001 characters" in said[3]
    with pytest.raises(RisError, match="line 2: the expression is empty"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "field", ["two\nlines", "line\u2028break", "\ud800", "wide " * 5000, "\x1b[1m", "\ufeff"]
)
def test_an_unknown_field_is_repeated_in_one_short_line(here, field):
    path = write(here / "in.jsonl", {"image": "a.png", "expression": "x", field: 1})
    with pytest.raises(RisError) as caught:
        read_jsonl(path)
    said = str(caught.value).removeprefix(f"{path}, line 1: unknown fields: ")
    assert said.isprintable()
    assert 0 < len(said) <= 200


def test_categories_stay_with_their_expressions(here):
    path = write(
        here / "in.jsonl",
        {"image": "a.png", "expression": ["x", " ", "y"], "category": ["cat", "dog", "cow"]},
        {"image": "a.png", "expression": ["z", "w"], "category": "person"},
        {"image": "a.png", "expression": "v", "category": None},
    )
    first, second = read_jsonl(path, [].append)
    assert first.expressions == ("x", "y", "z", "w")
    assert first.categories == ("cat", "cow", "person", "person")
    assert (second.expressions, second.categories) == (("v",), None)


def test_bad_sources_do_not_cost_the_others(here):
    (here / "empty").mkdir()
    good = write(here / "good.jsonl", {"image": "a.png", "expression": "left man"})
    write(here / "bad.jsonl", "{")
    said = []
    sources = ["empty", "nosuch.jsonl", "bad.jsonl", str(good), "a.png"]
    found = collect(sources, ["x", " ", "y"], ["cat", "dog", "cow"], said.append)
    assert found[0].expressions == ("left man",)
    assert found[1:] == [Request(here.__class__("a.png"), ("x", "y"), ("cat", "cow"))]
    assert [sentence.split(":")[0] for sentence in said] == [
        "expression 2",
        said[1].split(":")[0],
        "nosuch.jsonl cannot be read",
        "bad.jsonl, line 1",
    ]
    assert said[1].startswith("empty has no images")


@pytest.mark.parametrize(
    ("sources", "expressions", "said"),
    [
        (["bad.jsonl"], [], r"line 1: not JSON.*; .*line 5: not JSON[^;]*; and 3 more$"),
        (["a.png"], ["", " "], "expression 1: the expression is empty.*; expression 2: "),
        (["a.png"], [""], "^the expression is empty"),
        (["a.png"], [], "nothing to look for in a.png"),
        (["a.png"], ["x", "y"], "2 expressions need as many categories, got 3"),
    ],
)
def test_nothing_to_do_is_one_sentence(here, sources, expressions, said):
    write(here / "bad.jsonl", *["{"] * 8)
    with pytest.raises(RisError, match=said):
        collect(sources, expressions, ["a", "b", "c"] if "x" in expressions else None)


def test_what_folders_have_and_is_not_taken_is_noted(here):
    (here / "photos").mkdir()
    Image.new("RGB", (8, 8)).save("photos/a.png")
    (here / "photos" / "b.cr2").write_bytes(b"raw")
    noted = []
    assert len(collect(["photos"], ["x"], None, noted=noted.append)) == 1
    assert ["1 .cr2 file, the first is photos/b.cr2" in sentence for sentence in noted] == [True]


def test_what_is_too_long_for_a_name_is_an_expression():
    assert not looks_like_image("man " * 100)
    assert not looks_like_image("a\0b")
