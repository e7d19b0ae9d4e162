"""JSON files as dataclasses, with every field that is missing or of the wrong kind."""

from __future__ import annotations

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin

from ris.engines.errors import BundleError
from ris.engines.text import one_line

LARGEST = 64 << 20
"""The largest JSON file of a bundle that is read, in bytes; real ones have less than 1 MB."""

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}

DEEPEST = 64
"""How deep lists and objects may lie in each other."""


class Rule(NamedTuple):
    """What holds for a value beyond its type: `Annotated[int, Rule(...)]`.

    In `Annotated[dict[..., ...], ...]` and other containers it is asked about the whole container.
    """

    holds: Callable[[Any], bool]
    """Asked about a value of the right type."""

    words: str
    """What the value should be."""


def within(least: int, most: int) -> Rule:
    """The rule of whole numbers from `least` to `most`."""
    return Rule(lambda n: least <= n <= most, f"a whole number from {least} to {most}")


def read_json(path: Path) -> Any:
    """What a JSON file of a bundle holds, which a byte-order mark may precede.

    Raises:
        FileNotFoundError: Where there is no such file.
        BundleError: Where it is no file, or is too large, no UTF-8, no JSON or nested too deep.
    """
    try:
        return _parsed(read_text(path))
    except ValueError as error:
        raise _unreadable(path, str(error)) from None


def read_text(path: Path) -> str:
    """The text of a bundle's file; the errors are those of `read_json`."""
    try:
        if path.exists() and not path.is_file():
            raise _unreadable(path, "it is no file")
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error)) from None
    if len(data) > LARGEST:
        raise _unreadable(path, f"it has more than {LARGEST >> 20} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(path, f"byte {error.start} is not UTF-8") from None


def _unreadable(path: Path, reason: str) -> BundleError:
    return BundleError(f"{path} cannot be read ({reason}); export the bundle again")


def _parsed(text: str) -> Any:
    """The value; raises ValueError where it is no JSON or nested too deep."""
    too_deep = f"its values are nested more than {DEEPEST} deep"
    try:
        data = json.loads(text)
    except RecursionError:
        raise ValueError(too_deep) from None
    layer = [data]
    for _ in range(DEEPEST):
        lists = [value for value in layer if isinstance(value, list)]
        objects = [value.values() for value in layer if isinstance(value, dict)]
        layer = [item for items in (*lists, *objects) for item in items]
    if any(isinstance(value, (list, dict)) for value in layer):
        raise ValueError(too_deep)
    return data


def build(kind: Any, data: Any, name: str) -> tuple[Any, list[str]]:
    """The data as a value of `kind`, and a sentence for everything that is wrong with it.

    Of typing it knows what bundles need: dataclasses, tuples of any length, dicts with text as
    keys, unions, literals, scalars, and any of them with a `Rule`. A list becomes a tuple, and a
    whole number a float where a float is wanted. Floats are finite. Fields that a dataclass does
    not have are left out.

    Args:
        kind: A dataclass, or another of those types.
        data: What `json.loads` returned.
        name: What the sentences call the data as a whole.

    Returns:
        The value, which is of no use where there are problems, and the problems.
    """
    builder = _Builder(name)
    return builder.build(kind, data, ""), builder.problems


class _Builder:
    """Collects problems on its way through the data. `at` is a place in it, such as "text."."""

    def __init__(self, name: str) -> None:
        self.problems: list[str] = []
        self._name = name

    def build(self, kind: Any, value: Any, at: str) -> Any:
        """`value` as `kind`; None where it is not of that kind, after noting why."""
        if kind is Any:
            return value
        if dataclasses.is_dataclass(kind):
            return self._dataclass(kind, value, at)

        origin, arguments = get_origin(kind), get_args(kind)
        if origin is Annotated:
            return self._ruled(arguments[0], arguments[1:], value, at)
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, value, at)
        if origin is Literal:
            if any(value == known and type(value) is type(known) for known in arguments):
                return value  # True is no 1
            return self._wrong(at, " or ".join(map(repr, arguments)), value)
        if origin is tuple:
            return self._tuple(arguments[0], value, at)
        if origin is dict:
            return self._dict(arguments, value, at)
        return self._scalar(kind, value, at)

    def _ruled(self, kind: Any, rules: tuple[Rule, ...], value: Any, at: str) -> Any:
        before = len(self.problems)
        found = self.build(kind, value, at)
        if len(self.problems) == before:
            for rule in rules:
                if not rule.holds(found):
                    return self._wrong(at, rule.words, value)
        return found

    def _dataclass(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(at, "an object", value)
        fields = dataclasses.fields(kind)
        absent = [f for f in fields if f.name not in value]
        no_default = dataclasses.MISSING
        missing = [f.name for f in absent if f.default is f.default_factory is no_default]
        self.problems += [f"{at}{name} is missing" for name in missing]

        hints = typing.get_type_hints(kind, include_extras=True)
        present = [f.name for f in fields if f.name in value]
        found = {name: self.build(hints[name], value[name], f"{at}{name}.") for name in present}
        return None if missing else kind(**found)

    def _union(self, arguments: tuple[Any, ...], value: Any, at: str) -> Any:
        if value is None and type(None) in arguments:
            return None
        alternatives = [a for a in arguments if a is not type(None)]
        for alternative in alternatives:
            trial = _Builder(self._name)
            found = trial.build(alternative, value, at)
            if not trial.problems:
                return found
        if len(alternatives) > 1:
            return self._wrong(at, "one of several kinds", value)
        self.problems += trial.problems
        return None

    def _tuple(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, list):
            return self._wrong(at, "a list", value)
        return tuple(self.build(kind, item, f"{at}{i}.") for i, item in enumerate(value))

    def _dict(self, kinds: tuple[Any, ...], value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(at, "an object", value)
        items = {}
        for key, item in value.items():
            place = f"{at}{one_line(key)[:80]}."
            items[self.build(kinds[0], key, place)] = self.build(kinds[1], item, place)
        return items

    def _scalar(self, kind: Any, value: Any, at: str) -> Any:
        is_bool = isinstance(value, bool)  # Python counts True and False among the integers
        if kind is float and isinstance(value, (int, float)) and not is_bool:
            return self._number(value, at)
        if not isinstance(value, kind) or (is_bool and kind is not bool):
            return self._wrong(at, _KINDS[kind], value)
        return value

    def _number(self, value: float, at: str) -> Any:
        try:
            number = float(value)
        except OverflowError:  # a whole number
            number = math.inf
        if math.isfinite(number):
            return number
        return self._wrong(at, "a finite number", value)

    def _wrong(self, at: str, expected: str, value: Any) -> None:
        where = at.rstrip(".") or self._name
        self.problems.append(f"{where} should be {expected}, found {str(value)[:40]!r}")
