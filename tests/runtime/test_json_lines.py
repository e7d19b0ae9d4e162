"""JSON Lines are split at line feeds alone, and a bad line does not end the reading."""

from __future__ import annotations

import pytest

from ris.engines.errors import RisError
from ris.runtime.json_lines import parse_json, read_json_lines, text_lines


def lines(path, data):
    path.write_bytes(data)
    return [(line.number, line.value, line.problem) for line in read_json_lines(path)]


@pytest.mark.parametrize("inside", ["\u2028", "\u2029", "\x85", "\x7f", "é"])
def test_what_python_takes_for_a_line_end_is_content(tmp_path, inside):
    data = f'["a{inside}b"]\n'.encode()
    assert lines(tmp_path / "x", data) == [(1, [f"a{inside}b"], None)]


def test_windows_line_ends_a_mark_and_blank_lines(tmp_path):
    data = b'\xef\xbb\xbf["a"]\r\n\r\n   \n["b"]'
    assert lines(tmp_path / "x", data) == [(1, ["a"], None), (4, ["b"], None)]


def test_bad_lines_are_named_and_the_others_read(tmp_path):
    data = b'{"a"\n["caf\xe9"]\n' + b"[" * 100_000 + b"\n" + b"9" * 5000 + b'\n["whole"]\n'
    found = lines(tmp_path / "x", data)
    problems = [problem for _, _, problem in found]
    assert problems[:3] == [
        "not JSON: Expecting ':' delimiter at character 5",
        "not UTF-8 (byte 6)",
        "nested too deeply",
    ]
    assert problems[3].startswith("not JSON: Exceeds the limit")
    assert found[4] == (5, ["whole"], None)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x", b"\xff\xfe[\x00]\x00", "x is UTF-16; save it as UTF-8"),
        ("nosuch", None, "nosuch cannot be read: No such file"),
        ("", None, "cannot be read: Is a directory"),
        ("a\0b", None, "cannot be read: embedded null byte"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name, data, said):
    if data:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(RisError, match=said):
        list(read_json_lines(tmp_path / name))


def test_text_with_an_item_a_line():
    assert text_lines("left man \r\n\n the dog\u2028by the door\n") == [
        "left man",
        "the dog\u2028by the door",
    ]


def test_json_of_other_places():
    assert parse_json(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json(b'{"a":' * 100_000)
