"""The tensors of several files put together.

The rule: a component file replaces what training leaves alone (SAM's image encoder, both towers of
CLIP) and only fills in what training changes (SAM's mask and prompt encoder, BERT), because the
training checkpoint has the trained ones. Every replacement and every gap that was filled is a note.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.entries import shapes_of
from ris.reference.checkpoint.files import WeightFile
from ris.reference.checkpoint.layouts import ComponentWeights, Entries
from ris.reference.checkpoint.names import (
    BERT,
    CLIP,
    CLIP_VISUAL,
    SAM_DECODER,
    SAM_ENCODER,
    SAM_PROMPTS,
    module_of,
)
from ris.reference.checkpoint.sizes import describe_encoder

# parts of component files, and whether training leaves them alone; the first that fits is a key's
_PARTS: tuple[tuple[str, bool], ...] = (
    (SAM_ENCODER, True),
    (CLIP_VISUAL, True),
    (CLIP, True),
    (SAM_PROMPTS, False),
    (SAM_DECODER, False),
    (BERT, False),
)
# where the checkpoint shows how many channels an encoder gave: key and axis
_TAKES = {
    SAM_ENCODER: (("sam.mask_decoder.iou_token.weight", 1), ("lang_mlp.weight", 0)),
    CLIP_VISUAL: (("adaptor_clip.fusion.vis_project.0.weight", 1),),
}
# where an encoder's own file shows it, on axis 0
_GIVES = {SAM_ENCODER: f"{SAM_ENCODER}neck.0.weight", CLIP_VISUAL: f"{CLIP_VISUAL}class_embedding"}
_POSITIONS = "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


@dataclass(frozen=True)
class _Offer:
    """What a component file has of one part of the model, beside what the checkpoint has."""

    prefix: str
    """What the part's keys begin with."""

    name: str
    """Name of the component file."""

    theirs: Entries
    """The component file's tensors of the part, at least one."""

    ours: Entries
    """The checkpoint's tensors of the part, none perhaps."""

    @property
    def module(self) -> str:
        """The part in words."""
        return module_of(next(iter(self.theirs)))

    @property
    def is_encoder(self) -> bool:
        """Whether the part is an image encoder, whose architecture its keys tell."""
        return self.prefix in _TAKES

    def describe(self, entries: Entries) -> str:
        """The image encoder of these tensors in words."""
        return describe_encoder(self.prefix, shapes_of(entries))


def merge(
    checkpoint: WeightFile | None, components: Sequence[ComponentWeights]
) -> tuple[Entries, list[str]]:
    """(the tensors by the model's key names, notes on what was done), by the rule above.

    Raises CheckpointError for an encoder that the checkpoint was not trained with.
    """
    entries = dict(checkpoint.entries) if checkpoint else {}
    notes: list[str] = []
    for component in components:
        left = dict(component.entries)
        for prefix, frozen in _PARTS:
            theirs = {key: left.pop(key) for key in list(left) if key.startswith(prefix)}
            ours = {key: entry for key, entry in entries.items() if _part(key) == prefix}
            if theirs and component.file is not None:
                offer = _Offer(prefix, component.file.path.name, theirs, ours)
                notes += _replace(offer, entries) if frozen else _fill(offer, entries)

        # of no part: reported as unexpected later
        entries |= {key: entry for key, entry in left.items() if key not in entries}
    return entries, notes


def _part(key: str) -> str:
    return next((prefix for prefix, _ in _PARTS if key.startswith(prefix)), "")


def _replace(offer: _Offer, entries: Entries) -> list[str]:
    """A frozen part of a component file takes the place of the checkpoint's."""
    if offer.is_encoder:
        _check_encoder(offer, entries)
    for key in offer.ours:
        del entries[key]
    entries |= offer.theirs

    source = f"{offer.module}: from {offer.name}"
    if offer.ours:
        return [f"{source}, in place of the checkpoint's (training leaves it as it is)"]
    words = f", {offer.describe(offer.theirs)}" if offer.is_encoder else ""
    return [f"{source}{words}; the checkpoint has none"]


def _check_encoder(offer: _Offer, entries: Entries) -> None:
    """The encoder must be of the architecture that the checkpoint was trained with."""
    found = offer.describe(offer.theirs)
    if offer.ours:
        expected = offer.describe(offer.ours)
        if found != expected:
            raise CheckpointError(
                f"{offer.name} is {found}, the checkpoint was trained with {expected}; give the"
                " component file that it was trained with, or none"
            )
        return

    # a checkpoint without the encoder still shows how many channels it gave
    given = _size(offer.theirs, _GIVES[offer.prefix], 0)
    for key, axis in _TAKES[offer.prefix]:
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
    if not _same_positions(offer):
        notes.append(
            f"WARNING: {offer.name} is not the SAM that the checkpoint was trained from: its"
            " position matrix differs"
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
    elif offer.module in ("BERT", "SAM mask decoder"):
        notes.append(
            f"WARNING: {offer.module} is {offer.name}'s, untrained for this task: the checkpoint"
            " has none"
        )
    return notes


def _same_positions(offer: _Offer) -> bool:
    """Whether SAM's position matrix, drawn anew for each training of SAM, is that of the file."""
    if _POSITIONS not in offer.ours or _POSITIONS not in offer.theirs:
        return True
    trained, given = offer.ours[_POSITIONS].read(), offer.theirs[_POSITIONS].read()
    if trained.shape != given.shape:
        return False
    return torch.allclose(trained, given, rtol=1e-2, atol=1e-3)
