"""Which keys the model needs, which have no effect, and what is wrong with those of a file.

docs/reference/checkpoints.md, Dead keys, has the lists in words.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ris.engines.text import echoed
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.names import MODULES, OTHER, module_of
from ris.reference.config import ModelConfig

# In official checkpoints, but in no module of the reference model
# (docs/reference/models/dfam.md 17)
_NOT_LOADED = re.compile(
    r"criterion\.|nt_weight$|empty_sparse_emb$|text_encoder\.(embeddings\.position_ids$|pooler\.)"
    r"|clip_dense\.clip_model\.(?!visual\.)|clip_pixel_decoder\.(adapter|layer)_1\."
)

# In the reference model, without effect on any output of any variant
_IDLE = re.compile(
    r"sam\.prompt_encoder\.(?!pe_layer)|"
    r"sam\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|clip_dense\.clip_model\.visual\.(ln_post\.|proj$)"
    r"|decoder\.(to_logits\.|to_logits_bert\.|logit_scale$|logit_scale_condsim$)"
)

# Besides, in some variants
_IDLE_WITHOUT_NO_TARGET = re.compile(r"decoder\.|backbone_sam\.")
_IDLE_WITH_NO_TARGET = re.compile(
    r"decoder\.(CA_layers2|SA_layers2|transformer_ffn_layers2)\.[01]\."
)
_IDLE_WITH_CLS = re.compile(r"clip_mlpl\.|text_embeddings$")

_SHOWN = 3
"""How many keys of a module a message names."""


def is_idle(key: str, config: ModelConfig) -> bool:
    """Whether a key of the reference model has no effect on the outputs of this variant."""
    patterns = [_IDLE]
    patterns.append(_IDLE_WITHOUT_NO_TARGET if config.no_target == "none" else _IDLE_WITH_NO_TARGET)
    if config.query == "cls":
        patterns.append(_IDLE_WITH_CLS)
    return any(pattern.match(key) for pattern in patterns)


@dataclass(frozen=True)
class Misfit:
    """A key whose tensor is not what the model has there."""

    key: str
    """The key."""

    found: str
    """Shape and dtype of the file's tensor, in words."""

    expected: str
    """Shape of the model's tensor, in words."""


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
    """Tensors of another shape, or no floats."""

    nearest: dict[str, str] = field(default_factory=dict)
    """For missing and unexpected keys that a message names, the most similar of the other kind."""

    @property
    def fits(self) -> bool:
        """Whether the files make the model."""
        return not (self.missing or self.unexpected or self.misfits)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; the loaded keys as a number."""
        return asdict(self) | {"loaded": len(self.loaded), "fits": self.fits}

    def problems(self) -> list[str]:
        """What is wrong: a line for each module and kind, with counts and the first few keys."""
        lines = []
        for module in [*(name for name, _ in MODULES), OTHER]:
            missing = [key for key in self.missing if module_of(key) == module]
            unexpected = [key for key in self.unexpected if module_of(key) == module]
            misfits = [m for m in self.misfits if module_of(m.key) == module]
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
        return dict(Counter(map(module_of, self.dead)))

    def _with_nearest(self, key: str) -> str:
        return f"{key} (nearest: {self.nearest[key]})" if key in self.nearest else key


def _shortened(texts: list[str]) -> str:
    more = f", and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return "; ".join(map(echoed, texts[:_SHOWN])) + more


def compare_keys(
    entries: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> KeyReport:
    """The files' tensors against the shapes `wanted` that the model has."""
    loaded = [key for key in wanted if key in entries]
    lacking = [key for key in wanted if key not in entries]
    extra = [key for key in entries if key not in wanted]
    missing = [key for key in lacking if not is_idle(key, config)]
    unexpected = [key for key in extra if not _NOT_LOADED.match(key)]
    return KeyReport(
        loaded=tuple(loaded),
        idle=tuple(key for key in loaded if is_idle(key, config)),
        absent=tuple(key for key in lacking if is_idle(key, config)),
        dead=tuple(key for key in extra if _NOT_LOADED.match(key)),
        missing=tuple(missing),
        unexpected=tuple(unexpected),
        misfits=tuple(
            Misfit(key, _words(entries[key]), _shape(wanted[key]))
            for key in loaded
            if entries[key].shape != wanted[key] or not entries[key].dtype.is_floating_point
        ),
        nearest={
            **_nearest(unexpected, missing, entries, wanted),
            **_nearest(missing, unexpected, entries, wanted),
        },
    )


def _nearest(
    keys: Iterable[str],
    others: list[str],
    entries: Mapping[str, Entry],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """For the first few keys of each module, the most similar of `others`.

    One of equal shape is preferred; entries and wanted have the shapes of both.
    """

    def shape(key: str) -> tuple[int, ...]:
        return entries[key].shape if key in entries else wanted[key]

    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for key in keys:
        seen[module_of(key)] += 1
        if seen[module_of(key)] > _SHOWN:
            continue
        alike = [other for other in others if shape(other) == shape(key)]
        for candidates in (alike, others):
            if close := difflib.get_close_matches(key, candidates, 1):
                found[key] = close[0]
                break
    return found


def _words(entry: Entry) -> str:
    kind = "" if entry.dtype == torch.float32 else f" {str(entry.dtype).removeprefix('torch.')}"
    return _shape(entry.shape) + kind


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
