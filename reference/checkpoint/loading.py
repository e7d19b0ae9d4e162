"""From weight files to the reference model: which file gives which tensor, what is missing, and the
model itself.

The rule for several files: a component file replaces what training leaves alone (SAM's image
encoder, both towers of CLIP) and only fills in what training changes (SAM's mask and prompt
encoder, BERT), because the training checkpoint has the trained ones. Every replacement and every
gap that was filled is a line of `Inspection.notes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint.category_table import compute_table, text_tower
from ris.reference.checkpoint.files import Entry, WeightFile
from ris.reference.checkpoint.keys import KeyReport, compare_keys, module_of
from ris.reference.checkpoint.layouts import OPENERS, Component, ComponentWeights, open_checkpoint
from ris.reference.checkpoint.sizes import (
    check_given_config,
    derive_config,
    describe_encoder,
    preset_name,
)
from ris.reference.config import PRESETS, ModelConfig
from ris.reference.model import RISModel, empty_model

TABLE = "text_embeddings"
# parts of a component file, and whether training leaves them alone
_PARTS: tuple[tuple[str, bool], ...] = (
    ("sam.image_encoder.", True),
    ("clip_dense.clip_model.visual.", True),
    ("clip_dense.clip_model.", True),
    ("sam.prompt_encoder.", False),
    ("sam.mask_decoder.", False),
    ("text_encoder.", False),
)
# where the checkpoint shows how many channels an encoder gave: key and axis
_TAKES = {
    "sam.image_encoder.": (("sam.mask_decoder.iou_token.weight", 1), ("lang_mlp.weight", 0)),
    "clip_dense.clip_model.visual.": (("adaptor_clip.fusion.vis_project.0.weight", 1),),
}
_POSITIONS = "sam.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# which option brings what a checkpoint may lack
_BRINGS = {
    "SAM image encoder": "--sam-checkpoint",
    "SAM prompt encoder": "--sam-checkpoint",
    "SAM mask decoder": "--sam-checkpoint (untrained for this task)",
    "CLIP image tower": "--clip-checkpoint",
    "BERT": "--bert (untrained for this task)",
    "category table": "--clip-checkpoint with a text tower",
}


@dataclass(frozen=True)
class WeightFiles:
    """The files that a model is put together from; see `load_model`."""

    checkpoint: Path | None = None
    sam: Path | None = None
    clip: Path | None = None
    bert: Path | None = None

    def __bool__(self) -> bool:
        return any((self.checkpoint, self.sam, self.clip, self.bert))


@dataclass(frozen=True)
class Part:
    """One module as it will be: how many tensors each file gives."""

    module: str
    tensors: dict[str, int]


@dataclass(frozen=True)
class Inspection:
    """What a set of files amounts to, before anything of it is read.

    formats: of each file, in words; notes: what was replaced, filled in or computed; parts: per
    module, who gives it; weights: the weight files by component; vocabulary: of the --bert folder.
    """

    config: ModelConfig
    entries: dict[str, Entry]
    keys: KeyReport
    formats: dict[str, str]
    notes: tuple[str, ...]
    parts: tuple[Part, ...]
    weights: dict[Component, Path]
    vocabulary: Path | None
    carried_config: bool

    @property
    def files_used(self) -> set[Path]:
        """The files that give a tensor of the model."""
        return {self.entries[key].file for key in self.keys.loaded}

    def require(self) -> None:
        """Raises CheckpointError with everything that is wrong, at once, where the files do not
        make a model.
        """
        if not self.keys.fits:
            raise CheckpointError(
                "\n  ".join([self.summary(), *self.keys.problems(), *self.hints()])
            )

    def summary(self) -> str:
        """One sentence on whether the files fit."""
        names = " with ".join(str(path) for path in self.weights.values())
        if self.keys.fits:
            return f"{names}: {len(self.keys.loaded)} tensors, all that the model needs"
        return f"{names} does not make a {self.config.preset} model: keys {self.keys.counts()}"

    def hints(self) -> list[str]:
        """What would bring the missing keys, where it is a component file."""
        if "checkpoint" not in self.weights:
            return [
                "component files alone make no model: give the training checkpoint as --checkpoint"
            ]
        modules = {module_of(key) for key in self.keys.missing}
        return [
            f"{module}: {option} would bring it"
            for module, option in _BRINGS.items()
            if module in modules
        ]


def inspect(files: WeightFiles, *, clip_text_tower: bool = False) -> Inspection:
    """Opens the files and works out what they amount to; reads no weights (but the small category
    table).

    Raises CheckpointError for a file that cannot be used, that is another component than its option
    says, or whose sizes contradict the checkpoint's. Missing, unexpected and mis-shaped keys are in
    the report.
    """
    if not files:
        raise CheckpointError(
            "no weight files were given; give a training checkpoint as --checkpoint"
        )
    checkpoint, components = _open(files)
    entries, notes = _merge(checkpoint, components)
    heads = {name: number for component in components for name, number in component.heads.items()}
    config = _config(checkpoint, entries, heads)
    try:
        model = empty_model(config, clip_text_tower=clip_text_tower)
    except (ValueError, TypeError, AssertionError, ZeroDivisionError, RuntimeError) as error:
        raise CheckpointError(
            f"{_name(checkpoint, components)}: its sizes make no model ({error})"
        ) from None
    if config.query == "category":
        entries, table_notes = _with_table(entries, config)
        notes += table_notes
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    weights: dict[Component, Path] = {"checkpoint": files.checkpoint} if files.checkpoint else {}
    weights |= {c.component: c.file.path for c in components if c.file is not None}
    keys = compare_keys(entries, wanted, config)
    return Inspection(
        config=config,
        entries=entries,
        keys=keys,
        formats={
            str(f.path): _format(f)
            for f in (checkpoint, *(c.file for c in components))
            if f is not None
        },
        notes=tuple(notes),
        parts=_parts(entries, keys),
        weights=weights,
        vocabulary=next((c.vocabulary for c in components if c.vocabulary), None),
        carried_config=checkpoint is not None and checkpoint.config is not None,
    )


def load_model(files: WeightFiles, *, clip_text_tower: bool = False) -> tuple[RISModel, Inspection]:
    """The reference model with the weights of the files: float32, eval mode, no gradients.

    Tensors that a file holds as float32 stay memory-mapped, the others are converted one at a time,
    so there is never more than one copy of the weights and the largest tensor. The files must stay
    as they are while the model lives. `clip_text_tower` also loads CLIP's text tower. Raises
    CheckpointError as `inspect` does, and for keys that are missing, unexpected or of another
    shape, all at once.
    """
    inspection = inspect(files, clip_text_tower=clip_text_tower)
    inspection.require()
    return build_model(inspection, clip_text_tower=clip_text_tower), inspection


def partial_weights(
    files: WeightFiles, config: ModelConfig
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """(the tensors that the files have, by the model's key names, notes), whether or not they make
    a whole model.

    For training a model of `config`, which starts the rest at random; the category table is
    computed where a text tower is there. Raises CheckpointError for a file that cannot be used.
    """
    checkpoint, components = _open(files)
    entries, notes = _merge(checkpoint, components)
    if config.query == "category":
        entries, table_notes = _with_table(entries, config)
        notes += table_notes
    return entries, tuple(note for note in notes if checkpoint or "checkpoint has none" not in note)


def build_model(inspection: Inspection, *, clip_text_tower: bool = False) -> RISModel:
    """The model of an inspection whose keys fit."""
    model = empty_model(inspection.config, clip_text_tower=clip_text_tower).requires_grad_(False)
    state = {}
    for key, value in model.state_dict().items():
        entry = inspection.entries.get(key)
        state[key] = torch.zeros(value.shape) if entry is None else entry.read()
    model.load_state_dict(state, assign=True)
    return model


# --- putting the files together ---


def _open(files: WeightFiles) -> tuple[WeightFile | None, list[ComponentWeights]]:
    checkpoint = open_checkpoint(files.checkpoint) if files.checkpoint else None
    given: dict[Component, Path | None] = {"sam": files.sam, "clip": files.clip, "bert": files.bert}
    return checkpoint, [OPENERS[name](path) for name, path in given.items() if path is not None]


def _merge(
    checkpoint: WeightFile | None, components: Sequence[ComponentWeights]
) -> tuple[dict[str, Entry], list[str]]:
    """(the tensors by the model's key names, what was done), by the rule at the top."""
    entries = dict(checkpoint.entries) if checkpoint else {}
    notes = []
    for component in components:
        left = dict(component.entries)
        for prefix, frozen in _PARTS:
            theirs = {key: left.pop(key) for key in list(left) if key.startswith(prefix)}
            ours = {key: entry for key, entry in entries.items() if _part(key) == prefix}
            if theirs and component.file is not None:
                name = component.file.path.name
                notes += (
                    _replace(entries, ours, theirs, prefix, name)
                    if frozen
                    else _fill(entries, ours, theirs, name)
                )
        entries |= {
            key: entry for key, entry in left.items() if key not in entries
        }  # reported as unexpected
    return entries, notes


def _part(key: str) -> str:
    return next((prefix for prefix, _ in _PARTS if key.startswith(prefix)), "")


def _replace(
    entries: dict[str, Entry],
    ours: dict[str, Entry],
    theirs: dict[str, Entry],
    prefix: str,
    name: str,
) -> list[str]:
    """A frozen part of a component file takes the place of the checkpoint's, which must be the same
    architecture.
    """
    module = module_of(next(iter(theirs)))
    shapes = {key: entry.shape for key, entry in ours.items()}
    other = {key: entry.shape for key, entry in theirs.items()}
    encoder = prefix in ("sam.image_encoder.", "clip_dense.clip_model.visual.")
    if encoder and ours:
        found, expected = describe_encoder(prefix, other), describe_encoder(prefix, shapes)
        if found != expected:
            raise CheckpointError(
                f"{name} is {found}, the checkpoint was trained with {expected}; give the component"
                " file that it was trained with, or none"
            )
    for key, axis in _TAKES.get(
        prefix, ()
    ):  # a checkpoint without the encoder still shows how wide it was
        taken, given = entries[key].shape[axis] if key in entries else None, _width(prefix, other)
        if not ours and taken and given and taken != given:
            raise CheckpointError(
                f"{name} is {describe_encoder(prefix, other)}, the checkpoint's {module_of(key)}"
                f" takes {taken} channels; give the component file that it was trained with"
            )
    for key in ours:
        del entries[key]
    entries |= theirs
    if ours:
        return [
            f"{module}: from {name}, in place of the checkpoint's (training leaves it as it is)"
        ]
    words = f", {describe_encoder(prefix, other)}" if encoder else ""
    return [f"{module}: from {name}{words}; the checkpoint has none"]


def _width(prefix: str, shapes: dict[str, tuple[int, ...]]) -> int | None:
    """The number of channels that an encoder gives, as far as its keys show."""
    shape = shapes.get(
        prefix + ("neck.0.weight" if prefix.startswith("sam.") else "class_embedding")
    )
    return shape[0] if shape else None


def _fill(
    entries: dict[str, Entry], ours: dict[str, Entry], theirs: dict[str, Entry], name: str
) -> list[str]:
    """A trained part of a component file gives what the checkpoint lacks."""
    module = module_of(next(iter(theirs)))
    gaps = {key: entry for key, entry in theirs.items() if key not in ours}
    entries |= gaps
    notes = []
    if _POSITIONS in ours and _POSITIONS in theirs:
        trained, given = ours[_POSITIONS].read(), theirs[_POSITIONS].read()
        if trained.shape != given.shape or not torch.allclose(trained, given, rtol=1e-2, atol=1e-3):
            notes.append(
                f"WARNING: {name} is not the SAM that the checkpoint was trained from: its position"
                " matrix differs"
            )
    if not gaps:
        return [*notes, f"{module}: the checkpoint's trained tensors are kept, {name} gives none"]
    if ours:
        return [
            *notes,
            (
                f"{module}: {len(gaps)} of {len(theirs)} tensors from {name}, the rest from the"
                " checkpoint"
            ),
        ]
    if module in ("BERT", "SAM mask decoder"):
        notes.append(
            f"WARNING: {module} is {name}'s, untrained for this task: the checkpoint has none"
        )
    return notes


def _config(
    checkpoint: WeightFile | None, entries: dict[str, Entry], heads: dict[str, int]
) -> ModelConfig:
    if checkpoint is None or checkpoint.config is None:
        return derive_config({key: entry.shape for key, entry in entries.items()}, heads)
    config = check_given_config(checkpoint.config, checkpoint.path)
    name = preset_name(config)
    return (
        config
        if name == "custom" and config.preset not in PRESETS
        else replace(config, preset=name)
    )


def _with_table(
    entries: dict[str, Entry], config: ModelConfig
) -> tuple[dict[str, Entry], list[str]]:
    """The entries with the category table: the buffer, or one computed from a text tower. All zeros
    is no table.
    """
    table = entries.get(TABLE)
    if table is not None and bool(table.read().any()):
        return entries, []
    rest = {key: entry for key, entry in entries.items() if key != TABLE}
    tower = text_tower(entries, config)
    if tower is None:
        return rest, (
            ["WARNING: the category table is all zeros, which is no table"]
            if table is not None
            else []
        )
    file = next(iter(tower.values())).file
    shape = (config.categories, config.clip.embed_dim)
    computed = Entry(
        shape, torch.float32, file, (lambda: compute_table(tower, config),), mapped=False
    )
    return rest | {TABLE: computed}, [
        f"category table: computed with the text tower of {file.name}; 26 of the stuff classes by"
        " their plain names"
    ]


def _parts(entries: dict[str, Entry], keys: KeyReport) -> tuple[Part, ...]:
    """Per module, in the order of the model, how many tensors each file gives."""
    parts: dict[str, dict[str, int]] = {}
    for key in keys.loaded:
        files = parts.setdefault(module_of(key), {})
        name = entries[key].file.name
        files[name] = files.get(name, 0) + 1
    return tuple(Part(module, files) for module, files in parts.items())


def _format(file: WeightFile) -> str:
    beside = f"; beside the weights, not read: {', '.join(file.beside)}" if file.beside else ""
    return f"{file.format}, {len(file.entries)} tensors{beside}"


def _name(checkpoint: WeightFile | None, components: Sequence[ComponentWeights]) -> str:
    files = [checkpoint, *(c.file for c in components)]
    return " with ".join(str(f.path) for f in files if f is not None)
