"""A family's configuration from JSON data: dataclasses of dataclasses, with lists for tuples.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")
"""A dataclass."""


def config_from(kind: type[T], data: dict[str, Any]) -> T:
    """The configuration that `dataclasses.asdict` made the data of, through JSON perhaps.

    Raises TypeError for an unknown field.
    """
    parts: dict[str, Any] = {
        name: hint for name, hint in get_type_hints(kind).items() if is_dataclass(hint)
    }
    given: Any = kind
    unknown = sorted(set(data) - {f.name for f in fields(given)})
    if unknown:
        raise TypeError(f"unknown model configuration fields: {', '.join(unknown)}")
    values = dict(data)
    for name, value in data.items():
        if name in parts:
            sizes = {key: tuple(v) if isinstance(v, list) else v for key, v in value.items()}
            values[name] = parts[name](**sizes)
    return kind(**values)
