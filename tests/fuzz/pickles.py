"""Mutations of pickles between their steps, so that what follows is still read."""

from __future__ import annotations

import pickletools
import random
import struct

from fuzz.mutate import mutate

INSERTED = (
    b"r" + struct.pack("<I", 200_000_000),  # remember a value under this number
    b"r" + struct.pack("<I", 2**32 - 1),
    b"j" + struct.pack("<I", 2**31),  # recall one
    b"\x8d" + struct.pack("<Q", 2**62),  # a text of so many bytes
    b"\x8e" + struct.pack("<Q", 3_000_000_000),  # bytes
    b"\x96" + struct.pack("<Q", 2**40),  # a bytearray
    b"\x95" + struct.pack("<Q", 2**40),  # a frame
    b"\x8b" + struct.pack("<i", 2**31 - 1),  # an integer
    b"]" * 100_000,
    b"(" * 1000 + b"t" * 1000,
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c\xff\xfe\n\n",
    b"(lp0\n",
    b"N",
    b"0",
    b"2",
    b"R",
    b"b",
    b"Q",
    b"}",
    b"G" + struct.pack(">d", float("nan")),
    b"X\x03\0\0\0\xed\xa0\x80",  # a lone surrogate
)
"""Steps that ask for much, for code, or for what is not there."""


def mutated_pickle(data: bytes, rng: random.Random) -> bytes:
    """The pickle with steps inserted, removed, doubled or swapped, or with other bytes."""
    if rng.random() < 0.4:
        return mutate(data, rng)
    starts = [at for _, _, at in pickletools.genops(data) if at is not None]
    steps = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data)], strict=True)]
    for _ in range(rng.choice((1, 1, 2))):
        which = rng.randrange(len(steps))
        match rng.choice(("insert", "insert", "drop", "double", "swap")):
            case "insert":
                steps.insert(which, rng.choice(INSERTED))
            case "drop":
                steps[which] = b""
            case "double":
                steps.insert(which, steps[which])
            case "swap":
                other = rng.randrange(len(steps))
                steps[which], steps[other] = steps[other], steps[which]
    return b"".join(steps)
