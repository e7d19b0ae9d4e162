"""What a calibration has found so far, on disk, so that the same command goes on where a stopped
one ended.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError

_SETUP = "setup.json"
_JOURNAL = "journal.jsonl"


class Work:
    """A folder of results, each written whole or not at all. For one process at a time.

    setup: everything that the results depend on; those of another setup are thrown away
    (`restarted`).
    """

    def __init__(self, folder: Path, setup: dict[str, Any]) -> None:
        """Raises RisError where the folder cannot be made, or is none of ours."""
        self.folder = folder
        self._known: dict[str, Any] = {}
        self.restarted = False
        text = json.dumps(setup, indent=1, sort_keys=True)
        try:
            if folder.exists() and not (folder / _SETUP).is_file() and any(folder.iterdir()):
                raise RisError(
                    f"{folder} is in the way, and was not made by ris-calibrate; move it, or choose"
                    " another --out"
                )
            if (
                folder.exists()
                and (folder / _SETUP).exists()
                and (folder / _SETUP).read_text("utf-8") != text
            ):
                shutil.rmtree(folder)
                self.restarted = True
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _SETUP).write_text(text, encoding="utf-8")
            self._read_journal()
        except OSError as error:
            raise RisError(f"{folder} cannot be written: {error.strerror or error}") from None

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
            path.write_text("".join(whole), encoding="utf-8")

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
        self._known[key] = json.loads(json.dumps(value))

    def save_arrays(self, name: str, arrays: dict[str, NDArray[Any]]) -> None:
        """Keeps arrays, in place of those that had this name."""
        temporary = self.folder / f"{name}.part"
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, self.folder / f"{name}.npz")

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
