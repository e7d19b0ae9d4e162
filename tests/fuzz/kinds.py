"""The kinds of input: which module makes and reads each, in which process, and how many of them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONTROL_EVERY = 16
"""Of so many inputs of a kind one is not mutated; what its door gives is compared."""

MODULES = {
    "picture": ("fuzz.pictures", "light"),
    "requests": ("fuzz.lines", "light"),
    "evaluation": ("fuzz.lines", "light"),
    "refer": ("fuzz.refer", "light"),
    "bundle": ("fuzz.bundles", "light"),
    "names": ("fuzz.names", "light"),
    "shard": ("fuzz.tables", "tables"),
    "parquet": ("fuzz.tables", "tables"),
    "weights": ("fuzz.weights", "weights"),
    "rounded": ("fuzz.rounded", "weights"),
    "model": ("fuzz.models", "model"),
    "broken": ("fuzz.broken", "broken"),
}
"""First word of a kind -> its module, and the processes that import it: each group has its own, so
that nobody pays for PyTorch who does without."""

SHARES = {
    "picture-jpeg": 1000,
    "picture-png": 1200,
    "picture-webp": 500,
    "picture-avif": 300,
    "picture-gif": 400,
    "picture-tiff": 1000,
    "picture-bmp": 400,
    "picture-dds": 300,
    "picture-jpeg2000": 300,
    "picture-other": 1000,
    "requests-jsonl": 500,
    "evaluation-jsonl": 500,
    "refer-pickle": 400,
    "refer-json": 400,
    "refer-training": 200,
    "refer-training-json": 200,
    "bundle-manifest": 600,
    "bundle-tokenizer": 250,
    "bundle-categories": 150,
    "bundle-golden": 150,
    "bundle-plan": 150,
    "names-table": 150,
    "shard-tar": 200,
    "parquet-table": 100,
    "weights-safetensors": 150,
    "weights-zip": 200,
    "weights-pickle": 150,
    "weights-torchscript": 50,
    "weights-model": 50,
    "rounded-safetensors": 100,
    "model-manifest": 50,
}
"""Kind -> its part of all inputs."""


@dataclass
class Input:
    """One input: files in a folder of their own."""

    files: dict[str, bytes]
    """Their contents by name; a name may have folders in it."""

    links: dict[str, Path] = field(default_factory=dict)
    """Links to large files that are not mutated, by name."""

    expected: Any = None
    """What the door gives for it, where it is a control; None where it was mutated."""

    def write(self, folder: Path) -> None:
        """Writes the files into an empty folder."""
        for name, content in self.files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
        for name, target in self.links.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.symlink_to(target)


class WrongAnswerError(Exception):
    """A door gave something that is not what it promises."""


def require(holds: bool, what: str) -> None:
    """Raises WrongAnswerError where it does not hold."""
    if not holds:
        raise WrongAnswerError(what)


@dataclass(frozen=True)
class Kind:
    """A kind of input."""

    make: Callable[[random.Random, bool], Input]
    """Makes one; True: a control."""

    door: Callable[[Path, Any], list[str]]
    """Reads the folder of one, compares with what is expected of a control, and returns the
    sentences of what it had to leave out. Raises RisError where it refuses the whole."""


def module_of(kind: str) -> str:
    """The module of a kind."""
    return MODULES[kind.partition("-")[0]][0]


def group_of(kind: str) -> str:
    """The group of processes that a kind runs in."""
    return MODULES[kind.partition("-")[0]][1]


def load_kind(name: str) -> Kind:
    """The kind of this name; imports what its door needs."""
    found: Kind = importlib.import_module(module_of(name)).KINDS[name]
    return found


def make_input(name: str, seed: int, number: int) -> Input:
    """Input `number` of a kind: the same files whenever it is made."""
    rng = random.Random(f"{seed} {name} {number}")
    return load_kind(name).make(rng, number % CONTROL_EVERY == 0)


def plan(count: int, kinds: list[str]) -> list[tuple[str, int]]:
    """(kind, number) of `count` inputs, shared out by `SHARES`, each kind at least one."""
    whole = sum(SHARES[kind] for kind in kinds)
    wanted = {kind: max(1, round(count * SHARES[kind] / whole)) for kind in kinds}
    groups = sorted(
        kinds, key=lambda kind: list(dict.fromkeys(map(group_of, SHARES))).index(group_of(kind))
    )
    return [(kind, number) for kind in groups for number in range(wanted[kind])]
