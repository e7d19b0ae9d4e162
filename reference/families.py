"""The table of families, and how the family of a checkpoint is told from its keys.

Nothing that needs PyTorch is imported here; the families' methods import it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted
from ris.reference.cgformer.family import CgformerFamily
from ris.reference.dfam.family import Dfam
from ris.reference.evfsam.family import EvfsamFamily
from ris.reference.family import Choice, Family
from ris.reference.lisa.family import LisaFamily
from ris.reference.rela.family import RelaFamily

FAMILIES: dict[str, Family[Any, Any]] = {
    family.name: family
    for family in (Dfam(), RelaFamily(), CgformerFamily(), EvfsamFamily(), LisaFamily())
}
"""Every family by its name. The first is taken where nothing says which."""

DEFAULT = next(iter(FAMILIES))
"""The name of the first family."""

_SHOWN = 3  # beginnings of keys that a message names


def family_named(name: str) -> Family[Any, Any]:
    """The family of a name. Raises CheckpointError for an unknown one."""
    if name not in FAMILIES:
        raise CheckpointError(
            f"there is no family of models {quoted(name)}; known are {', '.join(FAMILIES)}"
        )
    return FAMILIES[name]


def recognise(keys: Iterable[str]) -> Family[Any, Any] | None:
    """The family whose signs most of the keys bear; None where no key bears any."""
    found = list(keys)
    counts = {
        name: sum(key.startswith(family.signs) for key in found)
        for name, family in FAMILIES.items()
    }
    best = max(counts, key=lambda name: counts[name])
    return FAMILIES[best] if counts[best] else None


def relative_of(keys: Iterable[str]) -> str | None:
    """What a checkpoint with these keys is, where it is one that a family refuses by name."""
    every = [relative for family in FAMILIES.values() for relative in family.relatives]
    return next((r.words for key in keys for r in every if r.pattern.search(key)), None)


def all_choices() -> tuple[Choice, ...]:
    """What a person may choose of any family, each field once."""
    found = {choice.field: choice for one in FAMILIES.values() for choice in one.choices}
    return tuple(found.values())


def nearest(keys: Collection[str]) -> str | None:
    """A clause on the family that most of the keys occur in, and on what they lack of it.

    For keys that bear no family's signs. None where no key occurs in any family.
    """
    counts = {name: sum(key in known for key in keys) for name, known in _known_keys().items()}
    best = max(counts, key=lambda name: counts[name])
    if not counts[best]:
        return None
    signs = FAMILIES[best].signs
    shown = ", ".join(f"{sign}*" for sign in signs[:_SHOWN])
    more = f" and {len(signs) - _SHOWN} more beginnings" if len(signs) > _SHOWN else ""
    return (
        f"nearest to {best}: {counts[best]} of its {len(keys)} keys are that family's; it lacks"
        f" {shown}{more}"
    )


def _known_keys() -> dict[str, set[str]]:
    """Each family's keys, in the size that is published."""
    return {
        name: set(family.empty_model(next(iter(family.presets.values()))).state_dict())
        for name, family in FAMILIES.items()
    }
