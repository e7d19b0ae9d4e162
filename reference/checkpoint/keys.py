"""Which keys the model needs, which it has without using them, and what is wrong with those of a
file.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from ris.reference.checkpoint.files import Entry
from ris.reference.config import ModelConfig

MODULES = (
    ("SAM image encoder", "sam.image_encoder."),
    ("SAM prompt encoder", "sam.prompt_encoder."),
    ("SAM mask decoder", "sam.mask_decoder."),
    ("CLIP image tower", "clip_dense.clip_model.visual."),
    ("CLIP text tower", "clip_dense.clip_model."),
    ("BERT", "text_encoder."),
    ("text projection", "lang_mlp."),
    ("category projection", "clip_mlpl."),
    ("category table", "text_embeddings"),
    ("PWAM", "adaptor_clip."),
    ("CLIP pyramid", "backbone_clip."),
    ("pixel decoder", "clip_pixel_decoder."),
    ("sparse branch", "txt2txt."),
    ("SAM pyramid", "backbone_sam."),
    ("DFAM", "decoder."),
    ("training loss", "criterion."),
)
OTHER = "other"

# In official checkpoints, but in no module of the reference model (docs/reference/models/dfam.md
# 17)
_NOT_LOADED = re.compile(
    r"criterion\.|nt_weight$|empty_sparse_emb$|text_encoder\.(embeddings\.position_ids$|pooler\.)"
    r"|clip_dense\.clip_model\.(?!visual\.)|clip_pixel_decoder\.(adapter|layer)_1\."
)
# In the reference model, without effect on any output: (both variants, category variant, [CLS]
# variant)
_IDLE = re.compile(
    r"sam\.prompt_encoder\.(?!pe_layer)|"
    r"sam\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|clip_dense\.clip_model\.visual\.(ln_post\.|proj$)"
    r"|decoder\.(to_logits\.|to_logits_bert\.|logit_scale$|logit_scale_condsim$)"
)
_IDLE_WITHOUT_NO_TARGET = re.compile(r"decoder\.|backbone_sam\.")
_IDLE_WITH_CLS = re.compile(r"clip_mlpl\.|text_embeddings$")
_IDLE_WITH_NO_TARGET = re.compile(
    r"decoder\.(CA_layers2|SA_layers2|transformer_ffn_layers2)\.[01]\."
)

_SHOWN = 3
"""How many keys of a module a message names."""


def module_of(key: str) -> str:
    """The module, in words, that a key belongs to."""
    return next((name for name, prefix in MODULES if key.startswith(prefix)), OTHER)


def is_idle(key: str, config: ModelConfig) -> bool:
    """Whether a key of the reference model has no effect on the outputs of this variant
    (docs/reference/models/dfam.md 17).
    """
    patterns = [
        _IDLE,
        _IDLE_WITHOUT_NO_TARGET if config.no_target == "none" else _IDLE_WITH_NO_TARGET,
    ]
    if config.query == "cls":
        patterns.append(_IDLE_WITH_CLS)
    return any(pattern.match(key) for pattern in patterns)


@dataclass(frozen=True)
class Misfit:
    """A key whose tensor is not what the model has there: shape and dtype, found and expected, in
    words.
    """

    key: str
    found: str
    expected: str


@dataclass(frozen=True)
class KeyReport:
    """The keys of the files against those of the model.

    loaded: taken from the files; idle: the part of those without effect on inference; absent: idle
    ones that the files lack, filled with zeros; dead: in the files, known, not loaded; missing,
    unexpected, misfits: what is wrong; nearest: for keys that a message names, the one of the other
    side that looks most like it.
    """

    loaded: tuple[str, ...]
    idle: tuple[str, ...]
    absent: tuple[str, ...]
    dead: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    nearest: dict[str, str] = field(default_factory=dict)

    @property
    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.misfits)

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON; the loaded keys as a number."""
        return asdict(self) | {"loaded": len(self.loaded), "fits": self.fits}

    def problems(self) -> list[str]:
        """What is wrong, a line a module and kind, with counts, the first few keys and their
        nearest match.
        """
        lines = []
        for name in [*(name for name, _ in MODULES), OTHER]:
            misfits = [m for m in self.misfits if module_of(m.key) == name]
            shown = [f"{m.key} is {m.found}, expected {m.expected}" for m in misfits[:_SHOWN]]
            for what, keys, texts in (
                ("missing", self.missing, None),
                ("unexpected", self.unexpected, None),
                ("of another shape", [m.key for m in misfits], shown),
            ):
                own = [key for key in keys if module_of(key) == name]
                if own:
                    texts = texts or [self._with_nearest(key) for key in own[:_SHOWN]]
                    more = f", and {len(own) - _SHOWN} more" if len(own) > _SHOWN else ""
                    lines.append(f"{name}: {len(own)} {what}: {'; '.join(texts)}{more}")
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


def compare_keys(
    entries: Mapping[str, Entry], wanted: Mapping[str, tuple[int, ...]], config: ModelConfig
) -> KeyReport:
    """The files' tensors against the shapes that the model has."""
    extra = [key for key in entries if key not in wanted]
    missing = [key for key in wanted if key not in entries]
    misfits = [
        Misfit(key, _words(entries[key]), _shape(shape))
        for key, shape in wanted.items()
        if key in entries
        and (entries[key].shape != shape or not entries[key].dtype.is_floating_point)
    ]
    required = [key for key in missing if not is_idle(key, config)]
    unexpected = [key for key in extra if not _NOT_LOADED.match(key)]
    loaded = [key for key in wanted if key in entries]
    return KeyReport(
        loaded=tuple(loaded),
        idle=tuple(key for key in loaded if is_idle(key, config)),
        absent=tuple(key for key in missing if is_idle(key, config)),
        dead=tuple(key for key in extra if _NOT_LOADED.match(key)),
        missing=tuple(required),
        unexpected=tuple(unexpected),
        misfits=tuple(misfits),
        nearest={
            **_nearest(unexpected, required, entries, wanted),
            **_nearest(required, unexpected, entries, wanted),
        },
    )


def _nearest(
    keys: Iterable[str],
    others: list[str],
    entries: Mapping[str, Entry],
    wanted: Mapping[str, tuple[int, ...]],
) -> dict[str, str]:
    """For the first few keys of each module, the most similar of `others`, of equal shape if there
    is one.
    """

    def shape(key: str) -> tuple[int, ...]:
        return entries[key].shape if key in entries else wanted[key]

    found: dict[str, str] = {}
    seen: Counter[str] = Counter()
    for key in keys:
        seen[module_of(key)] += 1
        if seen[module_of(key)] <= _SHOWN:
            alike = [other for other in others if shape(other) == shape(key)]
            close = difflib.get_close_matches(key, alike, 1) or difflib.get_close_matches(
                key, others, 1
            )
            if close:
                found[key] = close[0]
    return found


def _words(entry: Entry) -> str:
    kind = "" if entry.dtype == torch.float32 else f" {str(entry.dtype).removeprefix('torch.')}"
    return _shape(entry.shape) + kind


def _shape(shape: tuple[int, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"
