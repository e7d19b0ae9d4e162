"""Inputs and outputs of stages, and the simplest way to build one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from ris.engines import TensorSpec
from ris.export.families.design import Build
from ris.runtime.manifest_kinds import Taken

IMAGE_INDEX = TensorSpec("image_index", "int32", ("expressions",))
"""The image of each expression."""


def of_image(name: str, *shape: int) -> TensorSpec:
    """A float32 value with a row for each image."""
    return TensorSpec(name, "float32", ("images", *shape))


def of_expression(name: str, *shape: int | str) -> TensorSpec:
    """A float32 value with a row for each expression."""
    return TensorSpec(name, "float32", ("expressions", *shape))


def taken(spec: TensorSpec, value: str | None = None) -> Taken:
    """An input; without a value, it takes the one of its own name."""
    return Taken(spec.name, spec.dtype, spec.shape, value or spec.name)


def plain(kind: Callable[[Any], nn.Module]) -> Build:
    """Makes a module that does not sample."""
    return lambda model, sampling: kind(model).eval()
