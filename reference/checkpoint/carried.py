"""The configuration that a checkpoint or a manifest carries: JSON data, checked field by field."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass, replace
from typing import Any, Literal, Protocol, Self, TypeVar, get_args, get_origin, get_type_hints

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted, reason_of
from ris.reference.checkpoint.encoders import MOST_BLOCKS

_LARGEST_SIZE = 1 << 20
_COUNTS_OF_BLOCKS = ("depth", "depths", "layers", "blocks")  # how the names of such fields end


class _FromDict(Protocol):
    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self: ...


class _Named(_FromDict, Protocol):
    @property
    def preset(self) -> str: ...


T = TypeVar("T", bound=_FromDict)
"""A dataclass, of dataclasses perhaps, that is made of JSON data."""

N = TypeVar("N", bound=_Named)
"""Such a dataclass that has the name of a preset."""


def read_carried(kind: type[T], data: Any, source: object) -> T:
    """The configuration that JSON data is of: every choice a known one, every size a possible one.

    Args:
        kind: The configuration's class.
        data: The data.
        source: The file that carries it, for messages.

    Raises:
        CheckpointError: Where it is none.
    """
    try:
        if not isinstance(data, dict):
            raise TypeError(f"a {type(data).__name__}, not an object")
        config = kind.from_dict(data)
        for part in _parts(config):
            _check_choices(part)
            _check_sizes(part)
            _check_others(part)
        return config
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its ris_config is not a model configuration ({reason_of(error)}); write the"
            " checkpoint again with this version, or leave ris_config out"
        ) from None


def read_named(
    kind: type[N],
    data: Any,
    source: object,
    presets: Mapping[str, N],
    name_of: Callable[[N], str],
) -> N:
    """The configuration that JSON data is of, under the name of its sizes.

    Sizes of no preset keep a name of their own.

    Args:
        kind: As of `read_carried`.
        data: As of `read_carried`.
        source: As of `read_carried`.
        presets: The family's presets by name.
        name_of: The preset with the sizes of a configuration, "custom" where none has them.

    Raises:
        CheckpointError: As `read_carried`.
    """
    config = read_carried(kind, data, source)
    name = name_of(config)
    keeps_its_name = name == "custom" and config.preset not in presets
    given: Any = config  # a dataclass, as all configurations are
    return config if keeps_its_name else replace(given, preset=name)


def _parts(config: Any) -> Iterator[Any]:
    """A configuration, then the configurations in it."""
    yield config
    for name, kind in get_type_hints(type(config)).items():
        if is_dataclass(kind):
            yield from _parts(getattr(config, name))


def _check_choices(part: Any) -> None:
    """Raises ValueError for a choice that there is not."""
    for name, kind in get_type_hints(type(part)).items():
        if get_origin(kind) is Literal and getattr(part, name) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            raise ValueError(f"{name} is {quoted(getattr(part, name))}, not one of {choices}")


def _check_sizes(part: Any) -> None:
    """Raises TypeError for a size of another kind, ValueError for one that no model has."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        sizes = (value,) if kind is int else value if kind == tuple[int, ...] else ()
        if not isinstance(sizes, tuple) or any(type(size) is not int for size in sizes):
            raise TypeError(f"{name} is {quoted(value)}, not a whole number")
        most = MOST_BLOCKS if name.endswith(_COUNTS_OF_BLOCKS) else _LARGEST_SIZE
        if not all(0 <= size <= most for size in sizes):
            raise ValueError(f"{name} is {quoted(value)}, not from 0 to {most}")


def _check_others(part: Any) -> None:
    """Raises TypeError for a text, a number or a yes or no of another kind."""
    for name, kind in get_type_hints(type(part)).items():
        value = getattr(part, name)
        if kind is str and not isinstance(value, str):
            raise TypeError(f"{name} is {quoted(value)}, not text")
        if kind is bool and not isinstance(value, bool):
            raise TypeError(f"{name} is {quoted(value)}, not true or false")
        # JSON writes 1.0 as 1, perhaps; Python's has NaN
        if kind is float and not (type(value) in (int, float) and math.isfinite(value)):
            raise TypeError(f"{name} is {quoted(value)}, not a finite number")
