"""What a model computes for an image and for each expression, and what follows from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ris.engines import EngineOptions
from ris.runtime.manifest import Manifest
from ris.runtime.wiring import runs_once_an_image

_VERY_LARGE = 1e12  # operations of an expression


def question_operations(manifest: Manifest) -> int:
    """The operations of the stages that run for every question, for one expression."""
    counted = [s.operations for s in manifest.stages if not runs_once_an_image(s)]
    return sum(each.of(1, 1) for each in counted if each is not None)


def expressions_at_once(manifest: Manifest) -> int:
    """How many expressions any engine takes at once where the user does not say.

    Several share what depends on the image alone, and fill idle cores. Of a model that computes
    10^12 operations for one, each would need gigabytes at the same time, and CPUs gain nothing from
    it (docs/measurements/performance.md). GPUs were not measured.
    """
    alone = question_operations(manifest) >= _VERY_LARGE
    return 1 if alone else EngineOptions().max_expressions


def operations_in(manifest: Manifest) -> dict[str, int]:
    """The operations of one image and one expression, by graph.

    Empty where the bundle has not counted those of one graph.
    """
    counted = {stage.name: stage.operations for stage in manifest.stages}
    return all_known({name: each.of(1, 1) if each else None for name, each in counted.items()})


def all_known(operations: Mapping[str, int | None]) -> dict[str, int]:
    """Each graph's operations; empty where those of one are not known."""
    known = {stage: count for stage, count in operations.items() if count is not None}
    return known if len(known) == len(operations) else {}


def once_an_image_words(once_an_image: Sequence[str], operations: Mapping[str, int]) -> str:
    """A clause on what runs once an image, and on what that leaves to each expression.

    Args:
        once_an_image: The stages that run once an image.
        operations: Of all stages, as `operations_in` gives them.
    """
    if not once_an_image:
        return "no graph runs once an image: each expression costs the whole network"
    words = f"once an image: {', '.join(once_an_image)}"
    if not operations:
        return words
    share = sum(operations[stage] for stage in once_an_image) / sum(operations.values())
    return f"{words}, {share:.0%} of a first mask's operations; each expression costs the rest"
