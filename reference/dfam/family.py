"""DFAM's row in the table of families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ris.reference.dfam.config import FAMILY, PRESETS, ModelConfig
from ris.reference.dfam.keys import BERT, CLIP, SAM
from ris.reference.family import Family

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.checkpoint.entries import Entry
    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart
    from ris.reference.dfam.model import RISModel


class Dfam(Family[ModelConfig, "RISModel"]):
    """Ito's SAM and CLIP with a feature design between them."""

    name = FAMILY

    signs = (
        "adaptor_clip.",
        "clip_pixel_decoder.",
        "txt2txt.",
        "lang_mlp.",
        "clip_dense.",
        "backbone_clip.",
    )

    presets = PRESETS

    small_presets = ("tiny", "demo")

    components: Mapping[str, str] = {"sam": SAM, "clip": CLIP, "bert": BERT}

    brings: Mapping[str, str] = {
        "SAM image encoder": "--sam-checkpoint",
        "SAM prompt encoder": "--sam-checkpoint",
        "SAM mask decoder": "--sam-checkpoint (untrained for this task)",
        "CLIP image tower": "--clip-checkpoint",
        "BERT": "--bert (untrained for this task)",
        "category table": "--clip-checkpoint with a text tower",
    }

    def derive_config(
        self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> ModelConfig:
        """As `ris.reference.dfam.sizes.derive_config`."""
        from ris.reference.dfam.sizes import derive_config

        return derive_config(shapes, heads)

    def carried_config(self, data: Any, source: object) -> ModelConfig:
        """As `ris.reference.dfam.sizes.check_given_config`."""
        from ris.reference.dfam.sizes import check_given_config

        return check_given_config(data, source)

    def empty_model(self, config: ModelConfig, **options: bool) -> RISModel:
        """As `ris.reference.dfam.model.empty_model`, whose option is `clip_text_tower`."""
        from ris.reference.dfam.model import empty_model

        return empty_model(config, **options)

    def made_up_model(self, config: ModelConfig, seed: int) -> RISModel:
        """As `ris.reference.dfam.deterministic.deterministic_model`."""
        from ris.reference.dfam.deterministic import deterministic_model

        return deterministic_model(config, seed)

    def key_rules(self, config: ModelConfig) -> KeyRules:
        """As `ris.reference.dfam.rules.key_rules`."""
        from ris.reference.dfam.rules import key_rules

        return key_rules(config)

    def shared_parts(self) -> tuple[SharedPart, ...]:
        """SAM's, CLIP's and BERT's."""
        from ris.reference.dfam.rules import SHARED_PARTS

        return SHARED_PARTS

    def complete(
        self, entries: dict[str, Entry], config: ModelConfig
    ) -> tuple[dict[str, Entry], list[str]]:
        """The category table, as `ris.reference.dfam.category_table.with_table`."""
        from ris.reference.dfam.category_table import with_table

        return with_table(entries, config)

    def tokenizer(self, vocabulary: Path | None, config: ModelConfig) -> Tokenizer:
        """As `ris.reference.tokenizer.tokenizer_from`."""
        from ris.reference.tokenizer import tokenizer_from

        return tokenizer_from(vocabulary, config)

    def prepare(self, model: RISModel, rgb: np.ndarray) -> dict[str, Tensor]:
        """As `ris.reference.dfam.values.prepare`."""
        from ris.reference.dfam import values

        return values.prepare(model, rgb)

    def category_features(self, model: RISModel, categories: Sequence[str | None]) -> Tensor:
        """As `ris.reference.dfam.values.category_features`."""
        from ris.reference.dfam import values

        return values.category_features(model, categories)

    def encode(self, model: RISModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.dfam.values.encode`."""
        from ris.reference.dfam import values

        return values.encode(model, images)

    def ask(self, model: RISModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.dfam.values.ask`."""
        from ris.reference.dfam.values import ask

        return ask(model, values)
