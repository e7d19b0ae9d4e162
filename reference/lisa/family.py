"""LISA's row in the table of families."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ris.reference.family import Choice, Family, Relative
from ris.reference.lisa.config import FAMILY, PRESETS, LisaConfig
from ris.reference.lisa.keys import CLIP, LAYERS, PROJECTOR, TABLE

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart
    from ris.reference.lisa.model import LisaModel


class LisaFamily(Family[LisaConfig, "LisaModel"]):
    """A language model that sees the picture through CLIP and prompts SAM with one vector."""

    name = FAMILY

    # nothing of SAM and of the prompt layers, which other models that prompt SAM call the same
    signs = (LAYERS, TABLE, PROJECTOR)

    presets = PRESETS

    small_presets = ("tiny-lisa",)

    components: Mapping[str, str] = {"clip": CLIP}

    brings: Mapping[str, str] = {"CLIP image tower": "--clip-checkpoint"}

    relatives = (
        Relative(
            re.compile(r"(^|\.)mm_projector\.\d+\."),
            "a LLaVA whose projector has several layers, as LLaVA 1.5 and what is built on it have;"
            " LISA v1 has one, and LISA++ is another model. Give LISA-7B-v1 or LISA-13B-llama2-v1",
        ),
    )

    own_vocabulary = "tokenizer.model"

    choices = (
        Choice(
            "template",
            ("llava_v1", "llava_llama_2"),
            "the conversation that the question stands in: the authors' default for every file, or"
            " that of Llama 2",
        ),
    )

    def derive_config(
        self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> LisaConfig:
        """As `ris.reference.lisa.sizes.derive_config`."""
        from ris.reference.lisa.sizes import derive_config

        return derive_config(shapes, heads)

    def settle(self, config: LisaConfig, folder: Path | None) -> LisaConfig:
        """As `ris.reference.lisa.settings.settle`."""
        from ris.reference.lisa.settings import settle

        return settle(config, folder)

    def carried_config(self, data: Any, source: object) -> LisaConfig:
        """As `ris.reference.lisa.sizes.check_given_config`."""
        from ris.reference.lisa.sizes import check_given_config

        return check_given_config(data, source)

    def empty_model(self, config: LisaConfig, **options: bool) -> LisaModel:
        """As `ris.reference.lisa.model.empty_model`, which has no options."""
        from ris.reference.lisa.model import empty_model

        return empty_model(config, **options)

    def made_up_model(self, config: LisaConfig, seed: int) -> LisaModel:
        """As `ris.reference.lisa.deterministic.deterministic_model`."""
        from ris.reference.lisa.deterministic import deterministic_model

        return deterministic_model(config, seed)

    def key_rules(self, config: LisaConfig) -> KeyRules:
        """As `ris.reference.lisa.rules.key_rules`."""
        from ris.reference.lisa.rules import key_rules

        return key_rules(config)

    def shared_parts(self) -> tuple[SharedPart, ...]:
        """CLIP's, which no LISA file has."""
        from ris.reference.lisa.rules import SHARED_PARTS

        return SHARED_PARTS

    def tokenizer(self, vocabulary: Path | None, config: LisaConfig) -> Tokenizer:
        """As `ris.reference.lisa.vocabulary.tokenizer_from`."""
        from ris.reference.lisa.vocabulary import tokenizer_from

        return tokenizer_from(vocabulary, config)

    def prepare(self, model: LisaModel, rgb: np.ndarray) -> dict[str, Tensor]:
        """As `ris.reference.lisa.values.prepare`."""
        from ris.reference.lisa import values

        return values.prepare(model, rgb)

    def encode(self, model: LisaModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.lisa.values.encode`."""
        from ris.reference.lisa import values

        return values.encode(model, images)

    def ask(self, model: LisaModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.lisa.values.ask`."""
        from ris.reference.lisa.values import ask

        return ask(model, values)
