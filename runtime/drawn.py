"""Random numbers that stages take: the same from a seed in Python and in libris, to the bit.

The words are those of Philox4x64-10, a generator without a state: its key is the seed and the
number of the draw, and its counter has the place of the value among the drawn ones. What is made of
a word are sums, products and quotients in double precision alone, which round alike everywhere: the
logarithm is a series, since that of one library differs from another's in the last bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.runtime.interpolate import Float
from ris.runtime.manifest import Drawn
from ris.runtime.manifest_kinds import LARGEST_SEED

MOST_DRAWS = 1000
"""The most draws that are averaged."""

_TERMS = 10  # of the series; the eleventh is below 1e-16
_LOG_2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


@dataclass(frozen=True)
class Draws:
    """Which random numbers a question is asked with."""

    seed: int | None = None
    """What they are drawn from, 0 to 2147483647. None: the bundle's own seed."""

    count: int | None = None
    """Over how many draws the mask logits are averaged, 1 to `MOST_DRAWS`. None: one draw."""

    def check(self, drawn: Mapping[str, Drawn]) -> None:
        """Raises RisError where they are out of range, or a model draws nothing."""
        if not drawn and (self.seed is not None or self.count is not None):
            raise RisError("this model draws no random numbers; leave seed and draws out")
        _require_whole("seed", self.seed, 0, LARGEST_SEED)
        _require_whole("draws", self.count, 1, MOST_DRAWS)

    def of(self, drawn: Mapping[str, Drawn]) -> Draws:
        """What an answer is made with: the bundle's own seed and one draw where none is said.

        For a model that draws nothing, both are None. The seed is None, too, where none is said
        and the bundle's values have different ones.
        """
        if not drawn:
            return self
        own = {about.seed for about in drawn.values()}
        seed = own.pop() if self.seed is None and len(own) == 1 else self.seed
        return Draws(seed, self.count or 1)


ONE_DRAW = Draws()
"""One draw from the bundle's own seed."""


def draw(drawn: Mapping[str, Drawn], seed: int | None = None, number: int = 0) -> dict[str, Float]:
    """The random numbers of a draw by value, float32 of each value's shape.

    Args:
        drawn: The values (`Host.drawn`).
        seed: What they are drawn from. None: each value's own seed.
        number: The number of the draw, from 0 on.
    """
    found = {}
    for place, name in enumerate(sorted(drawn)):
        about = drawn[name]
        key = np.array([about.seed if seed is None else seed, number], np.uint64)
        counter = np.array([0, place, 0, 0], np.uint64)
        words = np.random.Philox(key=key, counter=counter).random_raw(int(np.prod(about.shape)))
        found[name] = _logistic(words).reshape(about.shape)
    return found


def for_each(numbers: Mapping[str, Float], expressions: int) -> dict[str, Float]:
    """The numbers of a draw as values of N expressions, [N, ...]: all get the same."""
    return {name: np.repeat(rows[None], expressions, axis=0) for name, rows in numbers.items()}


def _require_whole(name: str, value: object, least: int, most: int) -> None:
    """Raises RisError for what is neither None nor a whole number in that range."""
    if value is None:
        return
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or not least <= value <= most:  # type: ignore[operator]
        raise RisError(f"{name} is a whole number from {least} to {most}; got {value!r}")


def _logistic(words: NDArray[np.uint64]) -> Float:
    """Words of 64 bits as numbers of the standard logistic distribution, log(u / (1 - u))."""
    share = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52  # in (0, 1), exact
    fraction, exponent = np.frexp(share / (1.0 - share))
    low = fraction < _SQRT_HALF
    fraction = np.where(low, 2.0 * fraction, fraction)
    exponent = (exponent - low).astype(np.float64)
    # log(f) = 2 (s + s^3 / 3 + s^5 / 5 + ...)
    s = (fraction - 1.0) / (fraction + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / (2 * _TERMS - 1))
    for term in range(_TERMS - 2, -1, -1):
        series = series * square + 1.0 / (2 * term + 1)
    return (2.0 * s * series + exponent * _LOG_2).astype(np.float32)
