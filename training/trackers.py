"""Where a run's figures go besides its own log: TensorBoard, a CSV file, Weights & Biases.

TensorBoard's and W&B's trackers are Accelerate's own; it has none for CSV.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import GeneralTracker
from numpy.typing import NDArray

from ris.engines.base import first_line
from ris.engines.errors import RisError
from ris.engines.temporary import write_atomically
from ris.runtime.commands.console import without_nan
from ris.training.run_folder import Progress

Note = Callable[[str], None]
"""Called with a sentence about a tracker that is left out from there on."""

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

    Raises:
        RisError: Where one cannot begin, as W&B without a login.
    """
    if not accelerator.is_main_process:
        return
    for name in dict.fromkeys(names):
        try:
            tracker = _tracker(name, folder, step, config)
            tracker.start()
        except Exception as error:  # whatever the package raises
            finish_trackers(accelerator, lambda sentence: None)  # the reason is the other's
            raise RisError(f"--log {name} cannot begin: {first_line(error)}") from error
        accelerator.trackers = [*accelerator.trackers, tracker]


def _tracker(name: str, folder: Path, step: int, config: dict[str, Any]) -> GeneralTracker:
    if name == "csv":
        return CsvTracker(folder / CSV, step)
    if name == "tensorboard":
        from accelerate.tracking import TensorBoardTracker

        return TensorBoardTracker("tensorboard", folder, purge_step=step + 1)
    from accelerate.tracking import WandBTracker

    return WandBTracker("ris-train", dir=str(folder), name=folder.name, config=config)


def log_progress(accelerator: Accelerator, line: Progress, note: Note) -> None:
    """A line of the log as figures by name."""
    values: dict[str, Any] = {f"loss/{name}": value for name, value in line.losses.items()}
    values |= {"loss": sum(line.losses.values()), "rate": line.rate, "skipped": line.skipped}
    if line.norm is not None:
        values["norm"] = line.norm
    for kind, figures in (line.validation or {}).items():
        values |= {f"validation/{kind}/{name}": value for name, value in figures.items()}
    _each(accelerator, lambda tracker: tracker.log(values, step=line.step), note)


def log_picture(
    accelerator: Accelerator, picture: NDArray[np.uint8], step: int, note: Note
) -> None:
    """A picture for the trackers that show pictures.

    Args:
        accelerator: The run's.
        picture: uint8 RGB [H, W, 3].
        step: The steps done.
        note: As of `_each`.
    """

    def show(tracker: GeneralTracker) -> None:
        if tracker.name == "tensorboard":
            tracker.log_images({"answers": picture[None]}, step=step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"answers": [picture]}, step=step)

    _each(accelerator, show, note)


def finish_trackers(accelerator: Accelerator, note: Note) -> None:
    """Closes the trackers; there are none afterwards."""
    _each(accelerator, lambda tracker: tracker.finish(), note)
    accelerator.trackers = []


def _each(accelerator: Accelerator, act: Callable[[Any], object], note: Note) -> None:
    """Does it with each tracker. No run ends for one that fails: it is left out from there on."""
    for tracker in [*accelerator.trackers]:
        try:
            act(tracker)
        except Exception as error:  # whatever the package raises
            accelerator.trackers = [one for one in accelerator.trackers if one is not tracker]
            note(f"--log {tracker.name} ends here, the run goes on: {first_line(error)}")
