"""Makes weight files in the layouts that people have, with the libraries that wrote the real
ones.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from ris.reference.config import PRESETS, ClipConfig, SamConfig
from ris.reference.deterministic import deterministic_model, make_tensor

TINY = PRESETS["tiny"]
# CLIP's real vocabulary, so that its tokenizer's ids exist, in a text tower of 64 channels
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
# SAM ViT-B as Meta has it, everything else narrow
REAL_SAM = replace(TINY, preset="custom", prompt_width=256, decoder_mlp_width=2048, sam=SamConfig())


def tiny_state(config=TINY, seed=3, **options):
    """The state dict of a model with made-up weights."""
    return {
        k: v.clone() for k, v in deterministic_model(config, seed, **options).state_dict().items()
    }


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
    torch.save(
        {
            "model": state,
            "optimizer": optimizer,
            "scheduler": {"last_epoch": 3},
            "iteration": 3,
            **more,
        },
        path,
    )
    return path


class OpenAIForm(torch.nn.Module):
    """A CLIP with the three numbers that OpenAI's archives keep as buffers, in a form that can be
    traced.
    """

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
        return self.visual(image), self.ln_final(
            self.token_embedding(text) + self.positional_embedding
        )


def save_openai_archive(path, clip, config):
    """A traced module in FP16, as OpenAI publishes CLIP."""
    side = config.clip.image_size
    text = torch.zeros(1, clip.context_length, dtype=torch.long)
    traced = torch.jit.trace(
        OpenAIForm(clip), (torch.zeros(1, 3, side, side), text), check_trace=False
    )
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
    """model_final.pth of the paper's model in float32: every official key of the [CLS] variant,
    dead ones too, and an optimiser's state beside it that nobody must read."""
    import json

    keys = json.loads(Path(keys_file).read_text())
    state = {
        key: torch.from_numpy(make_tensor(key, entry["shape"], seed))
        for key, entry in keys.items()
        if entry["cls"] != "absent"
    }
    state["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    junk = torch.zeros(75_000_000)
    torch.save(
        {"model": state, "optimizer": {"state": {0: {"exp_avg": junk}}}, "iteration": 99999}, path
    )


if __name__ == "__main__":
    write_full_size(sys.argv[1], sys.argv[2], int(sys.argv[3]))
