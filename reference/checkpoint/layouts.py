"""What a weight file is of, and component files under the key names of the whole model.

docs/reference/checkpoints.md, Files, has the layouts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, quoted
from ris.reference.checkpoint.entries import Entry, stack
from ris.reference.checkpoint.files import WeightFile, open_weights
from ris.reference.checkpoint.folders import (
    INDEX_END,
    checkpoint_in,
    find_weights,
    read_json,
    require_no_shard,
    weights_in,
)
from ris.reference.checkpoint.shards import open_shards
from ris.reference.families import family_named, nearest, recognise, relative_of
from ris.reference.family import Family
from ris.reference.tokenizer import find_tokenizer_file

Component = Literal["checkpoint", "sam", "clip", "bert"]
"""What a weight file is of: the whole model, or one of its three parts from elsewhere."""

Entries = dict[str, Entry]
"""Tensors by name."""


_WHOLE = "a checkpoint of the whole model"


class _Sign(NamedTuple):
    """How a kind of file is told by its keys."""

    words: str
    """The kind, in words."""

    component: Component | None
    """What the file can serve as; None where it is of no use here."""

    prefixes: tuple[str, ...]
    """It is of this kind if any of its keys begins with any of these."""


# the first that fits, of what is no whole model
_SIGNS = (
    _Sign(
        "SAM's weights in Meta's layout",
        "sam",
        ("image_encoder.patch_embed.", "image_encoder.blocks.0.attn.qkv."),
    ),
    _Sign("SAM's weights in transformers' layout", None, ("vision_encoder.patch_embed.",)),
    _Sign("SAM 2's weights", None, ("image_encoder.trunk.",)),
    _Sign("a CLIP with a ResNet image tower", None, ("visual.layer1.",)),
    _Sign(
        "CLIP's weights",
        "clip",
        (
            "visual.class_embedding",
            "visual.conv1.",
            "vision_model.embeddings.",
            "text_model.embeddings.",
            "ln_final.",
        ),
    ),
    _Sign(
        "BERT's weights",
        "bert",
        ("embeddings.word_embeddings.", "bert.embeddings.word_embeddings."),
    ),
)
OPTIONS: dict[Component, str] = {
    "checkpoint": "--checkpoint",
    "sam": "--sam-checkpoint",
    "clip": "--clip-checkpoint",
    "bert": "--bert",
}
"""The option that a weight file is given as."""

_EXPECTED = {
    "checkpoint": _WHOLE,
    "sam": "SAM's weights in Meta's layout (sam_vit_b_01ec64.pth)",
    "clip": "CLIP's weights (OpenAI's, open_clip's or transformers' layout)",
    "bert": "BERT's weights (transformers' layout)",
}

_MOST_HEADS = 1 << 10


@dataclass(frozen=True)
class ComponentWeights:
    """A component file under the whole model's key names."""

    component: Component
    """Which part of the model it is of."""

    file: WeightFile | None
    """The weights; None where a BERT folder has a vocabulary alone."""

    entries: Entries
    """Its tensors by the whole model's key names."""

    heads: dict[str, int]
    """Attention heads, as far as a config.json tells: of "clip", "clip_text" and "bert"."""

    vocabulary: Path | None = None
    """vocab.txt or tokenizer.json of a BERT folder; None where there is neither."""


def looks_like(names: Iterable[str]) -> tuple[str, Component | None]:
    """(what a file with these keys is, the component it can serve as or None)."""
    found = list(names)
    if recognise(found) is not None:
        return _WHOLE, "checkpoint"
    for sign in _SIGNS:
        if any(name.startswith(sign.prefixes) for name in found):
            return sign.words, sign.component
    return f"something unknown (its first keys are {', '.join(map(echoed, found[:3]))})", None


def require(file: WeightFile, wanted: Component) -> None:
    """Raises CheckpointError where a file is not what its option stands for."""
    if looks_like(file.entries)[1] != wanted:
        raise _misplaced(file, wanted)


def _misplaced(file: WeightFile, wanted: Component) -> CheckpointError:
    """What a file is, and which option takes it."""
    words, component = looks_like(file.entries)
    if component is None:
        way_out = "it cannot be used here"
    else:
        way_out = f"give {'its folder' if component == 'bert' else 'it'} as {OPTIONS[component]}"
    return CheckpointError(
        f"{file.path}, given as {OPTIONS[wanted]}, is {words}; expected {_EXPECTED[wanted]};"
        f" {way_out}"
    )


def open_checkpoint(path: Path, family: str | None = None) -> tuple[WeightFile, Family[Any, Any]]:
    """A training checkpoint and the family that it is of.

    Args:
        path: The file, the index of several, or the folder that holds either.
        family: The name of the family that it is to be taken for; None: what its keys say.

    Raises:
        CheckpointError: For a component's file, for one that fits no family or that a family
            refuses by name, and for an unknown family.
    """
    named = family_named(family) if family else None
    file = _open_whole(path)
    if words := relative_of(file.entries):
        raise CheckpointError(f"{path}, given as --checkpoint, is {words}")
    component = looks_like(file.entries)[1]
    if component not in ("checkpoint", None):
        raise _misplaced(file, "checkpoint")
    found = named or recognise(file.entries)
    if found is None:
        raise _unrecognised(file)
    return file, found


def _open_whole(path: Path) -> WeightFile:
    """The weights of a file, or of a folder with its index or its one weight file."""
    if path.is_dir():
        return replace(_open_whole(checkpoint_in(path)), folder=path)
    if path.name.endswith(INDEX_END):
        return replace(open_shards(path), folder=path.parent)
    require_no_shard(path)
    return open_weights(path)


def _unrecognised(file: WeightFile) -> CheckpointError:
    """For a checkpoint that bears the signs of no family: which it is nearest to."""
    clause = nearest(file.entries)
    if clause is None:
        return _misplaced(file, "checkpoint")
    return CheckpointError(
        f"{file.path}, given as --checkpoint, is of no family of models that is known here; it is"
        f" {clause}; --family takes it for one all the same"
    )


def open_sam(path: Path, prefix: str) -> ComponentWeights:
    """SAM's weights in Meta's layout, whose encoder's keys begin with `image_encoder.`.

    prefix: what the keys of SAM in the whole model begin with. Raises CheckpointError for anything
    else.
    """
    file = open_weights(path)
    require(file, "sam")
    entries = {prefix + name: entry for name, entry in file.entries.items()}
    return ComponentWeights("sam", file, entries, {})


# --- CLIP ---

# what transformers calls a key, and what OpenAI does; all that match are applied
_HF_CLIP: tuple[tuple[str, str], ...] = (
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"^visual_projection\.weight$", "visual.proj"),
    (r"^text_model\.embeddings\.token_embedding\.", "token_embedding."),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^text_projection\.weight$", "text_projection"),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
    (r"\.layer_norm1\.", ".ln_1."),
    (r"\.layer_norm2\.", ".ln_2."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
)
# which transformers stores as linear layers' weights, OpenAI as matrices to multiply with
_TRANSPOSED = ("visual.proj", "text_projection")
# numbers that OpenAI's archives keep as buffers, and masks that open_clip has saved at times
_NOT_WEIGHTS = ("input_resolution", "context_length", "vocab_size", "attn_mask", "logit_bias")


def open_clip(path: Path, prefix: str) -> ComponentWeights:
    """CLIP's weights: OpenAI's archive, open_clip's state dict, or transformers' CLIPModel.

    The latter is a file or its folder. prefix: what the keys of both towers in the whole model
    begin with. Raises CheckpointError for anything else, and for an activation other than
    QuickGELU, where a config.json tells.
    """
    config = read_json(path / "config.json") if path.is_dir() else {}
    file = open_weights(weights_in(path, "--clip-checkpoint") if path.is_dir() else path)
    require(file, "clip")
    heads = _clip_heads(config, path)

    entries = file.entries
    if any(name.startswith(("vision_model.", "text_model.")) for name in entries):
        entries = _from_transformers_clip(entries)
    named = {
        # open_clip's CustomTextCLIP keeps the text tower one level down
        prefix + name.removeprefix("text."): entry
        for name, entry in entries.items()
        if name.rpartition(".")[2] not in _NOT_WEIGHTS
    }
    return ComponentWeights("clip", file, named, heads)


def _clip_heads(config: dict[str, Any], folder: Path) -> dict[str, int]:
    """The heads of both towers from transformers' config.json, whose activation is checked."""
    heads = {}
    for part, name in (("vision_config", "clip"), ("text_config", "clip_text")):
        own = config.get(part) or {}
        if not isinstance(own, dict):
            raise CheckpointError(
                f"{folder / 'config.json'}: {part} is no object; download it again"
            )
        if own.get("hidden_act", "quick_gelu") != "quick_gelu":
            raise CheckpointError(
                f"{folder / 'config.json'}: this CLIP uses {quoted(own['hidden_act'])}, the"
                " model runs OpenAI's QuickGELU; give the weights that OpenAI trained"
            )
        if "num_attention_heads" in own:
            heads[name] = _heads(own, folder)
    return heads


def _heads(config: dict[str, Any], folder: Path) -> int:
    """The attention heads of a config.json that says them."""
    heads = config["num_attention_heads"]
    if not isinstance(heads, int) or not 1 <= heads <= _MOST_HEADS:
        raise CheckpointError(
            f"{folder / 'config.json'}: num_attention_heads is {quoted(heads)}, no number from"
            f" 1 to {_MOST_HEADS}; download it again"
        )
    return heads


def _from_transformers_clip(entries: Entries) -> Entries:
    """transformers' CLIPModel as OpenAI's: names, packed q/k/v, transposed projections."""
    renamed: Entries = {}
    for name, entry in entries.items():
        if name.endswith("position_ids"):
            continue
        for pattern, replacement in _HF_CLIP:
            name = re.sub(pattern, replacement, name)
        renamed[name] = entry.transpose() if name in _TRANSPOSED else entry

    for name in [n for n in renamed if ".self_attn.q_proj." in n]:
        parts = [name.replace(".q_proj.", f".{letter}_proj.") for letter in "qkv"]
        if all(part in renamed for part in parts):
            packed = name.replace(".self_attn.q_proj.", ".attn.in_proj_")
            renamed[packed] = stack([renamed.pop(part) for part in parts])
    return renamed


# --- BERT ---

# what a BERT's config.json must have, and has where it says nothing
_BERT_CONFIG: tuple[tuple[str, Any], ...] = (
    ("model_type", "bert"),
    ("hidden_act", "gelu"),
    ("layer_norm_eps", 1e-12),
    ("position_embedding_type", "absolute"),
)


def open_bert(path: Path, prefix: str) -> ComponentWeights:
    """A folder with config.json, model.safetensors or pytorch_model.bin, and a vocabulary.

    The vocabulary is vocab.txt or tokenizer.json; it may also be all that the folder has. prefix:
    what BERT's keys in the whole model begin with. Raises CheckpointError for anything else,
    another architecture, or a cased vocabulary.
    """
    if not path.is_dir():
        raise CheckpointError(
            f"{path} is no folder; --bert takes the folder with config.json, model.safetensors or"
            " pytorch_model.bin, and vocab.txt or tokenizer.json"
        )
    config = read_json(path / "config.json")
    _check_bert(config, path)
    heads = {"bert": _heads(config, path)} if "num_attention_heads" in config else {}

    vocabulary = find_tokenizer_file(path)
    if vocabulary is not None and find_weights(path) is None:
        return ComponentWeights("bert", None, {}, heads, vocabulary)
    file = open_weights(weights_in(path, "--bert"))
    require(file, "bert")
    entries = _bert_entries(file.entries, prefix)
    return ComponentWeights("bert", file, entries, heads, vocabulary)


def _check_bert(config: dict[str, Any], folder: Path) -> None:
    for name, wanted in _BERT_CONFIG:
        if config.get(name, wanted) != wanted:
            raise CheckpointError(
                f"{folder / 'config.json'} has {name} {quoted(config[name])}, the model's BERT has"
                f" {wanted!r}; give bert-base-uncased, or a model fine-tuned from it"
            )
    if read_json(folder / "tokenizer_config.json").get("do_lower_case") is False:
        raise CheckpointError(
            f"{folder} holds a cased BERT; the model's text is lower-cased, give the uncased one"
        )


def _bert_entries(entries: Entries, prefix: str) -> Entries:
    """BERT without pooler and heads, old names made new."""
    named: Entries = {}
    for name, entry in entries.items():
        name = name.removeprefix("bert.")
        if name.startswith(("pooler.", "cls.", "classifier.")) or name.endswith("position_ids"):
            continue
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight")
        name = name.replace("LayerNorm.beta", "LayerNorm.bias")
        named[prefix + name] = entry
    return named


OPENERS: dict[Component, Callable[[Path, str], ComponentWeights]] = {
    "sam": open_sam,
    "clip": open_clip,
    "bert": open_bert,
}
"""What opens a component file, given what its keys in the whole model are to begin with."""
