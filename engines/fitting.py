"""Whether a compiled graph serves though it was compiled with other options than a run asks for.

A plan's recipe lies beside it (`entry`), so its limits are known: a plan for up to eight
expressions serves a run of three, and a graph that OpenVINO compiled for any number serves a run of
one. What is only asked for at the compilation, such as a limit of scratch memory, may be anything
where a run does not ask for it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from ris.engines.base import Graph
from ris.engines.recipe import Recipe, differences

AT_WILL = ("workspace", "version_compatible", "hardware_compatible", "strip_weights")
"""The options of a recipe that a run takes as they come, unless it asks for them."""

_FIXES_AXES = "openvino"  # whose profiles are fixed axes and their lengths

ANY_AMPERE = "sm_80 and later"
"""The `Recipe.device` of a plan for GPUs of compute capability 8.0 and later."""


def misfit(found: Mapping[str, Any], wanted: Recipe) -> str:
    """What keeps a compiled graph from serving, for people; empty where it serves.

    found: its recipe, as it stands in the sidecar.
    """
    adjusted = wanted.to_dict()
    options = found.get("options")
    if isinstance(options, dict):
        for name in AT_WILL:
            if name in adjusted["options"] and not adjusted["options"][name]:
                adjusted["options"][name] = options.get(name)
        if options.get("version_compatible") is True and _is_older(
            found.get("version"), wanted.version
        ):
            adjusted["version"] = found["version"]
        if options.get("hardware_compatible") is True and _is_of_ampere(found, wanted.device):
            adjusted["device"] = found["device"]

    profiles = found.get("profiles")
    if isinstance(profiles, dict) and (
        _cover(profiles, wanted.profiles)
        or (wanted.engine == _FIXES_AXES and _fixes_no_more(profiles, wanted.profiles))
    ):
        adjusted["profiles"] = profiles
    return differences(found, adjusted)


def largest(profiles: Any) -> int:
    """The number of elements of all inputs at their largest; a smaller one is tuned closer.

    Where axes are fixed, fewer than 0: the more of them there are, the closer.
    """
    if not isinstance(profiles, dict) or not all(map(_is_range, profiles.values())):
        return -len(profiles) if isinstance(profiles, dict) else 0
    return sum(math.prod(shapes[2]) for shapes in profiles.values())


def most_expressions(profiles: Mapping[str, Any], graph: Graph) -> int | None:
    """The most expressions that a plan with these shapes takes; None where it takes any number."""
    limits = [
        int(profiles[spec.name][2][0])
        for spec in graph.inputs
        if spec.shape and spec.shape[0] == "expressions" and _is_range(profiles.get(spec.name))
    ]
    return min(limits, default=None)


def _cover(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether all that is wanted lies between the smallest and the largest shapes of `found`."""
    if found.keys() != wanted.keys():
        return False
    return all(
        _is_range(wanted[name]) and _is_range(found[name]) and _covers(found[name], wanted[name])
        for name in wanted
    )


def _fixes_no_more(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether each axis that `found` fixes has the length that is wanted; others may have any."""
    return found.items() <= wanted.items()


def _covers(found: list[list[int]], wanted: list[list[int]]) -> bool:
    """Whether one input's smallest and largest shapes are within another's."""
    if len(found[0]) != len(wanted[0]):
        return False
    lower = all(a <= b for a, b in zip(found[0], wanted[0], strict=True))
    return lower and all(a >= b for a, b in zip(found[2], wanted[2], strict=True))


def _is_range(shapes: Any) -> bool:
    """Whether it is a smallest, usual and largest shape, as TensorRT's profiles are."""
    return (
        isinstance(shapes, list)
        and len(shapes) == 3
        and all(isinstance(shape, list) and len(shape) == len(shapes[0]) for shape in shapes)
        and all(isinstance(size, int) for shape in shapes for size in shape)
    )


def _is_older(found: Any, here: str) -> bool:
    """Whether a version is not later than that of here; both begin with numbers and points."""
    a, b = _numbers(found), _numbers(here)
    return bool(a and b) and a <= b


def _numbers(version: Any) -> tuple[int, ...]:
    start = re.match(r"\d+(\.\d+)*", version) if isinstance(version, str) else None
    return tuple(map(int, start[0].split("."))) if start else ()


def _is_of_ampere(found: Mapping[str, Any], device: str) -> bool:
    """Whether a plan is for GPUs from 8.0 on, and the device here is one."""
    here = re.match(r"sm_(\d+)", device)
    return found.get("device") == ANY_AMPERE and here is not None and int(here[1]) >= 80
