"""Names and texts that are not valid Unicode can be shown."""

from __future__ import annotations

import os
from pathlib import Path

from ris.engines.text import LONGEST_ECHO, echoed, one_line, quoted, reason_of, shown, typed


def test_what_cannot_be_encoded_is_replaced():
    latin = Path(os.fsdecode(b"caf\xe9/b.jpg"))
    assert shown(latin) == "caf\ufffd/b.jpg"
    assert shown("left man \ud83d") == "left man \ufffd"
    assert shown("naïve 🙂\n") == "naïve 🙂\n"


def test_control_characters_do_not_break_a_line():
    assert one_line("\ufeffa\u202eb\u200d") == r"\ufeffa\u202eb" + "\u200d"
    assert one_line("a\nb\x1b[31m\u2028c\ud83d") == r"a\nb\x1b[31m\u2028c" + "\ufffd"


def test_arguments_are_utf_8_whatever_the_locale():
    assert typed(b"se\xc3\xb1or".decode("ascii", "surrogateescape")) == "señor"
    not_utf_8 = os.fsdecode(b"se\xf1or")
    assert typed(not_utf_8) == not_utf_8


def test_a_long_text_lacks_its_middle():
    assert one_line("a" * 10 + "b" * 10, 20) == "a" * 10 + "b" * 10
    assert one_line("a" * 10 + "b" * 11, 20) == "a" * 10 + "…" + "b" * 9
    path = "/data/" + "x" * 5000 + "/1.jpg\n"
    assert len(echoed(path)) == LONGEST_ECHO
    assert echoed(path).startswith("/data/xx")
    assert echoed(path).endswith(r"xx/1.jpg\n")


def test_any_value_of_a_file_is_quoted_in_one_short_line():
    deep = []
    for _ in range(10_000):
        deep = [deep]
    wide = [["x" * 1000] * 1000] * 1000
    for value in (
        deep,
        wide,
        {"\n": deep},
        "\x1b\u2028" * 1000,
        "\ud83d",
        float("nan"),
        b"\0",
        10**4000,
    ):
        assert 0 < len(quoted(value)) <= LONGEST_ECHO
        assert quoted(value).isprintable()
    assert quoted([40.0, "x"]) == "[40.0, 'x']"


def test_a_reason_is_one_line_and_never_empty():
    assert reason_of(ValueError("No thrift:\n  invalid.\n")) == "No thrift: invalid."
    assert reason_of(FileNotFoundError(2, "No such file or directory", "a")) == (
        "No such file or directory"
    )
    assert reason_of(KeyError()) == "KeyError"
    assert len(reason_of(ValueError("x" * 10_000))) == LONGEST_ECHO
