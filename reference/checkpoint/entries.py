"""One tensor of a weight file: described without being read, and read without a second copy."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor


@dataclass(frozen=True)
class Entry:
    """One tensor as files hold it: what it is, where it is, and how to get it."""

    shape: tuple[int, ...]
    """Shape of the tensor that `read` gives."""

    dtype: torch.dtype
    """The file's dtype; `read` gives any kind of float as float32."""

    file: Path
    """The file that it is in."""

    pieces: tuple[Callable[[], Tensor], ...] = field(repr=False)
    """Each gives a tensor of the file; they are stacked along the first axis."""

    mapped: bool
    """Whether the pieces are views of a memory-mapped file."""

    transposed: bool = False
    """Whether the file has each piece, a matrix, with its axes swapped."""

    computed: bool = False
    """Whether reading it computes it from other tensors, which takes seconds."""

    def read(self) -> Tensor:
        """The tensor, contiguous: float32 where the file has any kind of float, else its dtype.

        A mapped view where that is the file's own form; otherwise a copy, and the file's pages are
        given back, so that converting a whole file holds one tensor twice at most.
        """
        parts = [piece() for piece in self.pieces]
        wanted = torch.float32 if self.dtype.is_floating_point else self.dtype
        as_stored = len(parts) == 1 and not self.transposed and parts[0].dtype == wanted
        if as_stored and parts[0].is_contiguous():
            return parts[0]

        whole = torch.empty(self.shape, dtype=wanted)
        rows = [whole] if len(parts) == 1 else whole.chunk(len(parts))
        for target, part in zip(rows, parts, strict=True):
            target.copy_(part.t() if self.transposed else part)
            if self.mapped:
                give_back(part)
        return whole

    def transpose(self) -> Entry:
        """The same matrix with its axes swapped."""
        return replace(self, shape=self.shape[::-1], transposed=not self.transposed)


def stack(entries: list[Entry]) -> Entry:
    """Entries of equal shape as one, along the first axis."""
    first = entries[0]
    return replace(
        first,
        shape=(first.shape[0] * len(entries), *first.shape[1:]),
        pieces=tuple(piece for entry in entries for piece in entry.pieces),
    )


def shapes_of(entries: Mapping[str, Entry]) -> dict[str, tuple[int, ...]]:
    """The shapes by the entries' names."""
    return {name: entry.shape for name, entry in entries.items()}


def give_back(tensor: Tensor) -> None:
    """Tells the kernel that a mapped tensor's pages are not needed; it reads them again if asked.

    Only whole pages are given back: the tensor's neighbours in the file share the others.
    """
    advice = getattr(mmap, "MADV_DONTNEED", None)
    if advice is None or not tensor.numel():
        return
    first, size = tensor.data_ptr(), tensor.numel() * tensor.element_size()
    start = -(-first // mmap.PAGESIZE) * mmap.PAGESIZE
    end = (first + size) // mmap.PAGESIZE * mmap.PAGESIZE
    if end > start and tensor.is_contiguous():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)
