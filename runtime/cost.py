"""How much of a first mask runs once an image, and so is not paid again for the next expression."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ris.runtime.manifest import Manifest


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
