"""The most bytes that files of some folders take while a block runs."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_SHRINKS = {"os.remove", "os.rename", "os.truncate", "shutil.rmtree"}
"""Events behind which there may be less; between two of them there is only more."""


@dataclass
class DiskUse:
    """What was found."""

    folders: tuple[Path, ...]
    """Where it is looked."""

    peak: int = 0
    """The most bytes at once."""

    at: dict[str, int] = field(default_factory=dict)
    """The files there were then, by their names, with their bytes."""

    def look(self) -> None:
        """Counts every file once, whatever names it has."""
        found: dict[tuple[int, int], tuple[str, int]] = {}
        for folder in self.folders:
            for here, _, names in os.walk(folder):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):
                        about = os.stat(os.path.join(here, name))
                        found[about.st_dev, about.st_ino] = f"{here}/{name}", about.st_size
        if (total := sum(size for _, size in found.values())) > self.peak:
            self.peak, self.at = total, dict(found.values())


_watching: list[DiskUse] = []


@contextlib.contextmanager
def watched(*folders: Path) -> Iterator[DiskUse]:
    """Looks whenever something is about to be removed, so that nothing goes unseen."""
    if not _hooked:
        sys.addaudithook(_look)  # for the rest of the process
        _hooked.append(True)
    use = DiskUse(folders)
    _watching.append(use)
    try:
        yield use
        use.look()
    finally:
        _watching.remove(use)


_hooked: list[bool] = []


def _look(event: str, arguments: tuple[object, ...]) -> None:
    if _watching and (event in _SHRINKS or (event == "open" and "w" in str(arguments[1]))):
        for use in _watching:
            use.look()
