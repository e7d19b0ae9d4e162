"""What `ris-train` is told, as far as it is not the recipe."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ris.data.datasets import DATASETS
from ris.engines.errors import RisError

SCENES = "scenes"
"""The name of the drawn scenes among the data."""

TRACKERS = ("csv", "tensorboard", "wandb")
"""Where a run's figures may go besides its own log. All but "csv" are packages of that name."""

BY_CATEGORY = ("refcoco", "refcoco+", "refcocog")
"""The data sets whose models ask by category unless told otherwise, as the paper's do."""


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    mix: tuple[tuple[str, float], ...] = ((SCENES, 1.0),)
    """Data sets by name, or paths of JSONL files, and the share of the samples from each, up to a
    common factor; or `SCENES` alone."""

    root: Path | None = None
    """The folder of the data sets' files; None for scenes and JSONL files."""

    images: Path | None = None
    """The folder of COCO's images; None: looked for below `root`."""

    validation: str | None = None
    """A data set, with or without a split (NAME:SPLIT), or a JSONL file to validate on; None: see
    `validates_on`."""

    validation_samples: int = 500
    """How many of its expressions are asked, always the same ones."""

    protocol: str | None = None
    """The published evaluator that counts them; None: the one that the data set's papers use."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names alone."""
        return tuple(name for name, _ in self.mix)

    @property
    def drawn(self) -> bool:
        """Whether these are the drawn scenes."""
        return SCENES in self.names

    @property
    def validates_on(self) -> str | None:
        """A data set, or a JSONL file; None: sentences held out.

        Without `validation` the first published set of the mix.
        """
        if self.validation is None:
            return next((name for name in self.names if name in DATASETS), None)
        return _name_and_split(self.validation)[0]

    @property
    def validation_split(self) -> str:
        """The split of the data set to validate on: val, unless `validation` names another."""
        return _name_and_split(self.validation or "")[1]

    @property
    def variant(self) -> str:
        """The variant that is meant for this data."""
        return "category" if all(name in BY_CATEGORY for name in self.names) else "cls"

    def check(self) -> None:
        """Raises RisError where a folder is missing, or belongs to other data."""
        if self.drawn and len(self.mix) > 1:
            raise RisError("--data scenes cannot be mixed with other data")
        if self.drawn and (self.root or self.images or self.validation or self.protocol):
            raise RisError(
                "--root, --images, --validation and --protocol belong to data sets, --data scenes"
                " draws its own images"
            )
        if self.protocol and self.validates_on not in DATASETS:
            raise RisError(
                "--protocol counts published data sets; a JSONL file is counted at the model's"
                " square"
            )
        for name in (*self.names, self.validates_on):
            if name in DATASETS and self.root is None:
                raise RisError(f"--data {name} needs --root, the folder of its files")


def _name_and_split(validation: str) -> tuple[str, str]:
    """What `--validation` names, and the split: NAME or, of a data set, NAME:SPLIT."""
    name, _, split = validation.partition(":")
    return (name, split or "val") if name in DATASETS else (validation, "val")


def parse_mix(values: Sequence[str]) -> tuple[tuple[str, float], ...]:
    """What `--data` was given, as names and weights: NAME, or NAME:WEIGHT.

    Raises RisError for a name that is none, and for a weight that is not above 0.
    """
    return tuple(_parse_one(value) for value in values)


def _parse_one(value: str) -> tuple[str, float]:
    name, colon, weight = value.rpartition(":")
    if not colon or (name not in DATASETS and not name.endswith(".jsonl")):
        name, weight = value, "1"
    if name != SCENES and name not in DATASETS and not name.endswith(".jsonl"):
        known = ", ".join((SCENES, *DATASETS))
        raise RisError(f"--data {value}: known are {known}, and .jsonl files")
    try:
        share = float(weight)
    except ValueError:
        share = 0.0
    if not 0 < share < math.inf:
        raise RisError(f"--data {value}: the weight is a number above 0, as in {name}:2")
    return name, share


@dataclass(frozen=True)
class ModelOptions:
    """Which model to train, and from what."""

    preset: str | None = None
    """The architecture, a key of `PRESETS`; None: the checkpoint's own."""

    variant: str | None = None
    """What the sparse branch asks with: "cls" or "category"; None: the checkpoint's own."""

    supplement: bool = False
    """Whether the architecture is the supplement's where it differs from the released code's."""

    vocabulary: Path | None = None
    """A vocab.txt or tokenizer.json; None: that of BERT's folder, or else the preset's."""

    files: Mapping[str, Path | None] = field(default_factory=dict)
    """The weight files to start from, by the field names of `WeightFiles`."""

    random_encoders: bool = False
    """Whether SAM, CLIP and BERT may start at random where the recipe begins with trained ones."""


@dataclass(frozen=True)
class HardwareOptions:
    """What to compute with."""

    device: str = "cpu"
    """A device's name in PyTorch; where several processes run, "cuda" is a device for each."""

    threads: int | None = None
    """CPU threads; None: as many as PyTorch takes, or a container's quota."""

    workers: int = 1
    """Processes that make batches."""

    fewer_activations: bool = False
    """Gradient checkpointing: activations are computed anew on the way back, to save memory."""


@dataclass(frozen=True)
class RunOptions:
    """How a run is kept and watched; nothing of it changes what is learnt."""

    features: Path | None = None
    """The folder of the frozen encoders' outputs; None stores nothing."""

    keep: int = 2
    """States that are kept, the newest ones."""

    metric: str | None = None
    """The figure of the validation that says which weights are best; None: the data's usual one."""

    trackers: tuple[str, ...] = ("csv", "tensorboard")
    """Where figures go besides the run's own log: some of `TRACKERS`."""

    def check(self) -> None:
        """Raises RisError for a tracker whose package is not installed."""
        for name in self.trackers:
            if importlib.util.find_spec(name) is None:
                raise RisError(f"--log {name} needs {name}: pip install {name}")
