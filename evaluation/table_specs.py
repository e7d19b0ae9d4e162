"""The file that says which tables `ris-eval tables` makes, and what others have published.

/docs/reference/tables.md has the form. Every mistake is one sentence with the place in the file.
"""

from __future__ import annotations

import itertools
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ris.data.datasets.refer_files import DATASETS
from ris.engines.errors import RisError
from ris.evaluation.compared_runs import published_counting
from ris.evaluation.protocols.table import DEFAULTS, PROTOCOLS

OWN_FIGURES = "published.toml"
"""The published figures that come with the package."""


@dataclass(frozen=True)
class System:
    """Whose answers a row has."""

    id: str
    """Its name in the file."""

    name: str
    """For people, and in the published figures."""

    bundle: str | None
    """The bundle that is asked; {data}, {split_by} and {split} stand for the cell's. None where
    `answers` is given."""

    answers: str | None
    """The file of answers, or the folder of `ris-eval run --out`, likewise."""

    def place(self, part: Part) -> str:
        """The bundle or the answers for a part of a data set."""
        words = {"data": part.data, "split_by": part.split_by, "split": part.split}
        return (self.bundle or self.answers or "").format(**words)


@dataclass(frozen=True, order=True)
class Part:
    """A split of a data set, as one evaluator counts it."""

    data: str
    """One of `DATASETS`."""

    split_by: str
    """Whose splits."""

    split: str
    """As the authors name it."""

    protocol: str
    """The evaluator, one of `PROTOCOLS`."""

    @property
    def name(self) -> str:
        """For people."""
        by = f" ({self.split_by})" if self.split_by != DATASETS[self.data][0] else ""
        return f"{self.data}{by} {self.split}"


@dataclass(frozen=True)
class Column:
    """One figure of a part."""

    part: Part
    """Where it is counted."""

    metric: str
    """The figure, under the evaluator's own name."""


@dataclass(frozen=True)
class TableSpec:
    """A table."""

    title: str
    """For people."""

    systems: tuple[System, ...]
    """The rows; differences are to the first."""

    columns: tuple[Column, ...]
    """The columns."""


@dataclass(frozen=True)
class HistogramSpec:
    """IoU histograms side by side."""

    title: str
    """For people."""

    systems: tuple[System, ...]
    """Whose."""

    part: Part
    """Of which expressions."""


@dataclass(frozen=True)
class Published:
    """A figure that somebody states."""

    value: float
    """As stated."""

    source: str
    """Where it was read."""


Key = tuple[str, str, str, str, str]
"""(system's name, data set, split-by, split, metric)."""


@dataclass(frozen=True)
class Spec:
    """What is made."""

    root: Path
    """The folder of the data sets' folders."""

    images: Path | None
    """The folder of COCO's images; None: a usual place below the root."""

    folder: Path
    """The folder that paths are relative to."""

    tables: tuple[TableSpec, ...]
    """The tables."""

    histograms: tuple[HistogramSpec, ...]
    """The figures."""

    published: dict[Key, Published]
    """What others state."""


def read_spec(path: Path) -> Spec:
    """Reads a tables file.

    Raises:
        RisError: Where it cannot be read or something in it is not of the form.
    """
    found = _toml(path.read_bytes, str(path))
    file = _Entry(found, str(path))
    file.only("root", "images", "systems", "tables", "histograms", "published")
    systems: dict[str, System] = {}
    for entry in file.entries("systems"):
        system = _system(entry)
        if system.id in systems:
            raise RisError(f"{entry.where}: there is a system {system.id!r} already")
        systems[system.id] = system
    tables = tuple(_table(entry, systems) for entry in file.entries("tables"))
    histograms = tuple(_histogram(entry, systems) for entry in file.entries("histograms"))
    if not tables and not histograms:
        raise RisError(f"{path} has no [[tables]] and no [[histograms]]")
    own = _Entry(
        _toml(resources.files("ris.evaluation").joinpath("data", OWN_FIGURES).read_bytes, "ris"),
        OWN_FIGURES,
    )
    folder = path.resolve().parent
    images = file.text("images", None)
    return Spec(
        root=(folder / file.text("root")).resolve(),
        images=(folder / images).resolve() if images else None,
        folder=folder,
        tables=tables,
        histograms=histograms,
        published=dict(
            itertools.chain.from_iterable(
                _published(entry)
                for entry in (*own.entries("published"), *file.entries("published"))
            )
        ),
    )


def _toml(read: Any, name: str) -> dict[str, Any]:
    try:
        return tomllib.loads(read().decode("utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        raise RisError(f"{name} cannot be read: {error}") from None


_NEEDED = object()


class _Entry:
    """A table of the file; every complaint names it."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self._values, self.where = values, where

    def only(self, *names: str) -> None:
        """Raises RisError for a field that is not one of these."""
        for name in self._values:
            if name not in names:
                raise RisError(f"{self.where}: {name!r} is unknown; known are {', '.join(names)}")

    def text(self, name: str, default: Any = _NEEDED) -> Any:
        """A text; the default where it is absent."""
        found = self._values.get(name, default)
        if found is _NEEDED:
            raise RisError(f"{self.where}: {name} is missing")
        if found is not default and not isinstance(found, str):
            raise RisError(f"{self.where}: {name} must be a text, not {found!r}")
        return found

    def texts(self, name: str) -> list[str]:
        """The texts of a list `names`, or the one text `name`."""
        found = self._values.get(f"{name}s", self._values.get(name))
        found = [found] if isinstance(found, str) else found
        if not isinstance(found, list) or not found or not all(isinstance(x, str) for x in found):
            raise RisError(f"{self.where}: {name} must be a text, or {name}s a list of texts")
        return found

    def entries(self, name: str) -> list[_Entry]:
        """The tables of a list."""
        found = self._values.get(name, [])
        if not isinstance(found, list) or not all(isinstance(x, dict) for x in found):
            raise RisError(f"{self.where}: {name} must be a list of tables ([[{name}]])")
        return [_Entry(x, f"{self.where}, {name} {i}") for i, x in enumerate(found, 1)]

    def numbers(self, name: str) -> dict[str, float]:
        """A table of numbers."""
        found = self._values.get(name)
        if not isinstance(found, dict) or not all(
            isinstance(x, int | float) for x in found.values()
        ):
            raise RisError(f"{self.where}: {name} must be a table of numbers, by split")
        return {split: float(value) for split, value in found.items()}


def _system(entry: _Entry) -> System:
    entry.only("id", "name", "bundle", "answers")
    name, bundle, answers = (
        entry.text("id"),
        entry.text("bundle", None),
        entry.text("answers", None),
    )
    if (bundle is None) == (answers is None):
        raise RisError(f"{entry.where}: give one of bundle and answers")
    system = System(name, entry.text("name", name), bundle, answers)
    try:
        system.place(Part("refcoco", "unc", "val", "lavt"))
    except (KeyError, IndexError, ValueError, AttributeError, TypeError):
        raise RisError(
            f"{entry.where}: {bundle or answers!r} may have {{data}}, {{split_by}} and {{split}}"
        ) from None
    return system


def _systems(entry: _Entry, systems: dict[str, System]) -> tuple[System, ...]:
    names = entry.texts("system")
    unknown = [name for name in names if name not in systems]
    if unknown:
        raise RisError(
            f"{entry.where}: there is no system {unknown[0]!r}; there are {', '.join(systems)}"
        )
    return tuple(systems[name] for name in names)


def _part(entry: _Entry, data: str, split: str) -> Part:
    if data not in DATASETS:
        raise RisError(f"{entry.where}: data {data!r} is unknown; known are {', '.join(DATASETS)}")
    split_by = entry.text("split_by", DATASETS[data][0])
    if split_by not in DATASETS[data]:
        raise RisError(f"{entry.where}: {data} has no splits by {split_by!r}")
    protocol = entry.text("protocol", DEFAULTS[data])
    if protocol not in PROTOCOLS:
        raise RisError(
            f"{entry.where}: protocol {protocol!r} is unknown; known are {', '.join(PROTOCOLS)}"
        )
    return Part(data, split_by, split, protocol)


def _columns(entry: _Entry) -> Iterator[Column]:
    entry.only("data", "datas", "split", "splits", "split_by", "protocol", "metric", "metrics")
    parts = itertools.product(entry.texts("data"), entry.texts("split"))
    for (data, split), metric in itertools.product(parts, entry.texts("metric")):
        part = _part(entry, data, split)
        try:
            known = published_counting(part.protocol, data).metrics
        except RisError as error:
            raise RisError(f"{entry.where}: {error}") from None
        if metric not in known:
            raise RisError(
                f"{entry.where}: {part.protocol} has no figure {metric!r} on {data}; it has "
                f"{', '.join(known)}"
            )
        yield Column(part, metric)


def _table(entry: _Entry, systems: dict[str, System]) -> TableSpec:
    entry.only("title", "system", "systems", "columns")
    columns = tuple(itertools.chain.from_iterable(map(_columns, entry.entries("columns"))))
    if not columns:
        raise RisError(f"{entry.where}: it has no columns")
    return TableSpec(entry.text("title"), _systems(entry, systems), columns)


def _histogram(entry: _Entry, systems: dict[str, System]) -> HistogramSpec:
    entry.only("title", "system", "systems", "data", "split", "split_by", "protocol")
    part = _part(entry, entry.text("data"), entry.text("split"))
    return HistogramSpec(entry.text("title"), _systems(entry, systems), part)


def _published(entry: _Entry) -> Iterator[tuple[Key, Published]]:
    entry.only("system", "source", "data", "split_by", "metric", "figures")
    system, data, metric = entry.text("system"), entry.text("data"), entry.text("metric")
    if data not in DATASETS:
        raise RisError(f"{entry.where}: data {data!r} is unknown; known are {', '.join(DATASETS)}")
    split_by = entry.text("split_by", DATASETS[data][0])
    for split, value in entry.numbers("figures").items():
        yield (
            (system, data, split_by, split, metric),
            Published(value, entry.text("source")),
        )
