"""From weight files to the reference model: what they make, what is missing, the model itself.

`ris.reference.checkpoint.merging` has the rule for several files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, reason_of
from ris.reference.checkpoint.category_table import with_table
from ris.reference.checkpoint.entries import Entry, shapes_of
from ris.reference.checkpoint.files import WeightFile
from ris.reference.checkpoint.finite import require_finite
from ris.reference.checkpoint.keys import KeyReport, compare_keys
from ris.reference.checkpoint.layouts import OPENERS, Component, ComponentWeights, open_checkpoint
from ris.reference.checkpoint.merging import merge
from ris.reference.checkpoint.names import module_of
from ris.reference.checkpoint.sizes import check_given_config, derive_config, preset_name
from ris.reference.config import PRESETS, ModelConfig
from ris.reference.model import RISModel, empty_model

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
    """The files that a model is put together from; each may be None. False without any."""

    checkpoint: Path | None = None
    """The training checkpoint."""

    sam: Path | None = None
    """SAM's weights in Meta's layout."""

    clip: Path | None = None
    """CLIP's weights: a file, or a folder of transformers'."""

    bert: Path | None = None
    """A folder with BERT's weights, its vocabulary or both."""

    def __bool__(self) -> bool:
        return any((self.checkpoint, self.sam, self.clip, self.bert))


@dataclass(frozen=True)
class Part:
    """One module of the model and the files that give it."""

    module: str
    """The module in words."""

    tensors: dict[str, int]
    """How many tensors each file gives, by the file's name."""


@dataclass(frozen=True)
class Inspection:
    """What a set of files makes, before the weights are read."""

    config: ModelConfig
    """The model's configuration."""

    entries: dict[str, Entry]
    """The tensors by the model's key names."""

    keys: KeyReport
    """The tensors' keys against those of the model."""

    formats: dict[str, str]
    """The format of each file in words, by its path."""

    notes: tuple[str, ...]
    """What was replaced, filled in or computed; some begin with WARNING."""

    parts: tuple[Part, ...]
    """Who gives each module, in the order of the model."""

    weights: dict[Component, Path]
    """The weight files by component."""

    vocabulary: Path | None
    """vocab.txt or tokenizer.json of the --bert folder; None where there is none."""

    carried_config: bool
    """Whether the checkpoint carries `config`; otherwise it was read off the shapes."""

    @property
    def files_used(self) -> set[Path]:
        """The files that give a tensor of the model."""
        return {self.entries[key].file for key in self.keys.loaded}

    def require(self) -> None:
        """Raises CheckpointError where the files do not make a model, with all that is wrong."""
        if not self.keys.fits:
            lines = [self.summary(), *self.keys.problems(), *self.hints()]
            raise CheckpointError("\n  ".join(lines))

    def require_finite(self) -> None:
        """Raises CheckpointError where a weight that has an effect is NaN or infinite.

        Reads the weights from end to end.
        """
        require_finite(self.entries, set(self.keys.loaded) - set(self.keys.idle))

    def summary(self) -> str:
        """One sentence on whether the files fit."""
        names = _joined(self.weights.values())
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
    """Opens the files and says what they make; reads no weights but the small category table.

    Missing, unexpected and mis-shaped keys are in the report. Raises CheckpointError for a file
    that cannot be used, that is another component than its option says, or whose sizes contradict
    the checkpoint's.
    """
    if not files:
        raise CheckpointError(
            "no weight files were given; give a training checkpoint as --checkpoint"
        )
    checkpoint, components = _open(files)
    opened = [file for file in (checkpoint, *(c.file for c in components)) if file is not None]
    entries, notes = merge(checkpoint, components)
    heads = {name: number for component in components for name, number in component.heads.items()}
    config = _config(checkpoint, entries, heads)
    try:
        model = empty_model(config, clip_text_tower=clip_text_tower)
    except (
        ValueError,
        TypeError,
        AssertionError,
        ArithmeticError,
        LookupError,
        RuntimeError,
    ) as error:
        names = _joined(file.path for file in opened)
        raise CheckpointError(f"{names}: its sizes make no model ({reason_of(error)})") from None

    entries, table_notes = with_table(entries, config)
    wanted = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    keys = compare_keys(entries, wanted, config)
    weights: dict[Component, Path] = {"checkpoint": files.checkpoint} if files.checkpoint else {}
    weights |= {c.component: c.file.path for c in components if c.file is not None}
    return Inspection(
        config=config,
        entries=entries,
        keys=keys,
        formats={str(file.path): _format(file) for file in opened},
        notes=(*notes, *table_notes),
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
    """(the tensors that the files have, by the model's key names, notes), a whole model or not.

    For training a model of `config`, which starts the rest at random; the category table is
    computed where a text tower is there. Raises CheckpointError for a file that cannot be used.
    """
    checkpoint, components = _open(files)
    entries, notes = merge(checkpoint, components)
    entries, table_notes = with_table(entries, config)
    notes += table_notes
    return entries, tuple(note for note in notes if checkpoint or "checkpoint has none" not in note)


def build_model(inspection: Inspection, *, clip_text_tower: bool = False) -> RISModel:
    """The model of an inspection whose keys fit; what the files may lack is zeros.

    Raises CheckpointError as `Inspection.require_finite`.
    """
    inspection.require_finite()
    model = empty_model(inspection.config, clip_text_tower=clip_text_tower).requires_grad_(False)
    state = {}
    for key, value in model.state_dict().items():
        entry = inspection.entries.get(key)
        state[key] = torch.zeros(value.shape) if entry is None else entry.read()
    model.load_state_dict(state, assign=True)
    return model


def _open(files: WeightFiles) -> tuple[WeightFile | None, list[ComponentWeights]]:
    checkpoint = open_checkpoint(files.checkpoint) if files.checkpoint else None
    given: dict[Component, Path | None] = {"sam": files.sam, "clip": files.clip, "bert": files.bert}
    return checkpoint, [OPENERS[name](path) for name, path in given.items() if path is not None]


def _config(
    checkpoint: WeightFile | None, entries: dict[str, Entry], heads: dict[str, int]
) -> ModelConfig:
    """The configuration that the checkpoint carries, or the one read off the shapes."""
    if checkpoint is None:
        return derive_config(shapes_of(entries), heads)
    if checkpoint.config is None:
        try:
            return derive_config(shapes_of(entries), heads)
        except CheckpointError as error:
            raise CheckpointError(f"{checkpoint.path}: {error}") from None
    config = check_given_config(checkpoint.config, checkpoint.path)
    name = preset_name(config)
    keeps_its_name = name == "custom" and config.preset not in PRESETS
    return config if keeps_its_name else replace(config, preset=name)


def _parts(entries: dict[str, Entry], keys: KeyReport) -> tuple[Part, ...]:
    """Per module, in the order of the model, how many tensors each file gives."""
    parts: dict[str, Counter[str]] = {}
    for key in keys.loaded:
        parts.setdefault(module_of(key), Counter())[entries[key].file.name] += 1
    return tuple(Part(module, dict(files)) for module, files in parts.items())


def _format(file: WeightFile) -> str:
    beside = (
        f"; beside the weights, not read: {', '.join(map(echoed, file.beside))}"
        if file.beside
        else ""
    )
    return f"{file.format}, {len(file.entries)} tensors{beside}"


def _joined(paths: Iterable[Path]) -> str:
    return " with ".join(map(str, paths))
