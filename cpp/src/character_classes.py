"""Writes character_classes.inc: the marks, punctuation and control characters of `tokenizers`.

The tables of that library are of an older Unicode than anybody else's. No other library's
categories agree with it on newer characters, so this asks the library itself. Run it where
`tokenizers` is installed:

    python character_classes.py > character_classes.inc
"""

from __future__ import annotations

from collections.abc import Callable

from tokenizers import normalizers, pre_tokenizers

CLEAN = normalizers.BertNormalizer(
    clean_text=True, handle_chinese_chars=False, strip_accents=False, lowercase=False
)
STRIP = normalizers.BertNormalizer(
    clean_text=False, handle_chinese_chars=False, strip_accents=True, lowercase=False
)
SPLIT = pre_tokenizers.BertPreTokenizer()
CLASSES: dict[str, Callable[[str], bool]] = {
    "kControl": lambda c: CLEAN.normalize_str(c) == "",
    "kMark": lambda c: STRIP.normalize_str(c) == "",
    "kPunctuation": lambda c: len(SPLIT.pre_tokenize_str(f"a{c}b")) == 3,
}


def ranges(belongs: Callable[[str], bool]) -> list[tuple[int, int]]:
    """First and last of each run of characters that belong."""
    found: list[tuple[int, int]] = []
    for code in range(1, 0x110000):
        if 0xD800 <= code <= 0xDFFF or not belongs(chr(code)):
            continue
        if found and found[-1][1] == code - 1:
            found[-1] = (found[-1][0], code)
        else:
            found.append((code, code))
    return found


print("// Written by character_classes.py: first and last character of each range.")
for name, belongs in CLASSES.items():
    print(f"constexpr Range {name}[] = {{")
    line = "   "
    for first, last in ranges(belongs):
        item = f" {{0x{first:x}, 0x{last:x}}},"
        if len(line) + len(item) > 100:
            print(line)
            line = "   "
        line += item
    print(line + "\n};")
