"""The tensors of several files put together.

The rule: a component file replaces what training leaves alone (an image encoder) and only fills in
what training changes (BERT), because the training checkpoint has the trained ones. Which part is
which the family says, by `SharedPart`; of some only the checkpoint's will do. Every replacement,
every gap that was filled and everything that was left aside is a note.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.entries import shapes_of
from ris.reference.checkpoint.files import WeightFile
from ris.reference.checkpoint.layouts import ComponentWeights, Entries


class Fingerprint(NamedTuple):
    """A tensor that tells one training of a component from another."""

    key: str
    """Its key in the whole model."""

    component: str
    """The component in words."""

    words: str
    """The tensor in words."""


@dataclass(frozen=True)
class SharedPart:
    """A part of the model that a component file may have, too."""

    prefix: str
    """What the part's keys begin with."""

    frozen: bool
    """Whether training leaves the part alone."""

    describe: Callable[[Mapping[str, tuple[int, ...]]], str] | None = None
    """The part's architecture in words, of its shapes; None where nothing is compared."""

    gives: str = ""
    """The key of the part whose axis 0 shows how many channels it gives; empty where none does."""

    takes: tuple[tuple[str, int], ...] = ()
    """Keys and axes of the rest of the model that show how many channels it takes from the part."""

    decisive: bool = False
    """Whether a model whose part was not trained for the task deserves a warning."""

    fingerprint: Fingerprint | None = None
    """A tensor of the part that has to be the component file's; None where there is none."""

    checkpoint_only: bool = False
    """Whether the component file's is of no use: the model was trained with another."""


@dataclass(frozen=True)
class _Offer:
    """What a component file has of one part of the model, beside what the checkpoint has."""

    part: SharedPart
    """The part."""

    module: str
    """The part in words."""

    name: str
    """Name of the component file."""

    theirs: Entries
    """The component file's tensors of the part, at least one."""

    ours: Entries
    """The checkpoint's tensors of the part, none perhaps."""


def merge(
    checkpoint: WeightFile | None,
    components: Sequence[ComponentWeights],
    parts: Sequence[SharedPart],
    module_of: Callable[[str], str],
) -> tuple[Entries, list[str]]:
    """The tensors of all files, by the rule above.

    Args:
        checkpoint: The training checkpoint; None without one.
        components: The component files.
        parts: The family's shared parts; the first that fits is a key's.
        module_of: A key's module in words.

    Returns:
        The tensors by the model's key names, and notes on what was done.

    Raises:
        CheckpointError: For an encoder that the checkpoint was not trained with.
    """
    entries = dict(checkpoint.entries) if checkpoint else {}
    notes: list[str] = []
    for component in components:
        left = dict(component.entries)
        for part in parts:
            theirs = {key: left.pop(key) for key in list(left) if key.startswith(part.prefix)}
            ours = {key: entry for key, entry in entries.items() if _part(key, parts) is part}
            if theirs and component.file is not None:
                module = module_of(next(iter(theirs)))
                offer = _Offer(part, module, component.file.path.name, theirs, ours)
                if part.checkpoint_only:
                    notes.append(f"{module}: not from {offer.name}, as the model trained its own")
                elif part.frozen:
                    notes += _replace(offer, entries, module_of)
                else:
                    notes += _fill(offer, entries)

        # of no part: reported as unexpected later
        entries |= {key: entry for key, entry in left.items() if key not in entries}
    return entries, notes


def _part(key: str, parts: Sequence[SharedPart]) -> SharedPart | None:
    return next((part for part in parts if key.startswith(part.prefix)), None)


def _replace(offer: _Offer, entries: Entries, module_of: Callable[[str], str]) -> list[str]:
    """A frozen part of a component file takes the place of the checkpoint's."""
    found = ""
    if offer.part.describe is not None:
        found = offer.part.describe(shapes_of(offer.theirs))
        _check_encoder(offer, entries, found, module_of)
    for key in offer.ours:
        del entries[key]
    entries |= offer.theirs

    source = f"{offer.module}: from {offer.name}"
    if offer.ours:
        return [f"{source}, in place of the checkpoint's (training leaves it as it is)"]
    return [f"{source}{found and f', {found}'}; the checkpoint has none"]


def _check_encoder(
    offer: _Offer, entries: Entries, found: str, module_of: Callable[[str], str]
) -> None:
    """The encoder must be of the architecture that the checkpoint was trained with.

    Args:
        offer: The component file's encoder.
        entries: All tensors as they are without it.
        found: Its architecture in words.
        module_of: A key's module in words.
    """
    if offer.ours:
        assert offer.part.describe is not None
        expected = offer.part.describe(shapes_of(offer.ours))
        if found != expected:
            raise CheckpointError(
                f"{offer.name} is {found}, the checkpoint was trained with {expected}; give the"
                " component file that it was trained with, or none"
            )
        return

    # a checkpoint without the encoder still shows how many channels it gave
    given = _size(offer.theirs, offer.part.gives, 0)
    for key, axis in offer.part.takes:
        taken = _size(entries, key, axis)
        if taken and given and taken != given:
            raise CheckpointError(
                f"{offer.name} is {found}, the checkpoint's {module_of(key)} takes {taken}"
                " channels; give the component file that it was trained with"
            )


def _size(entries: Entries, key: str, axis: int) -> int | None:
    shape = entries[key].shape if key in entries else ()
    return shape[axis] if axis < len(shape) else None


def _fill(offer: _Offer, entries: Entries) -> list[str]:
    """A trained part of a component file gives what the checkpoint lacks."""
    gaps = {key: entry for key, entry in offer.theirs.items() if key not in offer.ours}
    entries |= gaps

    notes = []
    trained = offer.part.fingerprint
    if trained is not None and not _same(trained.key, offer):
        notes.append(
            f"WARNING: {offer.name} is not the {trained.component} that the checkpoint was trained"
            f" from: its {trained.words} differs"
        )
    if not gaps:
        notes.append(
            f"{offer.module}: the checkpoint's trained tensors are kept, {offer.name} gives none"
        )
    elif offer.ours:
        notes.append(
            f"{offer.module}: {len(gaps)} of {len(offer.theirs)} tensors from {offer.name}, the"
            " rest from the checkpoint"
        )
    elif offer.part.decisive:
        notes.append(
            f"WARNING: {offer.module} is {offer.name}'s, untrained for this task: the checkpoint"
            " has none"
        )
    return notes


def _same(key: str, offer: _Offer) -> bool:
    """Whether a tensor is the same in the checkpoint and the file, as far as both have it."""
    if key not in offer.ours or key not in offer.theirs:
        return True
    trained, given = offer.ours[key].read(), offer.theirs[key].read()
    if trained.shape != given.shape:
        return False
    return torch.allclose(trained, given, rtol=1e-2, atol=1e-3)
