"""What a CLIP text tower says: the category table, and the state of a sentence's first token.

Section 15 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import open_clip
import torch
from torch import Tensor

from ris.reference.checkpoint.entries import Entry, give_back
from ris.reference.checkpoint.finite import require_finite
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.keys import CLIP, TABLE
from ris.reference.layers.encoders import causal_mask, empty_clip

CONTEXT = 77
"""Positions of CLIP's text tower."""

_AT_ONCE = 32
"""Phrases that go through the text tower together."""

_VOCABULARY = 49408
"""Tokens of CLIP's own tokenizer, the only one that is at hand."""

_START = _VOCABULARY - 2
"""The token that every text begins with."""

_ENDINGS = ("-merged", "-other", "-stuff")
_PHRASES = {"tree-merged": ("branch", "tree", "bush", "leaves")}


def with_table(
    entries: dict[str, Entry], config: ModelConfig
) -> tuple[dict[str, Entry], list[str]]:
    """The entries with the category table, and notes on where it is from.

    The table is the buffer, or one computed from a text tower when it is read; all zeros is no
    table. Neither where there is no tower, and nothing is done for the [CLS] variant.
    """
    if config.query != "category":
        return entries, []
    table = entries.get(TABLE)
    if table is not None and bool(table.read().any()):
        return entries, []

    rest = {key: entry for key, entry in entries.items() if key != TABLE}
    tower = text_tower(entries, config)
    if tower is None:
        zeros = "WARNING: the category table is all zeros, which is no table"
        return rest, [] if table is None else [zeros]

    file = next(iter(tower.values())).file
    computed = Entry(
        shape=(config.categories, config.clip.embed_dim),
        dtype=torch.float32,
        file=file,
        pieces=(lambda: compute_table(tower, config),),
        mapped=False,
        computed=True,
    )
    return rest | {TABLE: computed}, [
        f"category table: computed with the text tower of {file.name}; 26 of the stuff classes by"
        " their plain names"
    ]


def text_tower(entries: dict[str, Entry], config: ModelConfig) -> dict[str, Entry] | None:
    """The entries of a text tower that the table can be computed from, by the tower's own keys.

    None where there is no such tower.
    """
    state = empty_clip(config.clip).state_dict()
    wanted = {k: tuple(v.shape) for k, v in state.items() if not k.startswith("visual.")}
    found = {key: entries[CLIP + key] for key in wanted if CLIP + key in entries}
    needed = wanted.keys() - {"logit_scale"}
    fits = needed <= found.keys() and all(found[key].shape == wanted[key] for key in found)
    return found if fits and config.clip.text_vocab_size == _VOCABULARY else None


def compute_table(tower: dict[str, Entry], config: ModelConfig) -> Tensor:
    """The table [categories, embed_dim], float32, from the entries of `text_tower`.

    Their pages are given back afterwards. Raises CheckpointError where they are NaN or infinite.
    """
    tokenizer = open_clip.SimpleTokenizer(context_length=CONTEXT)
    names = COCO_PANOPTIC[: config.categories]
    tokens = [tokenizer(list(category_phrases(name))) for name in names]
    with _built(tower, config) as clip:
        return category_rows(clip, tokens)


@torch.no_grad()
def compute_sentence_start(entries: dict[str, Entry], config: ModelConfig) -> Tensor:
    """The text tower's state at the start token, float32 [text_width].

    It is what the tower's last norm gives, without projection. The token sees nothing after it, so
    the state is the same for every sentence.

    entries: a model's tensors, with a text tower (`text_tower`). Raises CheckpointError where its
    tensors are NaN or infinite.
    """
    tower = text_tower(entries, config)
    assert tower is not None
    with _built(tower, config) as clip:
        first = clip.token_embedding.weight[_START] + clip.positional_embedding[0]
        state = clip.transformer(first[None, None], attn_mask=torch.zeros(1, 1))
        return clip.ln_final(state)[0, 0].clone()


@contextmanager
def _built(tower: dict[str, Entry], config: ModelConfig) -> Iterator[open_clip.CLIP]:
    """The tower of these entries; their pages are given back when it was used."""
    require_finite(tower, tower)
    clip = empty_clip(config.clip)
    state = {key: entry.read() for key, entry in tower.items()}
    clip.load_state_dict(state, strict=False, assign=True)
    clip.eval()
    clip.attn_mask = causal_mask(CONTEXT)
    yield clip
    for key, entry in tower.items():
        if entry.mapped and state[key].dtype == entry.dtype:
            give_back(state[key])


@torch.no_grad()
def category_rows(clip: open_clip.CLIP, tokens: list[Tensor]) -> Tensor:
    """Rows of the table, [classes, embed_dim], from the tokens [phrases, 77] of each class.

    A row is the mean of the phrases' unnormalised text vectors, divided by its L2 norm.
    """
    vectors = torch.cat([clip.encode_text(part) for part in torch.cat(tokens).split(_AT_ONCE)])
    groups = vectors.split([len(phrases) for phrases in tokens])
    means = torch.stack([group.mean(0) for group in groups])
    return means / means.norm(dim=1, keepdim=True)


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
    for ending in _ENDINGS * 2:  # "sky-other-merged" has two
        plain = plain.removesuffix(ending)
    return (plain.replace("-", " "),)
