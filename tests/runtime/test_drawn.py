"""Random numbers: known values, the distribution, and what they depend on."""

from __future__ import annotations

import numpy as np

from ris.runtime.drawn import draw, for_each
from ris.runtime.manifest import Drawn

NOISE = {"noise": Drawn("logistic", (18900,), 0)}

KNOWN = {
    (0, 0): ["-0x1.1cc87e0000000p+2", "-0x1.24ea9a0000000p+0", "-0x1.09c2d80000000p+1"],
    (0, 1): ["0x1.78d1ea0000000p+0", "0x1.1b10da0000000p+0", "0x1.6e6a100000000p-1"],
    (2**31 - 1, 999): ["-0x1.b798aa0000000p+1", "-0x1.12d4aa0000000p-1", "0x1.c16fbc0000000p-2"],
}
"""The first numbers by seed and draw; tests/cpp compares all of libris's with Python's."""


def test_known_values():
    for (seed, number), wanted in KNOWN.items():
        found = draw(NOISE, seed, number)["noise"]
        assert found.dtype == np.float32
        assert [float(value).hex() for value in found[: len(wanted)]] == wanted


def test_they_are_logistic():
    all_of_them = np.concatenate([draw(NOISE, seed)["noise"] for seed in range(20)])
    assert abs(all_of_them.mean()) < 0.015
    assert abs(all_of_them.std() - np.pi / np.sqrt(3)) < 0.015
    for share in (0.01, 0.1, 0.5, 0.9, 0.99):
        assert abs((all_of_them < np.log(share / (1 - share))).mean() - share) < 0.004


def test_they_are_the_logarithms_of_philoxs_words():
    words = np.random.Philox(
        key=np.array([5, 2], np.uint64), counter=np.array([0, 0, 0, 0], np.uint64)
    ).random_raw(18900)
    share = ((words >> np.uint64(12)).astype(np.float64) + 0.5) / 2.0**52
    want = np.log(share) - np.log1p(-share)
    np.testing.assert_allclose(draw(NOISE, 5, 2)["noise"], want, rtol=1e-7, atol=1e-12)


def test_what_they_depend_on():
    """The seed, the draw and the place of the name; not the order of the values, or their number
    of expressions."""
    one = Drawn("logistic", (3, 4), 0)
    both = draw({"b": one, "a": one})
    assert not np.intersect1d(both["a"], both["b"]).size
    np.testing.assert_array_equal(draw({"a": one, "b": one})["b"], both["b"])
    np.testing.assert_array_equal(draw({"a": one})["a"], both["a"])
    others = [draw({"a": one}, 1)["a"], draw({"a": one}, 0, 1)["a"]]
    assert not np.intersect1d(np.concatenate(others), both["a"]).size
    np.testing.assert_array_equal(for_each(both, 2)["a"], [both["a"], both["a"]])
