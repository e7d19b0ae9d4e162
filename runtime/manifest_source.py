"""What a bundle was made from, as its manifest says it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ris.runtime.manifest_kinds import Name


@dataclass(frozen=True)
class ComponentFile:
    """A weight file that was given beside the checkpoint."""

    component: Name
    """The part of the model that it has weights for, as its family names it."""

    file: str
    """Its name, without a folder."""

    sha256: str
    """Its hash."""


@dataclass(frozen=True)
class Published:
    """The published model that a bundle was made from by name (`ris.runtime.hub`)."""

    name: str
    """Its name in the table of models."""

    repository: str | None
    """The repository of its weights on a Hub, None where it has none."""

    commit: str | None
    """The commit of that repository, None where it has none."""

    verified: bool | None = None
    """Whether every file is the published one, by its hash or the Hub's; False where no hash of one
    is known. None where that is not said. May be absent."""


@dataclass(frozen=True)
class Source:
    """What the bundle was made from."""

    kind: Literal["deterministic", "checkpoint"]
    """Made-up weights, or a checkpoint's."""

    trained: bool
    """False where the masks mean nothing."""

    seed: int | None
    """The seed of made-up weights, None for a checkpoint."""

    checkpoint: str | None
    """The name of the checkpoint's file, None for made-up weights."""

    checkpoint_sha256: str | None
    """Its hash, None for made-up weights."""

    components: tuple[ComponentFile, ...] = ()
    """Further weight files. May be absent."""

    published: Published | None = None
    """What it is known as, None where it was not exported by name. May be absent."""
