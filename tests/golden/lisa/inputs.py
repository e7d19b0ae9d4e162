"""Inputs of LISA's golden files; images, tensors, packing and `compare` are those of inputs.py.

The token ids are LLaMA's own, those of added tokens of the 7B files.
"""

import numpy as np

UNK, BOS, EOS, IMAGE = 0, 1, 2, -200
IM_PATCH, IM_START, IM_END, SEG = 32000, 32001, 32002, 32003

WHAT = [1724, 338]  # "What is"
IN_THIS = [297, 445, 1967, 29973]  # "in this image?"
MASK = [3529, 1962, 10768, 362, 11105, 29889]  # "Please output segmentation mask."
ASSISTANT = [319, 1799, 9047, 13566, 29901]  # "ASSISTANT:"
ANSWER = [SEG, 869, 2]  # "[SEG]", ".", "</s>": nothing of it is needed

# the expressions of e2e_lisa_seed0.npz: the ids of the text alone, and how it is asked
EXPRESSIONS = {
    "left man": ("2175 767", "phrase"),
    "the broccoli closest to the ketchup bottle": (
        "278 2545 617 5079 21438 304 278 413 3486 786 18046 280",
        "phrase",
    ),
    "the person is waiting at the crossing. which thing in this picture tells them when to go?": (
        "278 2022 338 10534 472 278 24067 29889 607 2655 297 445 7623 10603 963 746 304 748 29973",
        "sentence",
    ),
}

SIZES = ((480, 640), (613, 427), (1500, 1001), (97, 200))
"""Pictures of module_preprocess.npz, and of evfsam/module_postprocess.npz."""


def question(text):
    """The ids behind <im_end>, up to and with the colon whose state is used."""
    numbers, form = EXPRESSIONS[text]
    ids = [int(n) for n in numbers.split()]
    return (ids if form == "sentence" else WHAT + ids + IN_THIS) + MASK + ASSISTANT


def questions(length=None):
    """(ids, lengths): int64 [3, T] padded at the right with 0, int64 [3]."""
    rows = [question(text) for text in EXPRESSIONS]
    ids = np.full((len(rows), length or max(map(len, rows))), UNK, np.int64)
    for row, found in zip(ids, rows, strict=True):
        row[: len(found)] = found
    return ids, np.array([len(row) for row in rows], np.int64)
