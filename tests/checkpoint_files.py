"""Makes weight files in the layouts that people have, with the libraries that wrote theirs."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import deterministic_model, make_tensor
from ris.reference.layers.encoder_sizes import ClipConfig, SamConfig
from ris.reference.layers.encoders import build_clip

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""How close a loaded module comes to the library that wrote its file."""

TINY = PRESETS["tiny"]

CLIP_TEXT = replace(
    TINY,
    preset="custom",
    clip=ClipConfig(
        image_size=56,
        patch_size=14,
        width=128,
        layers=2,
        heads=2,
        embed_dim=48,
        text_width=64,
        text_layers=1,
        text_heads=1,
        text_vocab_size=49408,
    ),
)
"""CLIP's real vocabulary, so that its tokenizer's ids exist, in a text tower of 64 channels."""

REAL_SAM = replace(TINY, preset="custom", prompt_width=256, decoder_mlp_width=2048, sam=SamConfig())
"""SAM ViT-B as Meta has it, everything else narrow."""


def tiny_state(config=TINY, seed=3, **options):
    """The state dict of a model with made-up weights."""
    state = deterministic_model(config, seed, **options).state_dict()
    return {key: value.clone() for key, value in state.items()}


def without(state, *prefixes):
    return {k: v for k, v in state.items() if not k.startswith(prefixes)}


def below(state, prefix):
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def save_training_checkpoint(path, state, **more):
    """As detectron2 writes it: optimiser and iteration beside the state dict."""
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(7)}},
        "param_groups": [{"lr": 5e-5, "params": [0]}],
    }
    beside = {"optimizer": optimizer, "scheduler": {"last_epoch": 3}, "iteration": 3}
    torch.save({"model": state, **beside, **more}, path)
    return path


def trained(folder, state, name="trained.pth"):
    """A training checkpoint in a folder."""
    return save_training_checkpoint(folder / name, state)


def refused(**files):
    """The one sentence with which weight files are refused."""
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(**files))
    message = str(caught.value)
    assert "\n" not in message
    return message


def clip_with_text():
    """open_clip's CLIP of the sizes of CLIP_TEXT with random weights, the same each time."""
    torch.manual_seed(1)
    return build_clip(CLIP_TEXT.clip).eval()


def copy_of(clip):
    """Another such CLIP with the same weights."""
    copy = build_clip(CLIP_TEXT.clip).eval()
    copy.load_state_dict(clip.state_dict())
    return copy


class OpenAIForm(torch.nn.Module):
    """A CLIP that can be traced, with the three numbers that OpenAI's archives keep as buffers."""

    def __init__(self, clip):
        super().__init__()
        for name in ("visual", "transformer", "token_embedding", "ln_final"):
            setattr(self, name, getattr(clip, name))
        for name in ("positional_embedding", "text_projection", "logit_scale"):
            setattr(self, name, getattr(clip, name))
        self.register_buffer("input_resolution", torch.tensor(clip.visual.image_size[0]))
        self.register_buffer("context_length", torch.tensor(clip.context_length))
        self.register_buffer("vocab_size", torch.tensor(clip.vocab_size))
        self.other = [clip]  # not a submodule

    def forward(self, image, text):
        words = self.token_embedding(text) + self.positional_embedding
        return self.visual(image), self.ln_final(words)


def save_openai_archive(path, clip, config):
    """A traced module in FP16, as OpenAI publishes CLIP. Makes the weights of `clip` FP16, too."""
    side = config.clip.image_size
    image = torch.zeros(1, 3, side, side)
    text = torch.zeros(1, clip.context_length, dtype=torch.long)
    traced = torch.jit.trace(OpenAIForm(clip), (image, text), check_trace=False)
    torch.jit.save(traced.half(), path)
    return path


def save_half(path, state):
    save_file({k: v.half().contiguous() for k, v in state.items()}, path)
    return path


class Payload:
    """A pickle of this runs a shell command that creates a file."""

    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def write_full_size(path, keys_file, seed):
    """model_final.pth of the paper's model in float32.

    Every official key of the [CLS] variant, dead ones too, and an optimiser's state beside it that
    nobody must read.
    """
    keys = json.loads(Path(keys_file).read_text())
    state = {
        key: torch.from_numpy(make_tensor(key, entry["shape"], seed))
        for key, entry in keys.items()
        if entry["cls"] != "absent"
    }
    state["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    optimizer = {"state": {0: {"exp_avg": torch.zeros(75_000_000)}}}
    torch.save({"model": state, "optimizer": optimizer, "iteration": 99999}, path)


if __name__ == "__main__":
    write_full_size(sys.argv[1], sys.argv[2], int(sys.argv[3]))
