"""What an evaluation found, expression by expression, in memory and in a folder.

An evaluation that was stopped goes on from its folder. run.json says what was evaluated on what;
results.jsonl has a line for each image, written when all its expressions are answered. An
evaluation on a benchmark has the answers alone, in predictions.jsonl (`answers`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from ris.engines.errors import RisError
from ris.engines.temporary import clear_folder, write_atomically
from ris.evaluation.metrics import Figures

SETUP, RESULTS, PREDICTIONS = "run.json", "results.jsonl", "predictions.jsonl"
"""The files of a folder: what was evaluated, and one of the two others."""


@dataclass(frozen=True)
class Swapped:
    """The answer to an expression with left and right swapped."""

    expression: str
    """The swapped text."""

    intersection: int
    """Pixels in both its mask and its truth."""

    predicted: int
    """Pixels of its mask."""

    truth: int
    """Pixels of its truth."""

    shared: int
    """Pixels in both its mask and the mask of the expression as it was."""


@dataclass(frozen=True)
class Answered:
    """One expression and how it was answered."""

    expression: str
    """The text."""

    kind: str
    """What sort of expression it is, for tables."""

    targeted: bool
    """Whether something is referred to."""

    intersection: int
    """Pixels in both mask and truth."""

    predicted: int
    """Pixels of the mask, whatever the no-target head says."""

    truth: int
    """Pixels of the truth."""

    no_target: float | None
    """The no-target head's probability; None for a model without that head."""

    height: int
    """Of the masks that were compared, pixels."""

    width: int
    """Of the masks that were compared, pixels."""

    mask: str
    """The mask as COCO's compressed run-length code; empty where it was left out."""

    truth_mask: str
    """The truth likewise."""

    swapped: Swapped | None = None
    """The answer to the expression with left and right swapped; None where that was not asked."""

    def refused(self, threshold: float) -> bool:
        """Whether the no-target head refuses the expression above this probability."""
        return self.no_target is not None and self.no_target > threshold


@dataclass(frozen=True)
class ImageResult:
    """All that was asked of one image."""

    image: str
    """The image's name."""

    answers: tuple[Answered, ...]
    """One for each expression, in order."""

    left_out: tuple[str, ...] = ()
    """A sentence for each expression that could not be asked."""

    def to_json(self) -> str:
        """One line, which `from_json` reads."""
        return json.dumps(asdict(self), separators=(",", ":"))

    def slim(self) -> ImageResult:
        """The same without the masks, which are nearly all of its size."""
        slim = tuple(replace(answer, mask="", truth_mask="") for answer in self.answers)
        return replace(self, answers=slim)

    @classmethod
    def from_json(cls, line: str) -> ImageResult:
        """The result that `to_json` wrote. ValueError, KeyError or TypeError for anything else."""
        data = json.loads(line)
        answers = []
        for row in data["answers"]:
            swapped = row["swapped"] and Swapped(**row["swapped"])
            answers.append(Answered(**(row | {"swapped": swapped})))
        return cls(data["image"], tuple(answers), tuple(data.get("left_out", ())))


def figures_of(answers: Sequence[Answered], threshold: float) -> Figures:
    """The figures of these answers, refused above this no-target probability."""
    return Figures(
        intersection=np.array([answer.intersection for answer in answers], np.int64),
        predicted=np.array([answer.predicted for answer in answers], np.int64),
        truth=np.array([answer.truth for answer in answers], np.int64),
        refused=np.array([answer.refused(threshold) for answer in answers], np.bool_),
        targeted=np.array([answer.targeted for answer in answers], np.bool_),
    )


class ResultsFolder:
    """The folder of one evaluation; `done` has the results that it had when it was opened."""

    def __init__(self, path: Path, setup: dict[str, Any], restart: bool = False) -> None:
        """Opens or makes the folder.

        Args:
            path: The folder.
            setup: Everything that the results depend on, as JSON, and their "name" for people.
            restart: Whether to throw away the results that the folder has.

        Raises:
            RisError: Where the folder has results of something else and `restart` is not given, and
                where it cannot be written.
        """
        self.path = path
        self._file: TextIO | None = None
        lines: list[str] = []
        if start_folder(path, setup, restart):
            lines = [result.to_json() + "\n" for result in read_results(path)]
        with writing(path):
            # written anew, without a last line that was cut off
            write_atomically(path / RESULTS, lambda file: file.write("".join(lines).encode()))

        found = (ImageResult.from_json(line) for line in lines)
        self.done: dict[str, ImageResult] = {result.image: result.slim() for result in found}

    def add(self, result: ImageResult) -> None:
        """Writes the result of one image.

        Raises:
            RisError: Where the disk does not take it; the next run goes on from the line before.
        """
        with writing(self.path):
            if self._file is None:
                self._file = (self.path / RESULTS).open("a", encoding="utf-8")
            self._file.write(result.to_json() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file of results, where one was opened."""
        if self._file is not None:
            self._file.close()
            self._file = None


def start_folder(path: Path, setup: dict[str, Any], restart: bool = False) -> bool:
    """Makes the folder of an evaluation; whether it has answers to go on from.

    Args:
        path: The folder.
        setup: Everything that the answers depend on, as JSON, and their "name" for people.
        restart: Whether to throw away the answers that the folder has.

    Raises:
        RisError: Where the folder has answers of something else and `restart` is not given, and
            where it cannot be written.
    """
    setup = json.loads(json.dumps(setup))  # as it will be read again: lists for tuples
    goes_on = (path / SETUP).exists() and not restart
    if goes_on:
        _require_same(path, setup)
    elif not restart:
        _require_no_answers(path)
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
        clear_folder(path)
        if not goes_on:
            for name in (RESULTS, PREDICTIONS):
                (path / name).unlink(missing_ok=True)
        text = json.dumps(setup, indent=1) + "\n"
        write_atomically(path / SETUP, lambda file: file.write(text.encode()))
    return goes_on and ((path / RESULTS).exists() or (path / PREDICTIONS).exists())


def _require_same(path: Path, setup: dict[str, Any]) -> None:
    """Raises RisError where the folder's answers depend on anything else."""
    theirs = read_setup(path)
    for name in {**theirs, **setup}:
        if name != "name" and theirs.get(name) != setup.get(name):
            raise RisError(
                f"{path} has results of another evaluation ({name} was "
                f"{theirs.get(name)!r}, now {setup.get(name)!r}); choose another --out, or "
                "give --restart"
            )


def _require_no_answers(path: Path) -> None:
    """Raises RisError where a folder has answers of which nothing says whose they are."""
    for name in (RESULTS, PREDICTIONS):
        if (path / name).exists():
            raise RisError(
                f"{path} has a {name} and no {SETUP}, so it is none of ris-eval's folders; choose "
                "another --out, or give --restart to throw it away"
            )


def require_answers_to(path: Path, wanted: dict[str, str]) -> None:
    """Raises RisError where the folder has answers to something else.

    wanted: fields of the samples that must be so, such as "data" and "split".
    """
    samples = read_setup(path)["samples"]
    found = {name: samples.get(name) for name in wanted}
    if found != wanted:
        raise RisError(
            f"{path} has answers to {', '.join(map(str, found.values()))}, not to "
            f"{', '.join(wanted.values())}"
        )


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what the disk does not take into a RisError."""
    try:
        yield
    except OSError as error:
        raise RisError(f"{path} cannot be written: {error.strerror or error}") from error


def read_setup(path: Path) -> dict[str, Any]:
    """What the results of a folder are of.

    Raises:
        RisError: Where there is nothing.
    """
    try:
        found: dict[str, Any] = json.loads((path / SETUP).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RisError(
            f"{path} is no folder of ris-eval --out: {SETUP} cannot be read ({error})"
        ) from error
    return found


def read_results(path: Path) -> Iterator[ImageResult]:
    """The results of a folder, except a last line that was cut off.

    Raises:
        RisError: For a folder without results and for a damaged line before the last.
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
