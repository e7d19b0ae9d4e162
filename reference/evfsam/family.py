"""EVF-SAM's row in the table of families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ris.reference.evfsam.config import FAMILY, PRESETS, EvfsamConfig
from ris.reference.evfsam.keys import BEIT3, VISUAL
from ris.reference.family import Family

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart
    from ris.reference.evfsam.model import EvfsamModel


class EvfsamFamily(Family[EvfsamConfig, "EvfsamModel"]):
    """BEiT-3 over a small square and the words, whose one vector prompts SAM or SAM 2."""

    name = FAMILY

    # nothing of SAM and of the projector, which other models that prompt SAM call the same
    signs = (BEIT3,)

    presets = PRESETS

    small_presets = ("tiny-evfsam", "tiny-evfsam2")

    components: Mapping[str, str] = {"sam": VISUAL}

    brings: Mapping[str, str] = {"SAM image encoder": "--sam-checkpoint"}

    own_vocabulary = "sentencepiece.bpe.model"

    def derive_config(
        self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> EvfsamConfig:
        """As `ris.reference.evfsam.sizes.derive_config`."""
        from ris.reference.evfsam.sizes import derive_config

        return derive_config(shapes, heads)

    def carried_config(self, data: Any, source: object) -> EvfsamConfig:
        """As `ris.reference.evfsam.sizes.check_given_config`."""
        from ris.reference.evfsam.sizes import check_given_config

        return check_given_config(data, source)

    def empty_model(self, config: EvfsamConfig, **options: bool) -> EvfsamModel:
        """As `ris.reference.evfsam.model.empty_model`, which has no options."""
        from ris.reference.evfsam.model import empty_model

        return empty_model(config, **options)

    def made_up_model(self, config: EvfsamConfig, seed: int) -> EvfsamModel:
        """As `ris.reference.evfsam.deterministic.deterministic_model`."""
        from ris.reference.evfsam.deterministic import deterministic_model

        return deterministic_model(config, seed)

    def key_rules(self, config: EvfsamConfig) -> KeyRules:
        """As `ris.reference.evfsam.rules.key_rules`."""
        from ris.reference.evfsam.rules import key_rules

        return key_rules(config)

    def shared_parts(self) -> tuple[SharedPart, ...]:
        """SAM's image encoder, and what the model trained of SAM."""
        from ris.reference.evfsam.rules import SHARED_PARTS

        return SHARED_PARTS

    def tokenizer(self, vocabulary: Path | None, config: EvfsamConfig) -> Tokenizer:
        """As `ris.reference.evfsam.vocabulary.tokenizer_from`."""
        from ris.reference.evfsam.vocabulary import tokenizer_from

        return tokenizer_from(vocabulary, config)

    def prepare(self, model: EvfsamModel, rgb: np.ndarray) -> dict[str, Tensor]:
        """As `ris.reference.evfsam.values.prepare`."""
        from ris.reference.evfsam import values

        return values.prepare(model, rgb)

    def encode(self, model: EvfsamModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.evfsam.values.encode`."""
        from ris.reference.evfsam import values

        return values.encode(model, images)

    def ask(self, model: EvfsamModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.evfsam.values.ask`."""
        from ris.reference.evfsam.values import ask

        return ask(model, values)
