"""Parsed JSON as dataclasses, with every field that is missing or of the wrong kind."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any, Literal, TypeVar, get_args, get_origin

T = TypeVar("T")


def build(kind: type[T], data: Any, name: str) -> tuple[T | None, list[str]]:
    """The data as a dataclass, and a sentence for everything that is wrong with it.

    Of typing it knows what manifests need: dataclasses, tuples of any length, dicts with text as
    keys, unions with None, literals and scalars. A list becomes a tuple, and a whole number a float
    where a float is wanted. Fields that the dataclass does not have are left out.

    Args:
        kind: A dataclass.
        data: What `json.loads` returned.
        name: What the sentences call the data as a whole.

    Returns:
        The dataclass, which is of no use where there are problems, and the problems.
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
        if origin in (typing.Union, types.UnionType):
            return self._union(arguments, value, at)
        if origin is Literal:
            if value in arguments:
                return value
            return self._wrong(at, " or ".join(map(repr, arguments)), value)
        if origin is tuple:
            return self._tuple(arguments[0], value, at)
        if origin is dict:
            return self._dict(arguments[1], value, at)
        return self._scalar(kind, value, at)

    def _dataclass(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(at, "an object", value)
        fields = dataclasses.fields(kind)
        absent = [f for f in fields if f.name not in value]
        missing = [f.name for f in absent if f.default is dataclasses.MISSING]
        self.problems += [f"{at}{name} is missing" for name in missing]

        hints = typing.get_type_hints(kind)
        present = [f.name for f in fields if f.name in value]
        found = {name: self.build(hints[name], value[name], f"{at}{name}.") for name in present}
        return None if missing else kind(**found)

    def _union(self, arguments: tuple[Any, ...], value: Any, at: str) -> Any:
        if value is None and type(None) in arguments:
            return None
        alternatives = [a for a in arguments if a is not type(None)]
        if len(alternatives) == 1:
            return self.build(alternatives[0], value, at)
        if isinstance(value, tuple(alternatives)):
            return value
        return self._wrong(at, "one of several kinds", value)

    def _tuple(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, list):
            return self._wrong(at, "a list", value)
        return tuple(self.build(kind, item, f"{at}{i}.") for i, item in enumerate(value))

    def _dict(self, kind: Any, value: Any, at: str) -> Any:
        if not isinstance(value, dict):
            return self._wrong(at, "an object", value)
        return {key: self.build(kind, item, f"{at}{key}.") for key, item in value.items()}

    def _scalar(self, kind: Any, value: Any, at: str) -> Any:
        is_bool = isinstance(value, bool)  # Python counts True and False among the integers
        if kind is float and isinstance(value, int) and not is_bool:
            return float(value)
        if not isinstance(value, kind) or (is_bool and kind is not bool):
            return self._wrong(at, kind.__name__, value)
        return value

    def _wrong(self, at: str, expected: str, value: Any) -> None:
        where = at.rstrip(".") or self._name
        self.problems.append(f"{where} should be {expected}, found {str(value)[:40]!r}")
