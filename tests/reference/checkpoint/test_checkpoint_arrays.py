"""NumPy's arrays in a pickle: numbers become tensors, anything else is left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ris.reference.checkpoint.arrays import PickledArray, PickledType
from ris.reference.checkpoint.files import open_weights


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", ["?", "u1", "i4", "i8", "f2", "f4", "f8", ">f4"])
def test_numbers(tmp_path, kind, zipped):
    array = (np.arange(24).reshape(2, 3, 4) % 5).astype(kind)
    data = {
        "model": {"whole": array, "turned": array.T, "number": array[0, 0, 0:1].reshape(())},
        "best": np.float64(3),
    }
    torch.save(data, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    opened = open_weights(tmp_path / "a.pth")
    assert opened.beside == ("best",)
    for name, entry in opened.entries.items():
        assert not entry.mapped
        want = data["model"][name]
        assert entry.shape == want.shape
        np.testing.assert_array_equal(
            entry.read().numpy(), want.astype(want.dtype.newbyteorder("="))
        )


def test_what_is_no_numbers_is_left_out(tmp_path):
    data = {"a": torch.ones(3), "b": np.array(["word"]), "c": np.zeros(2, [("x", "f4")])}
    torch.save(data, tmp_path / "a.pth")
    assert list(open_weights(tmp_path / "a.pth").entries) == ["a"]


@pytest.mark.parametrize(
    "state",
    [
        None,
        (1, (4,), PickledType("f4"), False, b"\0" * 8),
        (1, (-7,), PickledType("f4"), False, b"\0" * 8),
        (1, (2,), PickledType("O"), False, b"\0" * 16),
        (1, (2,), PickledType([("x", "O")]), False, b"\0" * 16),
        (1, (2,), "f4", False, b"\0" * 8),
        (1, (2,), PickledType("f4"), False, [1, 2]),
    ],
)
def test_a_state_that_lies_makes_no_array(state):
    array = PickledArray()
    array.__setstate__(state)
    assert array.tensor() is None
