"""How batches get from their files to the training step: worker processes, shared memory, devices.

Workers hand batches over in shared memory, /dev/shm. Where that is too small, as in a container
without `--shm-size`, a worker would die or wait for ever; batches then go through pipes, which are
copied and slower.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ris.engines.errors import RisError

if TYPE_CHECKING:
    from ris.training.features import FeatureStore

SHARED = Path("/dev/shm")
"""Where shared memory is."""

AHEAD = 2
"""Batches that each worker makes ahead."""


def say_aside(sentence: str) -> None:
    """Prints a note for people."""
    click.echo(f"Note: {sentence}", err=True)


@dataclass(frozen=True)
class Loading:
    """How the batches of a run are made, and which of them."""

    workers: int = 1
    """Processes that make batches; 0: they are made here, one by one."""

    rank: int = 0
    """The number of this process among those that train together."""

    processes: int = 1
    """How many train together."""

    parts: int = 1
    """Each batch of the source is cut by images into this many groups (drawn scenes)."""

    unknown_words: float = 0.0
    """The share of expressions that get an unknown word (`data.hide_words`)."""

    features: FeatureStore | None = None
    """Where the frozen encoders' outputs are kept; None: images are always read."""

    pinned: bool = False
    """Whether batches come in page-locked memory, from which a GPU copies by itself."""

    pipes: bool = False
    """Whether workers hand batches over in pipes in place of shared memory."""

    say: Callable[[str], None] = say_aside
    """Gets a sentence where `workers` or `pipes` are not what was asked for."""

    def own(self, groups: int) -> list[int]:
        """The numbers of this process's groups of a step, ascending.

        groups: those of the source; each is cut into `parts`.

        Raises RisError where they cannot be dealt evenly.
        """
        total = groups * self.parts
        if total % self.processes:
            raise RisError(
                f"{self.processes} processes cannot share the {total} groups of a step evenly; take"
                f" a number that divides {total}, or a recipe with more samples"
            )
        return list(range(self.rank, total, self.processes))

    def fitting(self, batch_bytes: int, shared: Path = SHARED) -> Loading:
        """The same with pipes, or without workers, where shared memory does not suffice.

        Args:
            batch_bytes: Bytes of one batch.
            shared: The folder of shared memory.
        """
        if not self.workers or self.pipes:
            return self
        try:
            free = shutil.disk_usage(shared).free
        except OSError:
            self.say(f"there is no {shared}: batches are made in this process, which is slower")
            return replace(self, workers=0)
        # made ahead by each worker, one being made, and one in use
        needed = batch_bytes * (self.workers * (AHEAD + 1) + 1) * self.processes
        if free >= needed:
            return self
        self.say(
            f"{shared} has {free / 2**20:.0f} MB free and {self.workers} workers need"
            f" {needed / 2**20:.0f} MB: batches go through pipes, which is slower. In a container,"
            f" --shm-size {-(-needed // 2**30) + 1}g gives it more"
        )
        return replace(self, pipes=True)


def leave_signals(number: int) -> None:
    """What a worker begins with: Ctrl-C is for the process that trains, which ends its workers.

    number: the worker's.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
