"""What the files beside the weights say: config.json and added_tokens.json.

The eps of the norms and the ids of the added tokens differ from file to file and are in no weight.
The same files tell LISA's other versions, which are other models.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted
from ris.reference.checkpoint.folders import read_json
from ris.reference.lisa.config import PRESETS, AddedTokens, LisaConfig, LlamaSpec
from ris.reference.lisa.sizes import GIVE, named

_V0 = "pytorch_model-text_hidden_fcs.bin"  # a file that LISA v0 has beside its shards
_CLIP = "clip-vit-large-patch14"
_LARGEST = 1 << 20

# what v1 has in config.json, where it has the entry
_OF_V1: dict[str, Any] = {
    "architectures": ["LISAForCausalLM"],
    "model_type": "llava",
    "hidden_act": "silu",
    "rope_scaling": None,
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": True,
}
_TOKENS = {"im_start": "<im_start>", "im_end": "<im_end>", "seg": "[SEG]"}


def settle(config: LisaConfig, folder: Path | None) -> LisaConfig:
    """The configuration of weights with what the files beside them say.

    folder: where those files are; None for weights alone, which are then taken to be those of the
    preset that is as wide. Raises CheckpointError for LISA v0, LISA++ and others, and for what
    contradicts the weights.
    """
    if folder is None:
        return _alone(config)
    if (folder / _V0).exists():
        raise CheckpointError(
            f"it is LISA v0 ({_V0}), whose code this version does not run; {GIVE}"
        )
    llama = _llama(config, folder / "config.json")
    tokens = _tokens(config, folder / "added_tokens.json")
    settled = replace(config, llama=llama, tokens=tokens)
    _ = settled.constant_ids  # raises for a vocabulary that is not LLaMA's
    return named(settled)


def _alone(config: LisaConfig) -> LisaConfig:
    """The configuration of weights without any file beside them."""
    rows, width = config.llama.vocab_size, config.llama.width
    published = ((one.llama.vocab_size, one.llama.width) for one in PRESETS.values())
    if (rows, width) not in published:
        raise CheckpointError(
            f"it has {rows} tokens, and what the added ones are stands in added_tokens.json beside"
            " it; give the folder that holds both"
        )
    return config


def _llama(config: LisaConfig, path: Path) -> LlamaSpec:
    """The language model as config.json has it."""
    settings, llama = read_json(path), config.llama
    for words in _differences(settings, config):
        raise CheckpointError(
            f"its {path.name} has {words}; LISA++, LISA v0 and plain LLaVA are other models, which"
            f" this version does not run; {GIVE}"
        )
    heads = _size(settings, "num_attention_heads", llama.heads, path)
    if llama.width % heads:
        raise CheckpointError(
            f"its {path.name} has num_attention_heads {heads}, which does not divide the width"
            f" {llama.width}; download it again"
        )
    eps = settings.get("rms_norm_eps", llama.eps)
    if type(eps) not in (int, float) or not (math.isfinite(eps) and eps > 0):
        raise CheckpointError(
            f"its {path.name} has rms_norm_eps {quoted(eps)}, no number above 0; download it again"
        )
    layers = _size(settings, "num_hidden_layers", llama.layers, path)
    return replace(llama, layers=layers, heads=heads, eps=float(eps))


def _differences(settings: Mapping[str, Any], config: LisaConfig) -> Iterator[str]:
    """What of config.json is not as LISA v1 of these weights has it, in words."""
    llama = config.llama
    wanted = _OF_V1 | {
        "hidden_size": llama.width,
        "intermediate_size": llama.mlp_width,
        "vocab_size": llama.vocab_size,
        "mm_hidden_size": config.clip.width,
        "out_dim": config.prompt_width,
        "num_key_value_heads": settings.get("num_attention_heads", llama.heads),
    }
    for name, value in wanted.items():
        if name in settings and settings[name] != value:
            found = quoted(settings[name])
            yield f"{name} {found}, where LISA v1 with these weights has {value!r}"
    tower = settings.get("mm_vision_tower", _CLIP)
    if not isinstance(tower, str) or tower.rstrip("/").rpartition("/")[2] != _CLIP:
        yield f"mm_vision_tower {quoted(tower)}, where LISA v1 has 'openai/{_CLIP}'"


def _size(settings: Mapping[str, Any], name: str, usual: int, path: Path) -> int:
    """A whole number of config.json; the usual one where it has none."""
    found = settings.get(name, usual)
    if type(found) is not int or not 0 < found <= _LARGEST:
        raise CheckpointError(
            f"its {path.name} has {name} {quoted(found)}, no number from 1 to {_LARGEST}; download"
            " it again"
        )
    return found


def _tokens(config: LisaConfig, path: Path) -> AddedTokens:
    """The ids of the added tokens; without the file those of the preset with as many."""
    found = read_json(path)
    if not found:
        return _alone(config).tokens
    ids = {}
    for field, token in _TOKENS.items():
        number = found.get(token)
        if type(number) is not int or not 0 <= number < config.llama.vocab_size:
            has = f"no {token}" if number is None else f"{token} as {quoted(number)}"
            raise CheckpointError(
                f"its {path.name} has {has}; LISA v1 has an id below {config.llama.vocab_size}"
                f" there, LISA++ and LISA v0 are other models; {GIVE}"
            )
        ids[field] = number
    return AddedTokens(**ids)
