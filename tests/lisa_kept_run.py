"""What FP16 and INT8 of LISA's kept keys and values change, with made-up weights.

    python tests/lisa_kept_run.py

The reference model computes keys and values of a picture in FP32. They are rounded, and three
questions are asked of them. INT8 is symmetric, as is usual for such values: keys have a scale for
each layer, head and channel, values for each layer, head and position. No test runs this:
docs/measurements/precision.md has what came out.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from conftest import GOLDEN, REPO
from golden import inputs as pictures
from golden.lisa.inputs import questions
from ris.export.sample import EXPRESSIONS
from ris.reference.families import FAMILIES
from ris.reference.layers.letterbox import letterbox_logits
from ris.reference.lisa.config import PRESETS, LisaConfig
from ris.reference.lisa.deterministic import deterministic_model
from ris.reference.lisa.model import LisaModel
from ris.reference.lisa.templates import question_text
from ris.reference.lisa.values import ask, encode, prepare
from ris.reference.preprocess import token_ids
from ris.runtime.comparing import compare, mask_iou

SIZE = (480, 640)
LAYERS = 2
POSITIONS, CHANNELS = 3, 4  # axes of keys and values [B, L, H, P, d]

Values = dict[str, Tensor]


def int8(values: Tensor, axis: int) -> Tensor:
    """Symmetric INT8 and back, with a scale for all numbers along an axis together."""
    scale = values.abs().amax(axis, keepdim=True).clamp_min(1e-30) / 127
    return (values / scale).round().clamp(-127, 127) * scale


ROUNDED: Mapping[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "fp16": lambda keys, values: (keys.half().float(), values.half().float()),
    "int8": lambda keys, values: (int8(keys, POSITIONS), int8(values, CHANNELS)),
    "int8, keys by position": lambda keys, values: (int8(keys, CHANNELS), int8(values, CHANNELS)),
}


def tiny() -> tuple[LisaModel, Values]:
    """The tiny preset about the drawn picture, and its questions."""
    config = PRESETS["tiny-lisa"]
    model = deterministic_model(config)
    asked = [question_text(text, "phrase", config.template) for text in EXPRESSIONS]
    ids = token_ids(FAMILIES["lisa"].tokenizer(None, config), asked, config.max_tokens, 0)
    values = encode(model, prepare(model, pictures.image(0, *SIZE)))
    return model, values | {"input_ids": ids, "text_mask": (ids != 0).float()}


def full_width() -> tuple[LisaModel, Values]:
    """The golden files' 7B with two layers; SAM's embeddings are the golden ones."""
    whole = PRESETS["lisa-7b"]
    # a small encoder of the same grid, which nothing runs
    sam = replace(whole.sam, width=16, depth=1, heads=1, global_blocks=())
    model = deterministic_model(replace(whole, llama=replace(whole.llama, layers=LAYERS), sam=sam))
    golden = np.load(GOLDEN / "lisa" / "e2e_lisa_seed0.npz")
    images = prepare(model, pictures.image(0, *SIZE))
    prefix = model.read_picture(model.project(model.encode_clip(images["clip_image"])))
    ids, lengths = questions()
    return model, {
        "image_embeddings": torch.from_numpy(golden["image_embeddings"]),
        "prefix_keys": prefix.keys,
        "prefix_values": prefix.values,
        "input_ids": torch.from_numpy(ids),
        "text_mask": torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).float(),
    }


def masks(logits: Tensor, config: LisaConfig) -> np.ndarray:
    found = letterbox_logits(logits, *SIZE, config.sam.image_size)[:, 0] > 0
    return found.numpy()


def measured(model: LisaModel, values: Values) -> dict[str, dict[str, float]]:
    """The relative errors, and the lowest mask IoU, of each way to round."""
    want = ask(model, values)
    wanted = masks(want["mask_logits"], model.config)
    found = {}
    for name, rounded in ROUNDED.items():
        keys, kept = rounded(values["prefix_keys"], values["prefix_values"])
        got = ask(model, values | {"prefix_keys": keys, "prefix_values": kept})
        pairs = {
            "keys": (keys, values["prefix_keys"]),
            "values": (kept, values["prefix_values"]),
            "sparse_prompt": (got["sparse_prompt"], want["sparse_prompt"]),
            "mask_logits": (got["mask_logits"], want["mask_logits"]),
        }
        row = {one: compare(a.numpy(), b.numpy()).relative for one, (a, b) in pairs.items()}
        both = zip(masks(got["mask_logits"], model.config), wanted, strict=True)
        found[name] = row | {"mask_iou": min(mask_iou(a, b) for a, b in both)}
    return found


if __name__ == "__main__":
    os.chdir(REPO)
    with torch.no_grad():
        for name, made in (("tiny-lisa", tiny), ("7B, two layers", full_width)):
            print(json.dumps({name: measured(*made())}, indent=1), flush=True)
