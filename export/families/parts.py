"""A model's modules with other parts, so that a graph has what it computes with and no more."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import TypeVar

from torch import nn

Part = TypeVar("Part", bound=nn.Module)
"""A kind of module."""


def with_parts(module: Part, parts: Mapping[str, nn.Module | None]) -> Part:
    """The module with other parts; itself it stays as it is, and the weights are shared.

    parts: what takes the place of a part, by its path. None: nothing does.
    """
    changed = copy(module)
    changed._modules = dict(module._modules)
    for path, part in parts.items():
        name, _, rest = path.partition(".")
        inner = changed._modules[name]
        if rest:
            assert inner is not None
            changed._modules[name] = with_parts(inner, {rest: part})
        elif part is None:
            del changed._modules[name]
        else:
            changed._modules[name] = part
    return changed
