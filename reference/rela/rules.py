"""Which keys of a checkpoint matter, what BERT's own file may give, and the factor on the words."""

from __future__ import annotations

import re

import torch

from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.checkpoint.merging import SharedPart
from ris.reference.rela.config import RelaConfig
from ris.reference.rela.keys import BERT, LANG_WEIGHT, MODULES

# in checkpoints, but in no state dict of the reference model, which makes these itself
_NOT_LOADED = re.compile(
    r"criterion\.|text_encoder\.embeddings\.position_ids$"
    r"|backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index$"
)

KEY_RULES = KeyRules(modules=MODULES, not_loaded=_NOT_LOADED, idle=())
"""What the keys of a checkpoint mean, in every configuration."""

SHARED_PARTS = (SharedPart(BERT, frozen=False, decisive=True),)
"""The parts that component files may have too."""


def with_lang_weight(
    entries: dict[str, Entry], config: RelaConfig
) -> tuple[dict[str, Entry], list[str]]:
    """The entries with the factor on the words that the configuration asks for, and a note on it.

    A sigmoid of it scales what the regions read from the words.
    """
    stored = entries.get(LANG_WEIGHT)
    if stored is None or stored.shape:
        return entries, []  # missing or misshapen, which the comparison of keys says
    value = float(stored.read())
    if config.lang_weight == "stored":
        return entries, [
            f"lang_weight: {value:.4g}, as the checkpoint stores it; the authors' evaluation never"
            " loads it and computes with 0"
        ]
    zero = Entry((), torch.float32, stored.file, (lambda: torch.zeros(()),), mapped=False)
    return entries | {LANG_WEIGHT: zero}, [
        f"lang_weight: 0, as in the authors' evaluation, which never loads the stored {value:.4g};"
        " --lang-weight stored takes that"
    ]
