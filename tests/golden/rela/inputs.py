"""Inputs of ReLA's golden files; images, tensors, packing and `compare` are those of inputs.py."""

import numpy as np

from golden import inputs

MAX_TOKENS = 20
EXPRESSIONS = inputs.EXPRESSIONS  # the category there is not used


def tokens(seed=0, length=MAX_TOKENS):
    """(ids, mask), both int64 [1, 20]: ids padded with 0, mask 1 on real tokens."""
    real = EXPRESSIONS[seed][1][:length]
    ids = np.zeros((1, length), np.int64)
    mask = np.zeros((1, length), np.int64)
    ids[0, : len(real)] = real
    mask[0, : len(real)] = 1
    return ids, mask


def word_mask(words, length=MAX_TOKENS):
    """float32 [1, 20]: 1 on the first `words` places."""
    return (np.arange(length) < words).astype(np.float32)[None]


def mask_features():
    """The mask features of module_region_decoder.npz, float32 [1, 256, 120, 120].

    A coarse pattern of 15x15 patches, fine noise and one vector common to all places, so that some
    regions see no place at all in some layer.
    """
    low = inputs.tensor("rela.mask_low", (1, 256, 15, 15)).repeat(8, axis=2).repeat(8, axis=3)
    fine = inputs.tensor("rela.mask_fine", (1, 256, 120, 120))
    common = inputs.tensor("rela.mask_common", (1, 256, 1, 1))
    return np.float32(0.25) * low + np.float32(0.1) * fine + np.float32(0.9) * common


def blocked():
    """The blocked keys of module_region_layer.npz, bool [100, 225] (True: not seen).

    A third of the keys, all of them for regions 0 and 50.
    """
    out = inputs.tensor("rela.layer.blocked", (100, 225)) < np.float32(-0.43)
    out[[0, 50]] = True
    return out
