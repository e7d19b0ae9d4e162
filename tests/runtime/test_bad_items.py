"""`ris-infer`: one bad item never stops the others, and no name or locale breaks the output."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from ris.runtime.commands.infer import main


@pytest.fixture
def infer(tmp_path, monkeypatch, tiny_bundle):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        given = [*arguments, "--bundle", tiny_bundle, "--format", "mask", "--engine", "onnxruntime"]
        return CliRunner().invoke(main, [*map(str, given)])

    return run


def picture(name):
    Image.new("RGB", (40, 30), "red").save(name)


def made():
    return sorted(os.listdir("ris-output")) if Path("ris-output").exists() else []


def test_a_blank_expression_of_a_list_is_named_by_its_line(infer):
    for name in ("park.png", "pets.png"):
        picture(name)
    lines = [
        {"image": "park.png", "expression": "left man"},
        {"image": "./park.png", "expression": ["the dog", "  "]},
        {"image": "park.png", "expression": "the tree"},
        {"image": "pets.png", "expression": "\u200b"},
        {"image": "nosuch.png", "expression": "x"},
    ]
    Path("in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = infer("in.jsonl")
    assert done.exit_code == 2
    assert made() == [f"park.{e}.mask.png" for e in ("left-man", "the-dog", "the-tree")]
    assert "Error: in.jsonl, line 2: the expression is empty" in done.stderr
    assert "Error: in.jsonl, line 4: the expression '\\u200b' has no words in it" in done.stderr
    assert "nosuch.png: no such image file (in.jsonl, line 5)" in done.stderr
    last = "Error: 3 left out, named above; 3 answers about 1 of 3 images"
    assert done.stderr.splitlines()[-1] == last


def test_a_line_separator_inside_a_string_is_content(infer):
    picture("park.png")
    row = {"image": "park.png", "expression": "left\u2028man"}
    Path("in.jsonl").write_text("\ufeff" + json.dumps(row, ensure_ascii=False), encoding="utf-8")
    done = infer("in.jsonl", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["expression"] == "left\u2028man"


def test_asked_again_about_a_folder_it_leaves_its_own_masks_alone(infer):
    picture("park.png")
    first = infer(".", "left man")
    again = infer(".", "left man")
    assert (first.exit_code, again.exit_code) == (0, 0), again.output
    assert again.stdout == first.stdout
    assert made() == ["park.left-man.mask.png"]
    assert "ris-output: the results are written there" in again.stderr


def test_blank_and_wordless_expressions_by_hand_are_said_once(infer):
    picture("a.png")
    picture("b.png")
    done = infer("a.png", "b.png", "", "left man", "\u200b")
    assert done.exit_code == 2
    assert made() == ["a.left-man.mask.png", "b.left-man.mask.png"]
    assert done.stderr.count("the expression is empty") == 1
    assert done.stderr.count("no words in it") == 1
    assert "2 left out, named above; 2 answers about 2 of 2 images" in done.stderr

    nothing = infer("a.png", "b.png", "\u200b")
    assert nothing.exit_code == 2
    assert [line for line in nothing.stderr.splitlines() if line.startswith("Error")] == [
        "Error: the expression '\\u200b' has no words in it"
    ]


def test_long_names_are_cut_and_stay_apart(infer):
    Path("photos").mkdir()
    for name in ("a" * 240, "a" * 239 + "b", "é" * 125):
        picture(f"photos/{name}.png")
    picture("photos/short.png")
    done = infer("photos", "-e", "left man")
    assert done.exit_code == 0, done.output
    names = made()
    assert len(names) == 4
    assert all(len(os.fsencode(name)) <= 255 for name in names)
    assert all(name.endswith(".mask.png") and ".left-man" in name for name in names)


def test_what_is_too_long_for_a_file_is_one_sentence(infer):
    done = infer("x" * 300, "left man")
    assert done.exit_code == 2
    assert "cannot be read: File name too long" in done.stderr
    assert "Internal error" not in done.stderr


def test_names_that_are_not_utf_8(infer):
    name = os.fsdecode(b"caf\xe9.png")
    picture(name)
    done = infer(name, "left man", "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout_bytes.decode("utf-8"))["image"] == "caf\ufffd.png"
    assert made() == [os.fsdecode(b"caf\xe9.left-man.mask.png")]

    done = infer(name, "left man")
    assert 'caf\ufffd.png: "left man"' in done.stdout
    assert "wrote ris-output/caf\ufffd.left-man.mask.png" in done.stdout


def test_a_name_with_a_line_break_stays_on_its_line(infer):
    picture("a\nError: b.png")
    picture("c.png")
    Path("d\n.png").write_text("text")
    done = infer("a\nError: b.png", "c.png", "d\n.png", "left man")
    assert r'a\nError: b.png: "left man"' in done.stdout
    assert r"Error: d\n.png is not an image" in done.stderr


def test_a_folder_named_as_the_output_is_one_sentence(infer):
    picture("a.png")
    Path("file").write_text("")
    done = infer("a.png", "left man", "--out", "file")
    assert done.exit_code == 2
    assert "Error: cannot write file: file is no folder" in done.stderr


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "utf-8:strict"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_any_stream_takes_any_name(tmp_path, tiny_bundle, environment):
    photo = tmp_path / os.fsdecode(b"caf\xe9 \xc3\xb1.png")
    picture(photo)
    command = [Path(sys.executable).parent / "ris-infer", photo.name, "señor", "--json"]
    done = subprocess.run(
        [*command, "--bundle", tiny_bundle, "--engine", "onnxruntime"],
        cwd=tmp_path,
        env=os.environ | environment,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.decode("utf-8"))
    assert found["expression"] == "señor"
    assert found["image"].startswith("caf\ufffd ")
