"""ReLA's row in the table of families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ris.reference.family import Choice, Family, Relative
from ris.reference.rela.config import FAMILY, PRESETS, RelaConfig
from ris.reference.rela.keys import BERT, REGIONS

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.checkpoint.entries import Entry
    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart
    from ris.reference.rela.model import RelaModel


class RelaFamily(Family[RelaConfig, "RelaModel"]):
    """Swin with the words in it, and a decoder of regions."""

    name = FAMILY

    signs = tuple(
        f"{REGIONS}{part}."
        for part in ("RIA_layers", "RLA_vision", "RLA_lang_att", "minimap_embed")
    )

    presets = PRESETS

    small_presets = ("tiny-rela",)

    components: Mapping[str, str] = {"bert": BERT}

    brings: Mapping[str, str] = {"BERT": "--bert (untrained for this task)"}

    relatives = (
        Relative(
            re.compile(r"(^|\.)(RIA_cross_attention|RLA_region|RLA_proj|RLA_gate)"),
            "of ReLA's branch `original`, whose decoder is another one; give a checkpoint of the"
            " branch `main` (gres_swin_base.pth, gres_swin_tiny.pth)",
        ),
    )

    choices = (
        Choice(
            "lang_weight",
            ("zero", "stored"),
            "the factor on what the regions read from the words: zero, as in the authors'"
            " evaluation, or the one that the checkpoint stores, as in their training",
        ),
    )

    def derive_config(
        self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> RelaConfig:
        """As `ris.reference.rela.sizes.derive_config`."""
        from ris.reference.rela.sizes import derive_config

        return derive_config(shapes, heads)

    def carried_config(self, data: Any, source: object) -> RelaConfig:
        """As `ris.reference.rela.sizes.check_given_config`."""
        from ris.reference.rela.sizes import check_given_config

        return check_given_config(data, source)

    def empty_model(self, config: RelaConfig, **options: bool) -> RelaModel:
        """As `ris.reference.rela.model.empty_model`, which has no options."""
        from ris.reference.rela.model import empty_model

        return empty_model(config, **options)

    def made_up_model(self, config: RelaConfig, seed: int) -> RelaModel:
        """As `ris.reference.rela.deterministic.deterministic_model`."""
        from ris.reference.rela.deterministic import deterministic_model

        return deterministic_model(config, seed)

    def key_rules(self, config: RelaConfig) -> KeyRules:
        """The same for every configuration."""
        from ris.reference.rela.rules import KEY_RULES

        return KEY_RULES

    def shared_parts(self) -> tuple[SharedPart, ...]:
        """BERT's."""
        from ris.reference.rela.rules import SHARED_PARTS

        return SHARED_PARTS

    def complete(
        self, entries: dict[str, Entry], config: RelaConfig
    ) -> tuple[dict[str, Entry], list[str]]:
        """The factor on the words, as `ris.reference.rela.rules.with_lang_weight`."""
        from ris.reference.rela.rules import with_lang_weight

        return with_lang_weight(entries, config)

    def tokenizer(self, vocabulary: Path | None, config: RelaConfig) -> Tokenizer:
        """As `ris.reference.tokenizer.tokenizer_from`."""
        from ris.reference.tokenizer import tokenizer_from

        return tokenizer_from(vocabulary, config)

    def prepare(self, model: RelaModel, rgb: np.ndarray) -> dict[str, Tensor]:
        """As `ris.reference.rela.values.prepare`."""
        from ris.reference.rela import values

        return values.prepare(model, rgb)

    def encode(self, model: RelaModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.rela.values.encode`."""
        from ris.reference.rela import values

        return values.encode(model, images)

    def ask(self, model: RelaModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.rela.values.ask`."""
        from ris.reference.rela.values import ask

        return ask(model, values)
