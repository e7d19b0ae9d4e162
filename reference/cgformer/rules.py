"""Which keys of a checkpoint matter, and what BERT's own file may give."""

from __future__ import annotations

import re

from ris.reference.cgformer.keys import BERT, MODULES
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.checkpoint.merging import SharedPart

# In checkpoints, but in no module of the reference model: what it makes itself, the gate of the
# last stage and an MLP and a norm of the word readers, which nothing calls, and a temperature that
# training alone divides by.
_NOT_LOADED = re.compile(
    r"text_encoder\.(embeddings\.position_ids$|pooler\.)"
    r"|backbone\.layers\.\d+\.blocks\.\d+\.attn\.relative_position_index$"
    r"|backbone\.layers\.3\.pwam_gate\."
    r"|decoder\.layers\.\d+\.loadtoken\.(norm|mlp)\."
    r"|decoder\.cgattention\d\.tau$"
)

# batches that training has counted
_IDLE = re.compile(r"decoder\..*\.num_batches_tracked$")

KEY_RULES = KeyRules(modules=MODULES, not_loaded=_NOT_LOADED, idle=(_IDLE,))
"""What the keys of a checkpoint mean, in every configuration."""

SHARED_PARTS = (SharedPart(BERT, frozen=False, decisive=True),)
"""The parts that component files may have too."""
