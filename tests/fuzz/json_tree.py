"""Mutations of JSON: its tree of values, and then its text."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

from fuzz.mutate import mutate

DEEP = "\ue000deep %d\ue000"
"""Stands for a value that is nested so deep that `json.dumps` cannot write it."""

NUMBERS = (0, 1, -1, 2, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, 2**63, 10**30)
FLOATS = (0.0, -0.0, 0.5, 1e-320, 1e308, float("nan"), float("inf"), -float("inf"), 1e18)
TEXTS = (
    "",
    " ",
    "left man",
    "a" * 300,
    "wide " * 4000,
    "\ud800",
    "left \udfff man",
    "line\u2028break",
    "next\u0085line",
    "\x00",
    "\x1b[31mred",
    "\ufeff",
    "two\nlines",
    "🦓",
    "../outside",
    "/etc/passwd",
    "C:\\x",
    "a/../../b",
    ".",
    "nan",
    "1e999",
    "-1",
    "null",
)
OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, [0] * 1000)

Path = tuple[Any, ...]


def mutated_tree(tree: Any, rng: random.Random) -> Any:
    """A copy of parsed JSON after one to three random steps."""
    changed = [copy.deepcopy(tree)]  # in a list, so that the root can be replaced as well
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        rng.choice(_STEPS)(changed, rng)
    return changed[0]


def mutated_json(tree: Any, rng: random.Random) -> bytes:
    """The text of parsed JSON, mutated as a tree, as a text, or as bytes."""
    how = rng.random()
    if how < 0.1:
        return mutate(write(tree), rng)
    data = write(mutated_tree(tree, rng), escape=rng.random() < 0.5)
    return mutated_encoding(data, rng) if how > 0.8 else data


def write(tree: Any, escape: bool = True) -> bytes:
    """JSON with NaN and Infinity where they are, in UTF-8.

    Args:
        tree: What `json.dumps` takes, or `DEEP` in the place of a value.
        escape: False writes characters as they are, lone surrogates as the bytes that Windows and
            Java make of them.
    """
    text = json.dumps(tree, ensure_ascii=escape)
    for depth in (30, 2000, 100_000):
        mark = json.dumps(DEEP % depth, ensure_ascii=escape)
        text = text.replace(mark, "[" * depth + "]" * depth)
    return text.encode("utf-8", "surrogatepass")


def mutated_encoding(data: bytes, rng: random.Random) -> bytes:
    """The text as other programs write it, cut, or with something before or behind it."""
    text = data.decode("utf-8", "replace")
    ways = (
        lambda: b"\xef\xbb\xbf" + data,
        lambda: text.encode("utf-16", "surrogatepass"),
        lambda: text.encode("utf-32", "surrogatepass"),
        lambda: text.encode("latin-1", "replace"),
        lambda: data.replace(b"\n", b"\r\n"),
        lambda: data.replace(b", ", b",\n"),
        lambda: data + rng.choice((b"\n", b"\0", b" {}", b",", b"\n\n\n", b"\xff")),
        lambda: data[: rng.randrange(len(data) + 1)],
        lambda: data.replace(b'"', b"'"),
        lambda: data.replace(b"{", b'{"image": 1, ', 1),
        lambda: rng.choice((b"", b" ", b"\n", b"null", b"[", b"1e5", b"9" * 5000, b"\xff\xfe")),
    )
    return rng.choice(ways)()


def _paths(tree: Any) -> list[Path]:
    """The way to every value below the root."""
    found: list[Path] = []
    waiting: list[tuple[Path, Any]] = [((), tree)]
    while waiting and len(found) < 20_000:
        path, value = waiting.pop()
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, below in items:
            found.append((*path, key))
            if isinstance(below, dict | list):
                waiting.append(((*path, key), below))
    return found


def _pick(tree: Any, rng: random.Random) -> tuple[Any, Any]:
    """(holder, key) of a value: half of the time one near the root, where there are fewer."""
    paths = _paths(tree)
    depths = sorted({len(path) for path in paths})
    depth = rng.choice(depths)
    path = rng.choice(paths if rng.random() < 0.5 else [p for p in paths if len(p) == depth])
    holder = tree
    for key in path[:-1]:
        holder = holder[key]
    return holder, path[-1]


def _other(value: Any, rng: random.Random) -> Any:
    """Another value in the place of this one."""
    choices: list[Any] = [rng.choice(NUMBERS), rng.choice(FLOATS), rng.choice(TEXTS)]
    choices += [copy.deepcopy(rng.choice(OTHERS)), DEEP % rng.choice((30, 2000, 100_000))]
    if isinstance(value, int | float) and not isinstance(value, bool):
        choices += [rng.choice(NUMBERS), rng.choice(FLOATS), -value, value + 1, str(value)]
        choices += [float(value)] if abs(value) < 1e300 else []
    if isinstance(value, str):
        choices += [value * 2, value[: len(value) // 2], value.upper(), value + "\0", [value]]
        choices += [rng.choice(TEXTS), value + rng.choice(TEXTS)]
    return rng.choice(choices)


def _replace(root: Any, rng: random.Random) -> None:
    holder, key = _pick(root, rng)
    holder[key] = _other(holder[key], rng)


def _drop(root: Any, rng: random.Random) -> None:
    holder, key = _pick(root, rng)
    if holder is root:
        root[0] = None
    else:
        del holder[key]


def _double(root: Any, rng: random.Random) -> None:
    holder, key = _pick(root, rng)
    value = copy.deepcopy(holder[key])
    if isinstance(holder, list) and holder is not root:
        holder.insert(rng.randrange(len(holder) + 1), value)
    elif isinstance(holder, dict):
        holder[f"{key} "] = value


def _nest(root: Any, rng: random.Random) -> None:
    holder, key = _pick(root, rng)
    value = holder[key]
    holder[key] = rng.choice(([value], {"a": value}, [value, value], [[value]]))


def _flatten(root: Any, rng: random.Random) -> None:
    """A value from below in the place of what holds it."""
    holder, key = _pick(root, rng)
    value = holder[key]
    if isinstance(value, list | dict) and value:
        holder[key] = rng.choice(list(value.values() if isinstance(value, dict) else value))


def _swap(root: Any, rng: random.Random) -> None:
    (one, here), (two, there) = _pick(root, rng), _pick(root, rng)
    if one is not root and two is not root:
        one[here], two[there] = copy.deepcopy(two[there]), copy.deepcopy(one[here])


def _rename(root: Any, rng: random.Random) -> None:
    holder, key = _pick(root, rng)
    if isinstance(holder, dict):
        holder[rng.choice((*TEXTS, str(key).upper()))] = holder.pop(key)


_STEPS = (_replace, _replace, _replace, _replace, _drop, _double, _nest, _flatten, _swap, _rename)
