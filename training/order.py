"""In which order the sentences of one or several data sets are trained on.

As in the released code: the whole list is shuffled, gone through once, shuffled again, without end.
It is dealt to the groups in turn, one sentence each. Each group makes its batches of one
orientation: pictures that are wider than high, or the others; what is left over waits for the next
pass. The order depends on the seed alone, so that a resumed run sees what an uninterrupted one
would have seen, on however many devices.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]
"""Places in the list of all sentences: those of the first data set, of the second, and so on."""


@dataclass(frozen=True)
class Lists:
    """The sentences of one or several data sets, and how often each set is drawn from."""

    sizes: tuple[int, ...]
    """Sentences of each data set, at least 1."""

    weights: tuple[float, ...]
    """The share of the samples that comes from each set, up to a common factor; above 0."""

    seed: int
    """Seed of the order."""

    @property
    def length(self) -> int:
        """Draws in a pass: the sentences of all sets together."""
        # of several sets, each must come at least once
        several = len(self.sizes) > 1
        return max(sum(self.sizes), len(self.sizes) ** 2) if several else self.sizes[0]

    def drawn(self, passes: int) -> list[int]:
        """How many draws came from each set in the first `passes` passes."""
        total = passes * self.length
        share = np.asarray(self.weights) / sum(self.weights)
        found = [int(total * part) for part in share]
        most = int(np.argmax(share))  # takes what rounding leaves
        found[most] += total - sum(found)
        return found

    def one_pass(self, number: int) -> Numbers:
        """The draws of pass `number`, int64 [length]."""
        before, after = self.drawn(number), self.drawn(number + 1)
        if len(self.sizes) == 1:
            return self._draws(0, before[0], after[0])
        counts = np.subtract(after, before)
        sets = np.repeat(np.arange(len(counts)), counts)
        np.random.default_rng([self.seed, len(counts), number]).shuffle(sets)
        found = np.empty(self.length, np.int64)
        for which, (first, last) in enumerate(zip(before, after, strict=True)):
            found[sets == which] = self._draws(which, first, last)
        return found

    def _draws(self, which: int, first: int, last: int) -> Numbers:
        """The draws `first` to `last` (exclusive) of set `which`, shuffled anew for each pass."""
        size = self.sizes[which]
        passes = range(first // size, -(-last // size))
        shuffled = [
            np.random.default_rng([self.seed, which, one]).permutation(size) for one in passes
        ]
        start = passes.start * size
        empty = np.zeros(0, np.int64)
        own = np.concatenate([empty, *shuffled])[first - start : last - start]
        return own + sum(self.sizes[:which])


class Order:
    """Which sentences each group of a step has.

    Args:
        lists: The sentences.
        wide: Whether a sentence's picture is wider than high, bool [all sentences].
        groups: Groups of a step.
        group: Sentences of a group.
    """

    def __init__(self, lists: Lists, wide: NDArray[np.bool_], groups: int, group: int) -> None:
        one_pass = functools.lru_cache(maxsize=2)(lists.one_pass)
        self._streams = [
            _Stream(one_pass, lists.length, wide, (number, groups), group)
            for number in range(groups)
        ]

    def group(self, step: int, number: int) -> Numbers:
        """The sentences of group `number` of step `step`, int64 [group]."""
        return self._streams[number].batch(step)


class _Stream:
    """The batches of one group, one after another.

    Args:
        one_pass: The draws of a pass, all groups'.
        length: Their number.
        wide: See `Order`.
        place: The group's number, and how many groups there are.
        group: Sentences of a batch.
    """

    def __init__(
        self,
        one_pass: functools._lru_cache_wrapper[Numbers],
        length: int,
        wide: NDArray[np.bool_],
        place: tuple[int, int],
        group: int,
    ) -> None:
        self._one_pass, self._length, self._wide = one_pass, length, wide
        self._number, self._groups = place
        self._group = group
        self._begin()

    def _begin(self) -> None:
        self._next_pass = 0
        self._first = 0  # the number of the first batch of `_batches`
        self._batches: Sequence[Numbers] = ()
        self._waiting = [np.zeros(0, np.int64), np.zeros(0, np.int64)]

    def batch(self, step: int) -> Numbers:
        """The batch of `step`. Passes are gone through from the first one; they are quick."""
        if step < self._first:
            self._begin()
        while step >= self._first + len(self._batches):
            self._first += len(self._batches)
            self._batches = self._of_next_pass()
        return self._batches[step - self._first]

    def _of_next_pass(self) -> list[Numbers]:
        """The batches that the next pass fills, in the order in which they are full."""
        dealt = (self._number - self._next_pass * self._length) % self._groups
        own = self._one_pass(self._next_pass)[dealt :: self._groups]
        self._next_pass += 1
        full: list[tuple[int, Numbers]] = []
        for kind in (0, 1):
            places = np.flatnonzero(self._wide[own] == bool(kind))
            waiting = len(self._waiting[kind])
            joined = np.concatenate([self._waiting[kind], own[places]])
            count = len(joined) // self._group
            for i in range(count):
                last = (i + 1) * self._group
                full.append((int(places[last - waiting - 1]), joined[last - self._group : last]))
            self._waiting[kind] = joined[count * self._group :]
        return [batch for _, batch in sorted(full, key=lambda one: one[0])]
