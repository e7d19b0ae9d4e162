"""The category table from a CLIP text tower, for a checkpoint that lost its buffer
(docs/reference/models/dfam.md 15).
"""

from __future__ import annotations

import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from ris.reference.categories import COCO_PANOPTIC
from ris.reference.checkpoint.files import Entry, give_back
from ris.reference.config import ModelConfig
from ris.reference.model import build_clip

CONTEXT = 77
_AT_ONCE = 32
_VOCABULARY = 49408
_ENDINGS = ("-merged", "-other", "-stuff")
_PHRASES = {"tree-merged": ("branch", "tree", "bush", "leaves")}
_CLIP = "clip_dense.clip_model."


def category_phrases(name: str) -> tuple[str, ...]:
    """What CLIP's text tower is asked for a class: its plain name.

    The released code puts one to four phrases of its own in place of 27 stuff classes. Of those
    only the ones of "tree-merged" are known here; for the other 26 the plain words of the name
    stand in, so their rows differ from the trained ones. The 80 things, and the stuff classes with
    a plain name, are exact.
    """
    if name in _PHRASES:
        return _PHRASES[name]
    plain = name
    for ending in _ENDINGS:
        plain = plain.removesuffix(ending)
    for ending in _ENDINGS:  # "sky-other-merged" has two
        plain = plain.removesuffix(ending)
    return (plain.replace("-", " "),)


def text_tower(entries: dict[str, Entry], config: ModelConfig) -> dict[str, Entry] | None:
    """The entries of a text tower that the table can be computed from, by its own key names; None
    without one.
    """
    with torch.device("meta"):
        state = build_clip(config.clip).state_dict()
    wanted = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("visual.")}
    found = {key: entries[_CLIP + key] for key in wanted if _CLIP + key in entries}
    needed = wanted.keys() - {"logit_scale"}
    fits = needed <= found.keys() and all(found[key].shape == wanted[key] for key in found)
    return found if fits and config.clip.text_vocab_size == _VOCABULARY else None


@torch.no_grad()
def compute_table(tower: dict[str, Entry], config: ModelConfig) -> Tensor:
    """The table [categories, embed_dim], float32, from the entries of `text_tower`; they are let go
    again.
    """
    with torch.device("meta"):
        clip = build_clip(config.clip)
    state = {key: entry.read() for key, entry in tower.items()}
    clip.load_state_dict(state, strict=False, assign=True)
    clip.eval()
    clip.attn_mask = torch.full((CONTEXT, CONTEXT), float("-inf")).triu(1)
    tokenizer = SimpleTokenizer(context_length=CONTEXT)
    phrases = [category_phrases(name) for name in COCO_PANOPTIC[: config.categories]]
    tokens = tokenizer([phrase for group in phrases for phrase in group])
    vectors = torch.cat([clip.encode_text(part) for part in tokens.split(_AT_ONCE)])
    means = torch.stack(
        [group.mean(0) for group in vectors.split([len(group) for group in phrases])]
    )
    table = means / means.norm(dim=1, keepdim=True)
    for key, entry in tower.items():
        if entry.mapped and state[key].dtype == entry.dtype:
            give_back(state[key])
    return table
