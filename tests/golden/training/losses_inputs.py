"""Inputs of losses.npz and train_step.npz: made-up model outputs, targets and sampling points.

N samples (an image and a sentence each), Q queries, g the grid of DFAM's masks, S the side of the
truth. DFAM gives four outputs: "0" from the initial queries, "1" and "2" after its first and second
layer, "final" after the third. Everything is numpy, float32, element by element, so it is the same
everywhere.
"""

import zlib

import numpy as np

from golden import inputs

OUTPUTS = ("final", "0", "1", "2")
CLASSES = 134  # 133 COCO panoptic classes and "background", the rows of text_embeddings

# labels: the COCO category ids of the objects that each sample's sentence means. distinct: every
# sentence has its own column in the class logits; in the real model those N columns are equal
# (CLIP's start token).
CASES = {
    "ris_small": {
        "queries": 12,
        "grid": 16,
        "size": 128,
        "points": 400,
        "distinct": True,
        "no_target": False,
        "labels": ((1,), (18,), (1,), (44,)),
    },
    "gres_small": {
        "queries": 12,
        "grid": 16,
        "size": 128,
        "points": 400,
        "distinct": True,
        "no_target": True,
        "salt": 17,
        "labels": ((1, 1), (), (1, 3, 18), (3,), ()),
    },
    "gres_none": {
        "queries": 12,
        "grid": 16,
        "size": 128,
        "points": 400,
        "distinct": True,
        "no_target": True,
        "labels": ((), ()),
    },
    "ris_full": {
        "queries": 100,
        "grid": 64,
        "size": 1024,
        "points": 12544,
        "distinct": False,
        "no_target": False,
        "labels": ((1,), (1,), (18,), (3,)),
    },
    "gres_full": {
        "queries": 100,
        "grid": 64,
        "size": 1024,
        "points": 12544,
        "distinct": False,
        "no_target": True,
        "labels": ((1, 18, 3), (), (1,), (1, 1)),
    },
    "train_refcoco": {
        "queries": 100,
        "grid": 64,
        "size": 1024,
        "points": 12544,
        "no_target": False,
        "labels": ((1,), (3,), (1,)),
    },
    "train_grefcoco": {
        "queries": 100,
        "grid": 64,
        "size": 1024,
        "points": 12544,
        "no_target": True,
        "labels": ((1, 3), (), (18,)),
    },
}
# the names of labels, for the category variant
CASES["train_refcoco"]["categories"] = ("person", "car", "person")
CASES["train_grefcoco"]["categories"] = ("background",) * 3

# the sentences of the train_* cases: WordPiece ids, [CLS] and [SEP] included
SENTENCES = (
    (101, 2187, 2158, 102),
    (101, 2117, 2482, 2013, 1996, 2157, 102),
    (101, 1996, 2711, 1999, 1037, 2417, 3797, 2025, 3173, 2012, 1996, 4950, 102),
)


def counts(case):
    """Objects per sample."""
    return [len(ids) for ids in CASES[case]["labels"]]


def points(name, shape):
    """Uniform float32 numbers in [0, 1): the points called `name`, (x, y) in the last axis."""
    rng = np.random.default_rng(zlib.crc32(f"0:points:{name}".encode()))
    return rng.random(tuple(shape), dtype=np.float32)


def match_points(case, output, sample):
    """The points [1, P, 2] at which this sample's queries are compared with its objects."""
    return points(f"{case}.match.{output}.{sample}", (1, CASES[case]["points"], 2))


def loss_points(case, output):
    """([M, 3P, 2] to choose the P*3//4 most uncertain from, [M, P - P*3//4, 2] taken as is).

    M: the matched pairs, in the order of the samples and, within one, of the queries' numbers.
    """
    many, count = sum(counts(case)), CASES[case]["points"]
    sure = count * 3 // 4
    over = points(f"{case}.loss.{output}.over", (many, count * 3, 2))
    return over, points(f"{case}.loss.{output}.more", (many, count - sure, 2))


def truth(case):
    """The objects' masks: for every sample bool [n, S, S]; n is 0 where nothing is meant."""
    side = CASES[case]["size"]
    y, x = np.mgrid[0:side, 0:side].astype(np.int64)
    found = []
    for sample, number in enumerate(counts(case)):
        masks = np.zeros((number, side, side), bool)
        for i in range(number):
            name = f"{CASES[case].get('salt', 0)}:{case}:object:{sample}:{i}"
            rng = np.random.default_rng(zlib.crc32(name.encode()))
            cx, cy = (int(v) for v in rng.integers(side // 5, side - side // 5, 2))
            a, b = (int(v) for v in rng.integers(side // 12, side // 5, 2))
            if i % 2 == 0:
                masks[i] = (x - cx) ** 2 * b * b + (y - cy) ** 2 * a * a <= a * a * b * b
            else:
                masks[i] = (abs(x - cx) <= a) & (abs(y - cy) <= b)
        found.append(masks)
    return found


def union(case):
    """What each sentence means as one mask: bool [N, 1, S, S]."""
    return np.stack([masks.any(0, keepdims=True) for masks in truth(case)])


def pooled(mask, grid):
    """Block means of a bool mask [S, S]: float32 [grid, grid], exact."""
    block = mask.shape[0] // grid
    total = mask.reshape(grid, block, grid, block).sum((1, 3))
    return total.astype(np.float32) / np.float32(block * block)


def plan(case, output):
    """The queries that show something: for every sample (query, objects of its mask, strength)."""
    shift = 3 * OUTPUTS.index(output)
    many = CASES[case]["queries"]
    rows = []
    for sample, number in enumerate(counts(case)):
        q = [(2 * sample + 1 + shift + k) % many for k in range(many)]
        if number == 3:
            # one query on two objects at once, cheapest for either; one on a part of the second
            rows.append([(q[0], (0, 1), 6.0), (q[4], (1,), 6.0), (q[7], (2,), 6.0)])
        elif number == 2:
            rows.append([(q[0], (0,), 6.0), (q[5], (0,), 6.0), (q[2], (1,), 6.0)])
        elif number == 1:
            rows.append([(q[0], (0,), 6.0), (q[5], (0,), 6.0), (q[2], (0,), 2.0)])
        else:
            rows.append([])
    return rows


def twins(case, output):
    """(sample, query, its twin) where two queries have one mask.

    The sentence prefers the first a little, the class term the second by more.
    """
    rows = enumerate(plan(case, output))
    return [
        (sample, row[0][0], row[1][0])
        for sample, row in rows
        if len(row) > 1 and row[0][1:] == row[1][1:]
    ]


def query_masks(case, output):
    """DFAM's mask logits [N, Q, g, g]."""
    many, grid = CASES[case]["queries"], CASES[case]["grid"]
    objects = truth(case)
    out = []
    for sample, row in enumerate(plan(case, output)):
        low = inputs.tensor(f"{case}.low.{output}.{sample}", (many, 4, 4))
        low = low.repeat(grid // 4, axis=1).repeat(grid // 4, axis=2)
        fine = inputs.tensor(f"{case}.fine.{output}.{sample}", (many, grid, grid))
        maps = np.float32(1.5) * low + np.float32(0.5) * fine - np.float32(2)
        for query, which, strength in row:
            shape = objects[sample][list(which)].any(0)
            if len(row) == 3 and which == (1,) and len(objects[sample]) == 3:
                columns = shape.any(0).nonzero()[0]
                shape = shape & (np.arange(shape.shape[1]) < columns[len(columns) * 2 // 5])
            shape = pooled(shape, grid)
            maps[query] = (
                np.float32(strength) * (shape - np.float32(0.5)) + np.float32(0.5) * fine[row[0][0]]
            )
        out.append(maps)
    return np.stack(out)


def class_logits(case, output):
    """Logits against CLIP's text vectors [N, Q, N + 134]: sentences, classes, background."""
    many, number = CASES[case]["queries"], len(counts(case))
    out = inputs.tensor(f"{case}.class.{output}", (number, many, number + CLASSES))
    for sample, _first, second in twins(case, output):
        out[sample, second, sample] = np.float32(6)
    if not CASES[case]["distinct"]:
        own = out[np.arange(number), :, np.arange(number)]  # [N, Q]
        out[:, :, :number] = own[:, :, None]
    return out


def sentence_logits(case, output):
    """Logits against the projected [CLS] states of the batch's sentences [N, Q, N]."""
    many, number = CASES[case]["queries"], len(counts(case))
    out = np.float32(1.2) * inputs.tensor(f"{case}.sentence.{output}", (number, many, number))
    for sample, first, second in twins(case, output):
        out[sample, first, sample], out[sample, second, sample] = np.float32(1.0), np.float32(0.0)
    return out


def mask_logits(case):
    """The main mask before its resize, [N, 1, 4g, 4g]."""
    side = 4 * CASES[case]["grid"]
    out = inputs.tensor(f"{case}.main", (len(counts(case)), 1, side, side))
    for sample, mask in enumerate(union(case)):
        out[sample, 0] += np.float32(4) * (pooled(mask[0], side) - np.float32(0.5))
    return out


def no_target_logits(case):
    """[N, 2]; class 1 is "no target"."""
    return np.float32(1.5) * inputs.tensor(f"{case}.no_target", (len(counts(case)), 2))


def train_inputs(case):
    """What the trained part of the model reads.

    SAM's embedding [N, 256, 64, 64], CLIP's patches [N, 576, 1024], token ids [N, 35] and CLIP's
    state at its start token, one vector [768] for all sentences.
    """
    number = len(counts(case))
    ids = np.zeros((number, inputs.MAX_TOKENS), np.int64)
    for row, words in zip(ids, SENTENCES[:number], strict=True):
        row[: len(words)] = words
    return {
        "sam": inputs.tensor(f"{case}.sam", (number, 256, 64, 64)),
        "clip": inputs.tensor(f"{case}.clip", (number, 576, 1024)),
        "input_ids": ids,
        "clip_start": inputs.tensor("train.clip_start", (768,)),
    }


def unpack_bits(golden, name, shape):
    """A bool array that is stored as numpy.packbits bytes."""
    return np.unpackbits(golden[name], count=int(np.prod(shape))).reshape(shape).astype(bool)
