"""Where a run's figures go besides its own log: TensorBoard, a CSV file, Weights & Biases.

TensorBoard's and W&B's trackers are Accelerate's own; it has none for CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from numpy.typing import NDArray

from ris.engines.temporary import write_atomically
from ris.runtime.commands.console import without_nan
from ris.training.run_folder import Progress

CSV = "log.csv"
"""The CSV file: a line for each of the log's, a column for each figure."""


class CsvTracker(GeneralTracker):
    """A CSV file. What comes again after a resumed step replaces what was there.

    Args:
        path: The file.
        step: Lines about later steps are dropped.
    """

    name = "csv"
    requires_logging_directory = False

    def __init__(self, path: Path, step: int) -> None:
        super().__init__()
        self.path, self.columns = path, ["step"]
        self.rows: list[dict[str, Any]] = []
        if path.exists():
            with path.open(encoding="utf-8", newline="") as file:
                rows = list(csv.DictReader(file))
            self.rows = [row for row in rows if row["step"].isdigit() and int(row["step"]) <= step]
        self._seen(self.rows)
        if path.exists():
            self._rewrite()

    @property
    def tracker(self) -> Path:
        return self.path

    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        """Adds a line; a figure that none had so far adds a column to all.

        A figure that is not finite leaves its field empty.
        """
        row = {"step": step, **without_nan(values)}
        self.rows.append(row)
        if self._seen([row]) or not self.path.exists():
            self._rewrite()
            return
        with self.path.open("a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def _seen(self, rows: Sequence[dict[str, Any]]) -> bool:
        """Takes up the rows' columns; returns whether there are new ones."""
        before = len(self.columns)
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        return len(self.columns) > before

    def _rewrite(self) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.path, lambda file: file.write(text.getvalue().encode()))


def start_trackers(
    accelerator: Accelerator, names: Sequence[str], folder: Path, step: int, config: dict[str, Any]
) -> None:
    """Opens the trackers; the main process alone writes.

    Args:
        accelerator: The run's.
        names: Keys of `options.TRACKERS`.
        folder: The run's folder.
        step: The steps done; TensorBoard and CSV drop what is there about later ones.
        config: What the run does, for W&B.
    """
    if not accelerator.is_main_process:
        return
    trackers: list[Any] = []
    if "csv" in names:
        trackers.append(CsvTracker(folder / CSV, step))
    if "tensorboard" in names:
        from accelerate.tracking import TensorBoardTracker

        trackers.append(TensorBoardTracker("tensorboard", folder, purge_step=step + 1))
    if "wandb" in names:
        from accelerate.tracking import WandBTracker

        trackers.append(WandBTracker("ris-train", dir=str(folder), name=folder.name, config=config))
    for tracker in trackers:
        tracker.start()
    accelerator.trackers = trackers


def log_progress(accelerator: Accelerator, line: Progress) -> None:
    """A line of the log as figures by name."""
    values: dict[str, Any] = {f"loss/{name}": value for name, value in line.losses.items()}
    values |= {"loss": sum(line.losses.values()), "rate": line.rate, "skipped": line.skipped}
    if line.norm is not None:
        values["norm"] = line.norm
    for kind, figures in (line.validation or {}).items():
        values |= {f"validation/{kind}/{name}": value for name, value in figures.items()}
    accelerator.log(values, step=line.step)


def log_picture(accelerator: Accelerator, picture: NDArray[np.uint8], step: int) -> None:
    """A picture, uint8 RGB [H, W, 3], for the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"answers": picture[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"answers": [picture]}, step=step)
