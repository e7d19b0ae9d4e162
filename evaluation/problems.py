"""What is wrong with a file of answers, and what a published loader leaves out, in sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ris.evaluation.predictions import Key
from ris.evaluation.scoring import Scored

_NAMED = 10  # references or sentences that a message names


def references_of(found: Scored, numbers: Sequence[int]) -> str:
    """Some of the references that a loader leaves out, with the reasons."""
    named = [f"{number} ({found.left_out[number]})" for number in numbers]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    references = "reference" if len(named) == 1 else "references"
    return f"{len(named)} {references}, as its loader does: {', '.join(named[:_NAMED])}{more}"


def problems(found: Sequence[Scored], doubled: Sequence[Key]) -> list[str]:
    """What is wrong with the answers themselves."""
    missing = {ids: None for one in found for ids in one.missing}
    unreadable = {said: None for one in found for said in one.unreadable}
    problems = list(unreadable)
    if missing:
        problems.append(f"{len(missing)} questions have no answer: {_named(list(missing))}")
    if doubled:
        problems.append(
            f"{len(doubled)} have more than one, of which the first counts: {_named(doubled)}"
        )
    return problems


def _named(keys: Sequence[tuple[Any, ...]]) -> str:
    """Some of the ids, for a message."""
    said = [
        f"sentence {sentence}" + ("" if reference is None else f" of reference {reference}")
        for reference, sentence, *_ in keys[:_NAMED]
    ]
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return ", ".join(said) + more
