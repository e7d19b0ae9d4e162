"""The answers to one request as Triton's outputs: what is kept of each, and the arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ris.runtime import Segmentation

_TEXTS = ("rle_counts", "note", "category_asked", "form_asked")


class Columns:
    """What a request gets of its answers. Masks are kept where they are asked for alone."""

    def __init__(self, count: int, masks: bool) -> None:
        """count: how many answers there will be, N; masks: keep the masks themselves."""
        self._count = count
        self._keep_masks = masks
        self._masks: NDArray[np.uint8] | None = None
        self._size = (0, 0)
        self._texts: dict[str, list[bytes]] = {name: [] for name in _TEXTS}
        self._scores: list[float] = []
        self._no_target: list[float] = []
        self._is_no_target: list[bool] = []

    def __len__(self) -> int:
        return len(self._scores)

    def add(self, answer: Segmentation, wanted: set[str]) -> None:
        """Takes the next answer; wanted: the outputs that are asked for."""
        self._size = (answer.mask.shape[0], answer.mask.shape[1])
        if self._keep_masks:
            if self._masks is None:
                self._masks = np.empty((self._count, *self._size), np.uint8)
            self._masks[len(self)] = answer.mask

        counts = answer.rle()["counts"] if "rle_counts" in wanted else ""
        texts = (counts, "; ".join(answer.notes), answer.category or "", answer.form or "")
        for name, text in zip(_TEXTS, texts, strict=True):
            self._texts[name].append(text.encode())
        self._no_target.append(np.nan if answer.no_target is None else answer.no_target)
        self._is_no_target.append(answer.is_no_target)
        self._scores.append(answer.score)

    def output(self, name: str, from_cache: bool) -> np.ndarray:
        """One output of a request with N expressions.

        Shapes: [1, N]; of rle_size [1, 2], of from_cache [1, 1], of mask [1, N, H, W].
        """
        if name == "mask":
            assert self._masks is not None
            return self._masks[None]
        if name == "rle_size":
            return np.array([self._size], np.int32)
        if name == "from_cache":
            return np.array([[from_cache]])
        if name == "score":
            return np.array([self._scores], np.float32)
        if name == "no_target":
            return np.array([self._no_target], np.float32)
        if name == "is_no_target":
            return np.array([self._is_no_target], np.bool_)
        return np.array([self._texts[name]], np.object_)
