"""Mutations of bytes: what disks, networks, tools and malice do to a file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

LARGEST = 1 << 20
"""The most bytes that a mutated file has."""

NUMBERS = (0, 1, -1, 7, 127, 128, 255, 256, 2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**31 - 1, 2**31)
NUMBERS += (2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, -(2**31), -(2**63))

Step = Callable[[bytearray, random.Random], None]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """The bytes after one to six random steps."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 6))):
        rng.choice(STEPS)(changed, rng)
    return bytes(changed[:LARGEST])


def place(data: bytearray, rng: random.Random) -> int:
    """A place in the bytes: half of the time among the first, where headers are."""
    if not data:
        return 0
    near = min(len(data), rng.choice((16, 64, 512)))
    return rng.randrange(near if rng.random() < 0.5 else len(data))


def _block(data: bytearray, rng: random.Random) -> slice:
    start = place(data, rng)
    return slice(start, start + rng.choice((1, 2, 4, 8, 16, 64, 500, 5000)))


def _flip(data: bytearray, rng: random.Random) -> None:
    if data:
        data[place(data, rng)] ^= 1 << rng.randrange(8)


def _flip_many(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((2, 10, 100))):
        _flip(data, rng)


def _set(data: bytearray, rng: random.Random) -> None:
    if data:
        data[place(data, rng)] = rng.choice(
            (0, 1, 0x0A, 0x20, 0x7F, 0x80, 0xFF, rng.randrange(256))
        )


def _number(data: bytearray, rng: random.Random) -> None:
    """Writes a number in 1, 2, 4 or 8 bytes of either order."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice(NUMBERS) % (1 << 8 * size)
    at = place(data, rng)
    data[at : at + size] = value.to_bytes(size, rng.choice(("little", "big")))


def _float(data: bytearray, rng: random.Random) -> None:
    value = rng.choice((float("nan"), float("inf"), -float("inf"), 1e38, -0.0, 5e-324))
    at, form = place(data, rng), rng.choice(("<f", ">f", "<d", ">d"))
    data[at : at + struct.calcsize(form)] = struct.pack(form, value)


def _cut(data: bytearray, rng: random.Random) -> None:
    del data[place(data, rng) if rng.random() < 0.3 else rng.randrange(len(data) + 1) :]


def _remove(data: bytearray, rng: random.Random) -> None:
    del data[_block(data, rng)]


def _repeat(data: bytearray, rng: random.Random) -> None:
    block = _block(data, rng)
    data[block.start : block.start] = data[block] * rng.choice((1, 1, 2, 50))


def _insert(data: bytearray, rng: random.Random) -> None:
    at = place(data, rng)
    data[at:at] = rng.choice((b"\0", b"\xff", rng.randbytes(1))) * rng.choice((1, 4, 100))


def _insert_random(data: bytearray, rng: random.Random) -> None:
    at = place(data, rng)
    data[at:at] = rng.randbytes(rng.choice((1, 4, 100)))


def _blank(data: bytearray, rng: random.Random) -> None:
    """Zeros in the place of a block, as a file system leaves them after a crash."""
    block = _block(data, rng)
    data[block] = bytes(len(data[block]))


def _swap(data: bytearray, rng: random.Random) -> None:
    one, two = _block(data, rng), _block(data, rng)
    data[one], data[two] = data[two], data[one]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice((rng.randbytes(40), bytes(40), bytes(data[:4000])))


STEPS: tuple[Step, ...] = (
    _flip,
    _flip,
    _flip_many,
    _set,
    _set,
    _number,
    _number,
    _number,
    _float,
    _cut,
    _remove,
    _repeat,
    _insert,
    _insert_random,
    _blank,
    _swap,
    _append,
)
