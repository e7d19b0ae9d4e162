"""Inputs of EVF-SAM's golden files; images, tensors, packing and `compare` are of inputs.py."""

import numpy as np

PAD = 1

# the expressions of the end-to-end files, ids of BEiT-3's vocabulary; the first is the main one
EXPRESSIONS = {
    "left man": [0, 243, 244, 2],
    "the broccoli closest to the ketchup bottle": [0, 4, 29391, 5710, 7, 4, 35290, 3522, 2],
    "[semantic] sky": [0, 64002, 3188, 2],
    "woman": [0, 470, 2],
}
SIZES = (
    (480, 640),
    (613, 427),
    (1500, 1001),
    (97, 200),
)  # of module_preprocess, module_postprocess


def tokens(expressions, length=None):
    """(ids, mask), int64 [N, T].

    ids are padded with 1 to the longest or to `length`, mask is 1 on real tokens.
    """
    rows = [EXPRESSIONS[text] for text in expressions]
    length = length or max(map(len, rows))
    ids = np.full((len(rows), length), PAD, np.int64)
    mask = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask
