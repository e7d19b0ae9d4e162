"""What an evaluation found, expression by expression, in memory and in a folder that a stopped one
goes on from.

run.json says what was evaluated on what; results.jsonl has a line an image, written when all of it
is answered.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ris.engines.errors import RisError
from ris.evaluation.metrics import Figures

SETUP, RESULTS = "run.json", "results.jsonl"


@dataclass(frozen=True)
class Swapped:
    """The expression with left and right swapped: its figures, and how many pixels its mask shares
    with the other.
    """

    expression: str
    intersection: int
    predicted: int
    truth: int
    shared: int


@dataclass(frozen=True)
class Answered:
    """One expression. kind: what sort it is, for tables; the pixel counts as in `Figures`;
    no_target: that head's probability, None without one; mask, truth_mask: run-length codes
    (COCO's, compressed) at the size of the comparison, height and width."""

    expression: str
    kind: str
    targeted: bool
    intersection: int
    predicted: int
    truth: int
    no_target: float | None
    height: int
    width: int
    mask: str
    truth_mask: str
    swapped: Swapped | None = None

    def refused(self, threshold: float) -> bool:
        return self.no_target is not None and self.no_target >= threshold


@dataclass(frozen=True)
class ImageResult:
    """All that was asked of one image."""

    image: str
    answers: tuple[Answered, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), separators=(",", ":"))

    def slim(self) -> ImageResult:
        """The same without the masks, which are nearly all of its size."""
        return ImageResult(
            self.image, tuple(replace(a, mask="", truth_mask="") for a in self.answers)
        )

    @classmethod
    def from_json(cls, line: str) -> ImageResult:
        """Raises ValueError, KeyError or TypeError for anything else."""
        data = json.loads(line)
        answers = (
            a | {"swapped": a["swapped"] and Swapped(**a["swapped"])} for a in data["answers"]
        )
        return cls(data["image"], tuple(Answered(**a) for a in answers))


def figures_of(answers: Sequence[Answered], threshold: float) -> Figures:
    """The figures of these answers, refused from this no-target probability on."""
    pixels = np.array([(a.intersection, a.predicted, a.truth) for a in answers], np.int64).reshape(
        -1, 3
    )
    return Figures(
        pixels[:, 0],
        pixels[:, 1],
        pixels[:, 2],
        np.array([a.refused(threshold) for a in answers], np.bool_),
        np.array([a.targeted for a in answers], np.bool_),
    )


class ResultsFolder:
    """The folder of one evaluation. Opened with what is to be evaluated; `done` is what it has
    already.
    """

    def __init__(self, path: Path, setup: dict[str, Any], restart: bool = False) -> None:
        """setup: everything that the results depend on, as JSON, and their "name" for people.
        Raises RisError where the folder has results of something else and `restart` is not
        given."""
        self.path = path
        self.done: dict[str, ImageResult] = {}
        self._file: TextIO | None = None
        setup = json.loads(json.dumps(setup))
        lines: list[str] = []
        if (path / SETUP).exists() and not restart:
            theirs = read_setup(path)
            for name in {**theirs, **setup}:
                if name != "name" and theirs.get(name) != setup.get(name):
                    raise RisError(
                        f"{path} has results of another evaluation ({name} was"
                        f" {theirs.get(name)!r}, now {setup.get(name)!r}); choose another --out, or"
                        " give --restart"
                    )
            lines = [result.to_json() + "\n" for result in read_results(path)]
        with self._writing():
            path.mkdir(parents=True, exist_ok=True)
            temporary = path / (RESULTS + ".part")
            temporary.write_text(
                "".join(lines), encoding="utf-8"
            )  # without a line that was cut off
            os.replace(temporary, path / RESULTS)
            (path / SETUP).write_text(json.dumps(setup, indent=1) + "\n", encoding="utf-8")
        self.done = {result.image: result.slim() for result in map(ImageResult.from_json, lines)}

    def add(self, result: ImageResult) -> None:
        """Raises RisError where the disk does not take it; the next run goes on from the line
        before.
        """
        with self._writing():
            if self._file is None:
                self._file = (self.path / RESULTS).open("a", encoding="utf-8")
            self._file.write(result.to_json() + "\n")
            self._file.flush()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RisError(f"{self.path} cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def read_setup(path: Path) -> dict[str, Any]:
    """What the results of a folder are of. Raises RisError where there is nothing."""
    try:
        found: dict[str, Any] = json.loads((path / SETUP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RisError(
            f"{path} is no folder of ris-eval --out: {SETUP} cannot be read ({error})"
        ) from error
    return found


def read_results(path: Path) -> Iterator[ImageResult]:
    """The results of a folder, as far as they were written; a last line that was cut off is left
    out.

    Raises RisError for a folder without results and for a damaged line before the last.
    """
    try:
        with (path / RESULTS).open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield ImageResult.from_json(line)
                except (ValueError, KeyError, TypeError) as error:
                    if line.endswith("\n"):
                        raise RisError(
                            f"{path / RESULTS}: line {number} is damaged; evaluate again"
                        ) from error
    except OSError as error:
        raise RisError(f"{path} has no results of ris-eval --out ({error.strerror})") from error
