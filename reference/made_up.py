"""The rule for made-up weights that are the same everywhere: each key seeds its tensor's generator.

They stand in for a trained checkpoint: the golden files use them (seed 0), and so do the untrained
demo and `ris-export --random-weights`. The scales keep activations, attention and mask logits in a
realistic range; a mask made with them means nothing.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

# Lookup tables and position tables keep unit variance; every other matrix is scaled by its fan-in.
_UNIT_VARIANCE = (
    "embeddings.weight",
    "positional_embedding",
    "token_embedding",
    "pos_embed",
    "point_embeddings",
    "not_a_point_embed",
    "no_mask_embed",
    "iou_token",
    "mask_tokens",
    "query_feat",
    "query_embed",
)

# First match wins. Queries and keys are sharpened so that attention is neither flat nor a single
# key; attention outputs are small beside the residual so that a deep random transformer does not
# make all tokens alike.
_GAIN = {
    ".query.weight": 1.5,
    ".key.weight": 1.5,
    "in_proj_weight": 1.5,
    "qkv.weight": 1.5,
    "q_proj.weight": 1.5,
    "k_proj.weight": 1.5,
    "attention.output.dense.weight": 0.3,
    "attn.out_proj.weight": 0.3,
    "attn.proj.weight": 0.3,
    "level_embed": 4.0,
}


def standard_normal(key: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """What a key's tensor is made of: float32 of numpy's PCG64, seeded by crc32("<seed>:<key>")."""
    generator = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
    return generator.standard_normal(tuple(shape), dtype=np.float32)


def make_tensor(
    key: str, shape: Sequence[int], seed: int = 0, gain: float | None = None
) -> np.ndarray:
    """The tensor of a state-dict key, by the rules that hold for every family.

    `standard_normal`, scaled by kind of key. All arithmetic is float32. The golden files depend on
    every digit (docs/reference/models/dfam.md 21).

    Args:
        key: The key.
        shape: The tensor's shape.
        seed: The seed of the whole model.
        gain: What a matrix is scaled by, beside its fan-in; None for the rule's own.

    Returns:
        float32 (int64 for position ids), C-contiguous.
    """
    shape = tuple(int(n) for n in shape)
    if key.endswith("position_ids"):
        return np.arange(shape[-1], dtype=np.int64).reshape(shape)

    normal = standard_normal(key, shape, seed)
    if key.endswith("positional_encoding_gaussian_matrix"):
        return normal
    if key.endswith("sampling_offsets.bias"):
        return np.float32(2.0) * normal
    if len(shape) == 0 or (len(shape) == 1 and key.endswith(".weight")):
        return np.asarray(np.float32(1.0) + np.float32(0.1) * normal, np.float32)
    if len(shape) == 1:
        return np.float32(0.02) * normal
    if any(part in key for part in _UNIT_VARIANCE):
        return normal

    if gain is None:
        gain = next((value for part, value in _GAIN.items() if part in key), 1.0)
    fan_in = max(math.prod(shape[1:]), 1)
    return normal * np.float32(gain / np.sqrt(fan_in))
