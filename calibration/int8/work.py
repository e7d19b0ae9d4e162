"""What a calibration has found so far, on disk: the same command goes on where one was stopped."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.engines.temporary import clear_folder, write_atomically

_SETUP = "setup.json"
_JOURNAL = "journal.jsonl"


class Work:
    """A folder of results, each written whole or not at all. For one process at a time."""

    folder: Path
    """The folder."""

    restarted: bool
    """Whether results of another setup were thrown away."""

    def __init__(self, folder: Path, setup: dict[str, Any]) -> None:
        """Opens the folder, or makes it.

        setup: everything that the results depend on; those of another setup are thrown away.
        Raises RisError where the folder cannot be made, or was made by something else.
        """
        self.folder = folder
        self.restarted = False
        self._known: dict[str, Any] = {}
        try:
            self._open(json.dumps(setup, indent=1, sort_keys=True))
            self._read_journal()
        except OSError as error:
            raise RisError(f"{folder} cannot be written: {error.strerror or error}") from None

    def _open(self, setup: str) -> None:
        file = self.folder / _SETUP
        if self.folder.exists() and not file.is_file() and any(self.folder.iterdir()):
            raise RisError(
                f"{self.folder} is in the way, and was not made by ris-calibrate; move it, or"
                " choose another --out"
            )
        if file.exists() and file.read_text("utf-8") != setup:
            shutil.rmtree(self.folder)
            self.restarted = True
        self.folder.mkdir(parents=True, exist_ok=True)
        clear_folder(self.folder)
        write_atomically(file, lambda target: target.write(setup.encode()))

    def _read_journal(self) -> None:
        path = self.folder / _JOURNAL
        if not path.exists():
            return
        lines = path.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        for line in whole:
            key, value = json.loads(line)
            self._known[key] = value
        if len(whole) < len(lines):  # killed while it wrote
            write_atomically(path, lambda target: target.write("".join(whole).encode()))

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        return self._known[key]

    def __len__(self) -> int:
        return len(self._known)

    def put(self, key: str, value: Any) -> None:
        """Keeps a result that JSON can hold."""
        with (self.folder / _JOURNAL).open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # as a later run will read it
        self._known[key] = json.loads(json.dumps(value))

    def save_arrays(self, name: str, arrays: dict[str, NDArray[Any]]) -> None:
        """Keeps arrays, in place of those that had this name."""
        write_atomically(
            self.folder / f"{name}.npz",
            lambda file: np.savez(file, **arrays),  # type: ignore[arg-type]
        )

    def load_arrays(self, name: str) -> dict[str, NDArray[Any]]:
        """The arrays of that name; empty where there are none."""
        try:
            with np.load(self.folder / f"{name}.npz", allow_pickle=False) as found:
                return dict(found)
        except FileNotFoundError:
            return {}

    def remove(self) -> None:
        """Throws everything away."""
        shutil.rmtree(self.folder, ignore_errors=True)
