"""Which keys a model needs, which have no effect, and what is wrong with those of a file.

What is a family's own about that is a `KeyRules`. docs/reference/checkpoints.md, Dead keys, has the
kinds in words.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import MappingProxyType
from typing import Any

import torch

from ris.engines.text import echoed
from ris.reference.checkpoint.entries import Entry

_SHOWN = 3
"""How many keys of a module a message names."""

_OTHER = "other"
"""The module, in words, of a key that is in none of `KeyRules.modules`."""


@dataclass(frozen=True)
class KeyRules:
    """What the keys of a model mean, for one configuration of it."""

    modules: tuple[tuple[str, str], ...]
    """The modules in words and what their keys begin with; the first that fits is a key's."""

    not_loaded: re.Pattern[str]
    """Matches the beginning of keys of official checkpoints that are in no module of the model."""

    idle: tuple[re.Pattern[str], ...]
    """Each matches the beginning of keys of the model that have no effect on any output."""

    def module_of(self, key: str) -> str:
        """The module, in words, that a key belongs to."""
        return next((name for name, prefix in self.modules if key.startswith(prefix)), _OTHER)

    def names(self) -> list[str]:
        """All that `module_of` may say, in the order of the model."""
        return [*(name for name, _ in self.modules), _OTHER]

    def is_dead(self, key: str) -> bool:
        """Whether a key of a file is known and not loaded."""
        return self.not_loaded.match(key) is not None

    def is_idle(self, key: str) -> bool:
        """Whether a key of the model has no effect on the outputs."""
        return any(pattern.match(key) for pattern in self.idle)


@dataclass(frozen=True)
class Misfit:
    """A key whose tensor is not what the model has there."""

    key: str
    """The key."""

    found: str
    """Shape and dtype of the file's tensor, in words."""

    expected: str
    """Shape of the model's tensor, and its dtype where that is of another kind, in words."""


@dataclass(frozen=True)
class KeyReport:
    """The keys of the files against those of the model."""

    loaded: tuple[str, ...]
    """Taken from the files."""

    idle: tuple[str, ...]
    """Those of `loaded` that have no effect on inference."""

    absent: tuple[str, ...]
    """Keys without effect that the files lack; they are filled with zeros."""

    dead: tuple[str, ...]
    """Known keys of the files that are not loaded."""

    missing: tuple[str, ...]
    """Keys that the model needs and the files lack."""

    unexpected: tuple[str, ...]
    """Keys of the files that no checkpoint should have."""

    misfits: tuple[Misfit, ...]
    """Tensors of another shape, or of another kind of number."""

    nearest: dict[str, str]
    """For missing and unexpected keys that a message names, the most similar of the other kind."""

    rules: KeyRules = field(repr=False)
    """What the keys mean."""

    @property
    def fits(self) -> bool:
        """Whether the files make the model."""
        return not (self.missing or self.unexpected or self.misfits)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; the loaded keys as a number."""
        found = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "rules"}
        found["misfits"] = [asdict(misfit) for misfit in self.misfits]
        return found | {"loaded": len(self.loaded), "fits": self.fits}

    def problems(self) -> list[str]:
        """What is wrong: a line for each module and kind, with counts and the first few keys."""
        lines = []
        for module in self.rules.names():
            missing = [key for key in self.missing if self.rules.module_of(key) == module]
            unexpected = [key for key in self.unexpected if self.rules.module_of(key) == module]
            misfits = [m for m in self.misfits if self.rules.module_of(m.key) == module]
            for what, texts in (
                ("missing", [self._with_nearest(key) for key in missing]),
                ("unexpected", [self._with_nearest(key) for key in unexpected]),
                (
                    "of another shape",
                    [f"{m.key} is {m.found}, expected {m.expected}" for m in misfits],
                ),
            ):
                if texts:
                    lines.append(f"{module}: {len(texts)} {what}: {_shortened(texts)}")
        return lines

    def counts(self) -> str:
        """ "12 keys missing, 3 unexpected, 1 of another shape", without those that are none."""
        parts = (
            (len(self.missing), "missing"),
            (len(self.unexpected), "unexpected"),
            (len(self.misfits), "of another shape"),
        )
        return ", ".join(f"{number} {what}" for number, what in parts if number)

    def dead_by_module(self) -> dict[str, int]:
        """How many tensors of each module are in the files and not loaded."""
        return dict(Counter(map(self.rules.module_of, self.dead)))

    def _with_nearest(self, key: str) -> str:
        return f"{key} (nearest: {self.nearest[key]})" if key in self.nearest else key


def _shortened(texts: list[str]) -> str:
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(map(echoed, texts[:_SHOWN])) + more


def compare_keys(
    entries: Mapping[str, Entry],
    wanted: Mapping[str, tuple[int, ...]],
    rules: KeyRules,
    dtypes: Mapping[str, torch.dtype] = MappingProxyType({}),
) -> KeyReport:
    """The files' tensors against those of the model.

    Args:
        entries: The files' tensors.
        wanted: The shapes of the model's.
        rules: What the keys mean.
        dtypes: The dtypes of the model's; float32 where a key is not in it.
    """
    own = {key: dtypes.get(key, torch.float32) for key in wanted}
    loaded = [key for key in wanted if key in entries]
    lacking = [key for key in wanted if key not in entries]
    extra = [key for key in entries if key not in wanted]
    missing = [key for key in lacking if not rules.is_idle(key)]
    unexpected = [key for key in extra if not rules.is_dead(key)]
    return KeyReport(
        loaded=tuple(loaded),
        idle=tuple(key for key in loaded if rules.is_idle(key)),
        absent=tuple(key for key in lacking if rules.is_idle(key)),
        dead=tuple(key for key in extra if rules.is_dead(key)),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misfits=tuple(
            Misfit(key, _words(entries[key]), _expected(entries[key], wanted[key], own[key]))
            for key in loaded
            if entries[key].shape != wanted[key] or _kind(entries[key].dtype) != _kind(own[key])
        ),
        nearest={
            **_nearest(_first_of_each(unexpected, rules), missing, entries, wanted),
            **_nearest(_first_of_each(missing, rules), unexpected, entries, wanted),
        },
        rules=rules,
    )


def _first_of_each(keys: Iterable[str], rules: KeyRules) -> Iterable[str]:
    """The first few keys of each module."""
    seen: Counter[str] = Counter()
    for key in keys:
        seen[rules.module_of(key)] += 1
        if seen[rules.module_of(key)] <= _SHOWN:
            yield key


def _nearest(
    keys: Iterable[str],
    others: list[str],
    entries: Mapping[str, Entry],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """For each key the most similar of `others`.

    One of equal shape is preferred; entries and wanted have the shapes of both.
    """

    def shape(key: str) -> tuple[int, ...]:
        return entries[key].shape if key in entries else wanted[key]

    found: dict[str, str] = {}
    for key in keys:
        alike = [other for other in others if shape(other) == shape(key)]
        for candidates in (alike, others):
            if close := difflib.get_close_matches(key, candidates, 1):
                found[key] = close[0]
                break
    return found


def _words(entry: Entry) -> str:
    kind = "" if entry.dtype == torch.float32 else f" {_name(entry.dtype)}"
    return _shape(entry.shape) + kind


def _expected(entry: Entry, shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """The model's tensor in words, where the file has `entry`."""
    return _shape(shape) + ("" if _kind(entry.dtype) == _kind(dtype) else f" {_name(dtype)}")


def _kind(dtype: torch.dtype) -> str:
    """The kind of number; those of one kind are read as each other."""
    if dtype.is_floating_point:
        return "float"
    if dtype == torch.bool or dtype.is_complex:
        return _name(dtype)
    return "integer"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
