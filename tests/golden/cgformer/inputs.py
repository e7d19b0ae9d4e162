"""Inputs of CGFormer's golden files; images, tensors, packing and `compare` are of inputs.py."""

import zlib

import numpy as np

MAX_TOKENS = 20
PLACES = (900, 3600, 14400)
TOKENS = 2

# the expressions of e2e_seed0.npz, WordPiece ids of bert-base-uncased
EXPRESSIONS = {
    "a": ("left man", [101, 2187, 2158, 102]),
    "b": ("second car from the right", [101, 2117, 2482, 2013, 1996, 2157, 102]),
}


def tokens(name, length=MAX_TOKENS):
    """(ids, mask), both int64 [1, 20]: ids padded with 0, mask 1 on real tokens."""
    real = EXPRESSIONS[name][1][:length]
    ids = np.zeros((1, length), np.int64)
    mask = np.zeros((1, length), np.int64)
    ids[0, : len(real)] = real
    mask[0, : len(real)] = 1
    return ids, mask


def word_mask(words, length=MAX_TOKENS):
    """float32 [1, 20]: 1 on the first `words` places."""
    return (np.arange(length) < words).astype(np.float32)[None]


def gumbel(name, shape, seed=0):
    """Standard Gumbel noise, float32; the golden files hold what this gave."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}:noise:{name}".encode()))
    u = np.clip(rng.random(tuple(shape)), 1e-12, 1 - 1e-12)
    return (-np.log(-np.log(u))).astype(np.float32)


def noise(name, seed=0):
    """The three draws of one run, float32 [1, 2, 900], [1, 2, 3600], [1, 2, 14400]."""
    return [gumbel(f"{name}.{level}", (1, TOKENS, n), seed) for level, n in enumerate(PLACES)]
