"""CGFormer's row in the table of families."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ris.reference.cgformer.config import FAMILY, PRESETS, CgformerConfig
from ris.reference.cgformer.keys import BERT, DECODER
from ris.reference.family import Choice, Family

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from tokenizers import Tokenizer
    from torch import Tensor

    from ris.reference.cgformer.model import CgformerModel
    from ris.reference.checkpoint.keys import KeyRules
    from ris.reference.checkpoint.merging import SharedPart


class CgformerFamily(Family[CgformerConfig, "CgformerModel"]):
    """Swin with the words in it, and two tokens that group the places of its maps."""

    name = FAMILY

    signs = tuple(
        f"{DECODER}{part}."
        for part in ("cgattention1", "cgattention2", "fuses", "proj.vis", "tokens")
    )

    presets = PRESETS

    small_presets = ("tiny-cgformer",)

    components: Mapping[str, str] = {"bert": BERT}

    brings: Mapping[str, str] = {"BERT": "--bert (untrained for this task)"}

    choices = (
        Choice(
            "assignment",
            ("expected", "sampled"),
            "how the places of a map go to the two tokens: by their share in the mean over draws,"
            " or as in the authors' code each to one, by random noise, which is an input then",
        ),
    )

    def derive_config(
        self, shapes: Mapping[str, tuple[int, ...]], heads: Mapping[str, int]
    ) -> CgformerConfig:
        """As `ris.reference.cgformer.sizes.derive_config`."""
        from ris.reference.cgformer.sizes import derive_config

        return derive_config(shapes, heads)

    def carried_config(self, data: Any, source: object) -> CgformerConfig:
        """As `ris.reference.cgformer.sizes.check_given_config`."""
        from ris.reference.cgformer.sizes import check_given_config

        return check_given_config(data, source)

    def empty_model(self, config: CgformerConfig, **options: bool) -> CgformerModel:
        """As `ris.reference.cgformer.model.empty_model`, which has no options."""
        from ris.reference.cgformer.model import empty_model

        return empty_model(config, **options)

    def made_up_model(self, config: CgformerConfig, seed: int) -> CgformerModel:
        """As `ris.reference.cgformer.deterministic.deterministic_model`."""
        from ris.reference.cgformer.deterministic import deterministic_model

        return deterministic_model(config, seed)

    def key_rules(self, config: CgformerConfig) -> KeyRules:
        """The same for every configuration."""
        from ris.reference.cgformer.rules import KEY_RULES

        return KEY_RULES

    def shared_parts(self) -> tuple[SharedPart, ...]:
        """BERT's."""
        from ris.reference.cgformer.rules import SHARED_PARTS

        return SHARED_PARTS

    def tokenizer(self, vocabulary: Path | None, config: CgformerConfig) -> Tokenizer:
        """As `ris.reference.tokenizer.tokenizer_from`."""
        from ris.reference.tokenizer import tokenizer_from

        return tokenizer_from(vocabulary, config)

    def prepare(self, model: CgformerModel, rgb: np.ndarray) -> dict[str, Tensor]:
        """As `ris.reference.cgformer.values.prepare`."""
        from ris.reference.cgformer import values

        return values.prepare(model, rgb)

    def encode(self, model: CgformerModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.cgformer.values.encode`."""
        from ris.reference.cgformer import values

        return values.encode(model, images)

    def ask(self, model: CgformerModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `ris.reference.cgformer.values.ask`."""
        from ris.reference.cgformer.values import ask

        return ask(model, values)
