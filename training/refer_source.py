"""Data sets as sources of training samples: published ones, one's own, or several mixed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ris.data.datasets import ReferData
from ris.engines.errors import RisError
from ris.training.order import Lists, Order
from ris.training.refer_group import Entry, Group, Sentences
from ris.training.samples import Place, RawBatch, Stored

_TRIES = 100
"""How many sentences in a row are tried for one that can be used."""


class ReferSource:
    """Groups of independent samples: one sentence about one image each, as the released code has.

    Images are brought to the model's square by Pillow's bilinear filter, outlines are rasterised
    there (`object_squares`).

    Args:
        mix: The data sets, and the share of the samples that comes from each, up to a common
            factor.
        side: The side of the model's square in pixels.
        samples: Samples of a step, all groups together.
        group: Samples of a group.
        seed: Seed of the order.

    Raises:
        RisError: Where the samples make no whole groups, and for a weight that is not above 0.
    """

    kinds = 0
    """No pretext labels: the encoders are pre-trained."""

    def __init__(
        self,
        mix: Sequence[tuple[ReferData, float]],
        side: int,
        samples: int,
        group: int,
        seed: int = 0,
    ) -> None:
        if samples % group:
            raise RisError(f"{samples} samples a step cannot be cut into groups of {group}")
        if not all(0 < weight < float("inf") for _, weight in mix):
            raise RisError("the weight of a data set is a number above 0")
        self.side, self.groups, self.seed, self._group = side, samples // group, seed, group
        self._all = Sentences([data for data, _ in mix])
        counts = np.bincount(self._all.places[:, 0], minlength=len(mix))
        lists = Lists(tuple(map(int, counts)), tuple(weight for _, weight in mix), seed)
        self._wide = self._all.wide()
        self._order = Order(lists, self._wide, self.groups, group)
        shares = ", ".join(f"{data.name}:{weight:g}" for data, weight in mix)
        self.identity = f"{shares} ({self._all.summary()})"
        """See `Source`."""

    @property
    def sentences(self) -> int:
        """Sentences of all data sets: the samples of a pass."""
        return len(self._all.places)

    @property
    def images(self) -> int:
        """Different image files of all data sets."""
        return len({image.path for data in self._all.sets for image in data.images})

    @property
    def batch_bytes(self) -> int:
        """See `Source`."""
        return _bytes(self._group, self.side)

    def entry(self, place: Place) -> Entry:
        """The sentence at a place."""
        return self._all.entry(place)

    def batch(self, step: int, number: int = 0, stored: Stored | None = None) -> RawBatch:
        """Group `number` of `step`; another sentence takes the place of one that cannot be used.

        Args:
            step: The step.
            number: The group's number.
            stored: Finds the features of an image that need not be encoded.

        Raises:
            RisError: Where of 100 sentences in a row none can be used.
        """
        made = Group(self._all, self.side, stored)
        for slot, sentence in enumerate(self._order.group(step, number)):
            self._add(made, int(sentence), np.random.default_rng([self.seed, step, number, slot]))
        return made.raw()

    def _add(self, made: Group, sentence: int, random: np.random.Generator) -> None:
        """Adds the sentence, or the first of others of its orientation that can be used."""
        for _ in range(_TRIES):
            if made.add(self._all.place(sentence)):
                return
            others = np.flatnonzero(self._wide == self._wide[sentence])
            sentence = int(random.choice(others))
        names = ", ".join(data.name for data in self._all.sets)
        raise RisError(
            f"{_TRIES} sentences of {names} in a row cannot be used; the last reason:"
            f" {made.left_out[-1]}"
        )


class ReferSubset:
    """A fixed random subset of a data set's sentences, each once, for validation.

    The sentences come in the order of the split, so that those of one image come together. One
    that cannot be used is left out.

    Args:
        data: The data set.
        side: The side of the model's square in pixels.
        count: Sentences of the subset; None: all.
        seed: Seed of the choice.
        group: Sentences of a batch.
    """

    kinds, groups = 0, 1

    def __init__(
        self, data: ReferData, side: int, count: int | None = None, seed: int = 0, group: int = 16
    ) -> None:
        self.side, self._group = side, group
        self._all = Sentences([data])
        total = len(self._all.places)
        chosen = np.random.default_rng([seed, 5]).permutation(total)[:count]
        self._chosen = np.sort(chosen)
        self.identity = f"{data.name}, {data.split} ({self._all.summary(self._chosen)})"
        """See `Source`."""

    @property
    def steps(self) -> int:
        """Batches of the subset."""
        return -(-len(self._chosen) // self._group)

    @property
    def sentences(self) -> int:
        """Sentences of the subset."""
        return len(self._chosen)

    @property
    def images(self) -> int:
        """Different images of the subset."""
        return len(np.unique(self._all.places[self._chosen, 1]))

    @property
    def batch_bytes(self) -> int:
        """See `Source`."""
        return _bytes(self._group, self.side)

    def entry(self, place: Place) -> Entry:
        """The sentence at a place."""
        return self._all.entry(place)

    def batch(self, step: int, number: int = 0, stored: Stored | None = None) -> RawBatch | None:
        """Batch `step` of the subset; None where nothing of it can be used.

        Args:
            step: The batch's number, below `steps`.
            number: 0, as a step has one batch.
            stored: Finds the features of an image that need not be encoded.
        """
        made = Group(self._all, self.side, stored)
        for sentence in self._chosen[step * self._group : (step + 1) * self._group]:
            made.add(self._all.place(int(sentence)))
        return made.raw() if made.examples else None


def _bytes(samples: int, side: int) -> int:
    """Bytes of a batch: an RGB image, the union and about one object a sample."""
    return samples * side * side * 5
