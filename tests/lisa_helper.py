"""LISA's weight files, for the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from conftest import GOLDEN
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.deterministic import clip_file_tensor, make_tensor
from ris.reference.lisa.model import empty_model

State = dict[str, torch.Tensor]
"""Tensors by the names of a file."""


def official_keys() -> dict[str, dict]:
    """Every key of LISA-7B-v1 with shape, dtype in the file and what it reaches."""
    return json.loads((GOLDEN / "lisa" / "keys.json").read_text())["lisa_7b"]


def clip_keys() -> dict[str, dict]:
    """The same of the image tower in CLIP's own file."""
    return json.loads((GOLDEN / "lisa" / "keys.json").read_text())["clip"]


def is_half(key: str) -> bool:
    """Whether the released files have a key as bfloat16."""
    return not key.startswith(("model.visual_model.", "model.text_hidden_fcs."))


def released_state(config: LisaConfig, seed: int = 3) -> State:
    """A model's tensors as a released file has them: names, dtypes, what no mask needs."""
    state = {
        f"model.{key}": torch.from_numpy(np.array(make_tensor(key, value.shape, seed)))
        for key, value in empty_model(config).state_dict().items()
        if not key.startswith("clip.")
    }
    llama = config.llama
    for index in range(llama.layers):
        key = f"model.layers.{index}.self_attn.rotary_emb.inv_freq"
        state[key] = torch.ones(llama.head_width // 2)
    state["lm_head.weight"] = torch.ones(llama.vocab_size, llama.width)
    return {key: t.to(torch.bfloat16) if is_half(key) else t for key, t in state.items()}


def clip_state(config: LisaConfig, seed: int = 3) -> State:
    """The same weights' image tower as CLIP's own file has it, all layers, and of a text half."""
    clip, state = config.clip, {}
    names = {
        "embeddings.class_embedding": (clip.width,),
        "embeddings.patch_embedding.weight": (clip.width, 3, clip.patch_size, clip.patch_size),
        "embeddings.position_embedding.weight": (clip.grid**2 + 1, clip.width),
        **{
            f"{norm}.{end}": (clip.width,)
            for norm in ("pre_layrnorm", "post_layernorm")
            for end in ("weight", "bias")
        },
    }
    for index in range(clip.layers):
        layer, hidden = f"encoder.layers.{index}.", 4 * clip.width
        for norm in ("layer_norm1", "layer_norm2"):
            names |= {f"{layer}{norm}.{end}": (clip.width,) for end in ("weight", "bias")}
        linear = {f"self_attn.{n}_proj": (clip.width, clip.width) for n in ("q", "k", "v", "out")}
        linear |= {"mlp.fc1": (hidden, clip.width), "mlp.fc2": (clip.width, hidden)}
        for name, shape in linear.items():
            names |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for name, shape in names.items():
        key = f"vision_model.{name}"
        state[key] = torch.from_numpy(np.array(clip_file_tensor(key, shape, seed)))
    tokens = (clip.text_vocab_size, clip.text_width)
    return state | {
        "vision_model.embeddings.position_ids": torch.arange(clip.grid**2 + 1)[None],
        "visual_projection.weight": torch.zeros(clip.embed_dim, clip.width),
        "text_model.embeddings.token_embedding.weight": torch.zeros(tokens),
        "logit_scale": torch.tensor(4.6),
    }


def settings_of(config: LisaConfig) -> dict[str, object]:
    """A released config.json."""
    llama = config.llama
    return {
        "architectures": ["LISAForCausalLM"],
        "model_type": "llava",
        "hidden_size": llama.width,
        "num_hidden_layers": llama.layers,
        "num_attention_heads": llama.heads,
        "num_key_value_heads": llama.heads,
        "intermediate_size": llama.mlp_width,
        "vocab_size": llama.vocab_size,
        "rms_norm_eps": llama.eps,
        "rope_scaling": None,
        "hidden_act": "silu",
        "mm_vision_tower": "openai/clip-vit-large-patch14",
        "mm_hidden_size": config.clip.width,
        "mm_vision_select_layer": -2,
        "mm_vision_select_feature": "patch",
        "mm_use_im_start_end": True,
        "out_dim": config.prompt_width,
        "torch_dtype": "bfloat16",
    }


def added_tokens_of(config: LisaConfig) -> dict[str, int]:
    """A released added_tokens.json; the 7B's has a token that nothing reads."""
    tokens = config.tokens
    patch = {"<im_patch>": tokens.im_start - 1} if tokens.seg > tokens.im_start else {}
    return patch | {"<im_start>": tokens.im_start, "<im_end>": tokens.im_end, "[SEG]": tokens.seg}


def write_folder(
    folder: Path, config: LisaConfig, state: Mapping[str, torch.Tensor], end: str = "bin"
) -> Path:
    """A released folder: two shards, their index, and the files beside them.

    As the 7B's, the first shard ends inside the layers: all of its keys begin with `model.`. end:
    "bin" or "safetensors".
    """
    folder.mkdir(parents=True, exist_ok=True)
    keys = list(state)
    cut = keys.index("model.layers.0.mlp.down_proj.weight") + 1
    stem, places = ("model" if end == "safetensors" else "pytorch_model"), {}
    for number, part in enumerate((keys[:cut], keys[cut:]), 1):
        name = f"{stem}-{number:05}-of-00002.{end}"
        tensors = {key: state[key] for key in part}
        (save_file if end == "safetensors" else torch.save)(tensors, folder / name)
        places |= dict.fromkeys(part, name)
    size = sum(t.numel() * t.element_size() for t in state.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    write_json(folder / f"{stem}.{end}.index.json", index)
    write_json(folder / "config.json", settings_of(config))
    write_json(folder / "added_tokens.json", added_tokens_of(config))
    return folder


def write_clip(path: Path, config: LisaConfig, seed: int = 3) -> Path:
    """CLIP's own file as transformers has it."""
    save_file(clip_state(config, seed), path)
    return path


def write_json(path: Path, data: object) -> Path:
    """A JSON file."""
    path.write_text(json.dumps(data), encoding="utf-8")
    return path
