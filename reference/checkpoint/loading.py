"""From weight files to the reference model: what they make, what is missing, the model itself.

`ris.reference.checkpoint.merging` has the rule for several files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, reason_of
from ris.reference.checkpoint.entries import Entry, shapes_of
from ris.reference.checkpoint.files import WeightFile
from ris.reference.checkpoint.finite import require_finite
from ris.reference.checkpoint.keys import KeyReport, compare_keys
from ris.reference.checkpoint.layouts import (
    OPENERS,
    OPTIONS,
    Component,
    ComponentWeights,
    open_checkpoint,
)
from ris.reference.checkpoint.merging import merge
from ris.reference.families import DEFAULT, family_named
from ris.reference.family import Family


@dataclass(frozen=True)
class WeightFiles:
    """The files that a model is put together from; each may be None. False without any."""

    checkpoint: Path | None = None
    """The training checkpoint: a file, the index of several, or the folder that holds either."""

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

    family: Family[Any, Any]
    """The family that the model is of."""

    config: Any
    """The model's configuration, of the family's own kind."""

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
    """The weight files by component; of several files of one their index."""

    vocabulary: Path | None
    """The vocabulary of the --bert folder, or the one beside the checkpoint; None without any."""

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
        modules = {self.keys.rules.module_of(key) for key in self.keys.missing}
        return [
            f"{module}: {option} would bring it"
            for module, option in self.family.brings.items()
            if module in modules
        ]


def inspect(
    files: WeightFiles,
    family: str | None = None,
    only: str | None = None,
    chosen: Mapping[str, str] | None = None,
    **options: bool,
) -> Inspection:
    """Opens the files and says what they make; reads no weights but a few small ones.

    Args:
        files: The files.
        family: The name of the family that the checkpoint is to be taken for; None: what its keys
            say.
        only: The name of the one family that is of use; None: any is.
        chosen: What a person chose of the family's `choices`, by field; None for nothing.
        options: How the model is built, as of the family's `empty_model`.

    Returns:
        What was found. Missing, unexpected and mis-shaped keys are in its report.

    Raises:
        CheckpointError: For a file that cannot be used, that is of another family than `only` or
            another component than its option says, or whose sizes contradict the checkpoint's;
            for a choice that the family does not have.
    """
    if not files:
        raise CheckpointError(
            "no weight files were given; give a training checkpoint as --checkpoint"
        )
    opened = _open(files, family, only)
    entries, notes = _merged(opened)
    config = opened.family.choose(_config(opened, entries), chosen or {})
    names = _joined(file.path for file in opened.files)
    try:
        model = opened.family.empty_model(config, **options)
    except (
        ValueError,
        TypeError,
        AssertionError,
        ArithmeticError,
        LookupError,
        RuntimeError,
    ) as error:
        raise CheckpointError(f"{names}: its sizes make no model ({reason_of(error)})") from None

    entries, more_notes = opened.family.complete(entries, config)
    state = model.state_dict()
    keys = compare_keys(
        entries,
        {key: tuple(value.shape) for key, value in state.items()},
        opened.family.key_rules(config),
        {key: value.dtype for key, value in state.items()},
    )
    whole = opened.checkpoint
    weights: dict[Component, Path] = {} if whole is None else {"checkpoint": whole.path}
    weights |= {c.component: c.file.path for c in opened.components if c.file is not None}
    return Inspection(
        family=opened.family,
        config=config,
        entries=entries,
        keys=keys,
        formats={str(file.path): _format(file) for file in opened.files},
        notes=(*notes, *more_notes),
        parts=_parts(entries, keys),
        weights=weights,
        vocabulary=opened.vocabulary(),
        carried_config=whole is not None and whole.config is not None,
    )


def load_model(
    files: WeightFiles,
    family: str | None = None,
    chosen: Mapping[str, str] | None = None,
    **options: bool,
) -> tuple[Any, Inspection]:
    """The reference model with the weights of the files: float32, eval mode, no gradients.

    Tensors that a file holds as float32 stay memory-mapped, the others are converted one at a time,
    so there is never more than one copy of the weights and the largest tensor. The files must stay
    as they are while the model lives.

    Args:
        files: The files.
        family: As of `inspect`.
        chosen: As of `inspect`.
        options: As of `inspect`.

    Returns:
        The family's model, and what was found.

    Raises:
        CheckpointError: As `inspect` does, and for keys that are missing, unexpected or of another
            shape, all at once.
    """
    inspection = inspect(files, family, None, chosen, **options)
    inspection.require()
    return build_model(inspection, (), **options), inspection


def partial_weights(
    files: WeightFiles, config: Any, family: str
) -> tuple[dict[str, Entry], tuple[str, ...]]:
    """The tensors that the files have, a whole model or not, for training what starts without.

    Args:
        files: The files.
        config: The configuration of the model.
        family: The name of its family.

    Returns:
        The tensors by the model's key names, computed ones among them, and notes.

    Raises:
        CheckpointError: For a file that cannot be used, and a checkpoint of another family.
    """
    opened = _open(files, only=family)
    entries, notes = _merged(opened)
    entries, more_notes = opened.family.complete(entries, config)
    notes += more_notes
    is_whole = opened.checkpoint is not None
    return entries, tuple(note for note in notes if is_whole or "checkpoint has none" not in note)


def build_model(inspection: Inspection, without: Collection[str] = (), **options: bool) -> Any:
    """The model of an inspection whose keys fit; what the files may lack is zeros.

    Args:
        inspection: The inspection.
        without: The keys of weights that are not read; they stay on the meta device.
        options: As of `inspect`.

    Raises:
        CheckpointError: As `Inspection.require_finite`.
    """
    inspection.require_finite()
    model = inspection.family.empty_model(inspection.config, **options).requires_grad_(False)
    state = {}
    for key, value in model.state_dict().items():
        if key in without:
            continue
        entry = inspection.entries.get(key)
        found = torch.zeros(value.shape) if entry is None else entry.read()
        state[key] = found.to(value.dtype)  # itself, but for integers of another size
    model.load_state_dict(state, assign=True, strict=not without)
    return model


@dataclass(frozen=True)
class _Opened:
    """The files, open, and the family that they are of."""

    family: Family[Any, Any]
    """The family."""

    checkpoint: WeightFile | None
    """The training checkpoint; None without one."""

    components: tuple[ComponentWeights, ...]
    """The component files."""

    @property
    def files(self) -> list[WeightFile]:
        """All files that have weights."""
        opened = (self.checkpoint, *(component.file for component in self.components))
        return [file for file in opened if file is not None]

    def vocabulary(self) -> Path | None:
        """That of a component, or the one beside the checkpoint; None where there is neither."""
        of_parts = next((c.vocabulary for c in self.components if c.vocabulary), None)
        if of_parts is not None or self.checkpoint is None:
            return of_parts
        return self.family.vocabulary_beside(self.checkpoint.path)


def _open(files: WeightFiles, family: str | None = None, only: str | None = None) -> _Opened:
    """The files, and the family that they are of: the first where no checkpoint says which.

    Args:
        files: The files.
        family: As of `inspect`.
        only: As of `inspect`.

    Raises:
        CheckpointError: For a file that cannot be used, and for a component that the family does
            not have.
    """
    if files.checkpoint:
        checkpoint, found = open_checkpoint(files.checkpoint, family)
    else:
        checkpoint, found = None, family_named(family or only or DEFAULT)
    if only not in (None, found.name):
        raise CheckpointError(
            f"{files.checkpoint} is a checkpoint of the family {found.name}; expected one of {only}"
        )
    given: dict[Component, Path | None] = {"sam": files.sam, "clip": files.clip, "bert": files.bert}
    components = []
    for name, path in given.items():
        if path is None:
            continue
        if name not in found.components:
            raise CheckpointError(
                f"a model of the family {found.name} has no part that {OPTIONS[name]} could give;"
                " leave it out"
            )
        components.append(OPENERS[name](path, found.components[name]))
    return _Opened(found, checkpoint, tuple(components))


def _merged(opened: _Opened) -> tuple[dict[str, Entry], list[str]]:
    """The tensors of all files by the model's key names, and notes on what was done."""
    family = opened.family
    # the modules' names do not depend on the configuration
    rules = family.key_rules(next(iter(family.presets.values())))
    return merge(opened.checkpoint, opened.components, family.shared_parts(), rules.module_of)


def _config(opened: _Opened, entries: dict[str, Entry]) -> Any:
    """The configuration that the checkpoint carries, or the one read off the shapes."""
    family, checkpoint = opened.family, opened.checkpoint
    heads = {name: number for part in opened.components for name, number in part.heads.items()}
    if checkpoint is not None and checkpoint.config is not None:
        return family.carried_config(checkpoint.config, checkpoint.path)
    try:
        derived = family.derive_config(shapes_of(entries), heads)
        return family.settle(derived, None if checkpoint is None else checkpoint.folder)
    except CheckpointError as error:
        if checkpoint is None:
            raise
        raise CheckpointError(f"{checkpoint.path}: {error}") from None


def _parts(entries: dict[str, Entry], keys: KeyReport) -> tuple[Part, ...]:
    """Per module, in the order of the model, how many tensors each file gives."""
    parts: dict[str, Counter[str]] = {}
    for key in keys.loaded:
        parts.setdefault(keys.rules.module_of(key), Counter())[entries[key].file.name] += 1
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
