"""Matrices in 8 and 4 bits: levels, scales, the bytes of ONNX, and files that are gone on with."""

from __future__ import annotations

import json
import os

import numpy as np
import onnx
import pytest
from narrow_weights import activations, matrix, write_products
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from ris.calibration.weights.data import Part, journal_of, write_data
from ris.calibration.weights.graph import OPSET, find_matrices, quantise_file
from ris.calibration.weights.groups import FORMATS, group_of, relative_error, round_in_groups


@pytest.mark.parametrize("format", FORMATS)
def test_each_weight_goes_to_the_nearest_level_of_its_group(format):
    weights = matrix(256, 24)
    weights[:128, 5] = 0.0
    rounded = round_in_groups(weights, format, 128)
    most = {"int8": 127, "int4": 7}[format]
    assert rounded.scales.shape == (2, 24)
    assert np.abs(rounded.levels).max() == most
    assert not rounded.values()[:128, 5].any(), "a group of zeros stays one"
    steps = np.repeat(rounded.scales, 128, 0)
    assert (np.abs(rounded.values() - weights) <= steps / 2 * (1 + 1e-5)).all()
    largest = np.abs(weights.reshape(2, 128, 24)).max(1)
    np.testing.assert_allclose(rounded.scales[1], largest[1] / most, rtol=1e-6)


def test_the_error_is_that_of_the_difference():
    weights = matrix(128, 16)
    rounded = round_in_groups(weights, "int4", 128)
    change = rounded.values() - weights
    wanted = np.sqrt(np.square(change).mean() / np.square(weights).mean())
    assert relative_error(weights, rounded) == pytest.approx(wanted, rel=1e-6)
    nothing = np.zeros((128, 16), np.float32)
    assert relative_error(nothing, round_in_groups(nothing, "int4", 128)) == 0.0


@pytest.mark.parametrize("format", FORMATS)
def test_a_matrix_in_parts_is_the_matrix_at_once(format, monkeypatch):
    weights = matrix(512, 8)
    whole = round_in_groups(weights, format, 64)
    monkeypatch.setattr("ris.calibration.weights.groups._COLUMNS", 3)
    parts = round_in_groups(weights, format, 64)
    np.testing.assert_array_equal(parts.levels, whole.levels)
    np.testing.assert_array_equal(parts.values(), whole.values())


def test_four_bits_are_packed_as_onnx_unpacks_them():
    rounded = round_in_groups(matrix(64, 3), "int4", 64)
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=(64, 3))
    tensor.raw_data = rounded.packed().tobytes()
    assert len(tensor.raw_data) == 64 * 3 // 2
    np.testing.assert_array_equal(numpy_helper.to_array(tensor).astype(np.int8), rounded.levels)


@pytest.mark.parametrize(("rows", "group"), [(128, 128), (4096, 128), (192, 64), (96, None)])
def test_groups_are_of_128_or_64_rows(rows, group):
    assert group_of(rows) == group


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_computes_with_the_rounded_matrices(tmp_path, format):
    weights = matrix(256, 128), matrix(128, 96, 1)
    graph = write_products(tmp_path / "g.onnx", *weights)
    found = quantise_file(graph.path, tmp_path / "narrow.onnx", format)
    rounded = [round_in_groups(one, format, 128) for one in weights]
    assert [one.group for one in found.matrices] == [128, 128]
    assert found.errors["w1"] == pytest.approx(relative_error(weights[1], rounded[1]))
    assert min(found.errors.values()) < found.error < max(found.errors.values())

    model = onnx.load(tmp_path / "narrow.onnx")
    assert model.opset_import[0].version == OPSET
    onnx.checker.check_model(tmp_path / "narrow.onnx", full_check=True)
    x = activations(5, 256)
    (got,) = ReferenceEvaluator(model).run(None, {"x": x})
    want = x @ rounded[0].values() @ rounded[1].values()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_a_graph_may_take_its_own_place_and_becomes_small(tmp_path):
    graph = write_products(tmp_path / "g.onnx", matrix(1024, 512))
    before = (tmp_path / "g.onnx.data").stat().st_size
    quantise_file(graph.path, graph.path, "int4")
    after = (tmp_path / "g.onnx.data").stat().st_size
    assert after == before * (0.5 + 4 / 128) / 4
    assert sorted(file.name for file in tmp_path.iterdir()) == ["g.onnx", "g.onnx.data"]


def test_only_matrices_that_products_alone_read_are_rounded():
    weights = {name: matrix(128, 4) for name in ("product", "left", "twice", "given")}
    weights["odd"] = matrix(100, 4)
    weights["vector"] = matrix(128, 1)
    nodes = [
        helper.make_node("MatMul", ["x", name], [f"{name}_y"])
        for name in ("product", "twice", "given", "odd", "vector")
    ]
    nodes.append(helper.make_node("MatMul", ["left", "z"], ["left_y"]))
    nodes.append(helper.make_node("Identity", ["twice"], ["also"]))
    graph = helper.make_graph(
        nodes,
        "g",
        [],
        [helper.make_tensor_value_info("given", TensorProto.FLOAT, [128, 4])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    assert list(find_matrices(graph)) == ["product"]


# --- files that are gone on with ---


class Counted:
    """Parts of a data file that count how often each was made."""

    def __init__(self, count=4):
        self.made = []
        self.notes = {}
        self.arrays = {f"p{i}": np.full(300 + i, i, np.float32) for i in range(count)}

    def parts(self, stop_at=None):
        return [
            Part(name, array.nbytes, self._maker(name, stop_at), self.notes, name)
            for name, array in self.arrays.items()
        ]

    def _maker(self, name, stop_at):
        def make():
            if name == stop_at:
                raise KeyboardInterrupt
            self.made.append(name)
            self.notes[name] = float(name[1:])
            return self.arrays[name]

        return make

    @property
    def whole(self):
        return b"".join(a.tobytes() for a in self.arrays.values())


def stopped(tmp_path, at="p2", recipe="r"):
    counted = Counted()
    with pytest.raises(KeyboardInterrupt):
        write_data(tmp_path / "d", counted.parts(stop_at=at), recipe=recipe)
    return tmp_path / "d", Counted()


def test_a_stopped_file_goes_on_at_the_first_part_that_is_not_there(tmp_path):
    path, counted = stopped(tmp_path)
    write_data(path, counted.parts(), recipe="r")
    assert counted.made == ["p2", "p3"]
    assert counted.notes == {"p0": 0.0, "p1": 1.0, "p2": 2.0, "p3": 3.0}
    assert path.read_bytes() == counted.whole
    counted.made.clear()
    write_data(path, counted.parts(), recipe="r")
    assert counted.made == []


def test_a_part_that_was_damaged_is_made_again_and_so_are_those_behind(tmp_path):
    path, counted = stopped(tmp_path, "p3")
    data = bytearray(path.read_bytes())
    data[1300] ^= 1  # in p1
    path.write_bytes(data)
    write_data(path, counted.parts(), recipe="r")
    assert counted.made == ["p1", "p2", "p3"]
    assert path.read_bytes() == counted.whole


@pytest.mark.parametrize("damage", ["another recipe", "no journal", "cut journal", "short file"])
def test_what_cannot_be_trusted_is_written_anew(tmp_path, damage):
    path, counted = stopped(tmp_path, "p3")
    journal = journal_of(path)
    kept = []
    if damage == "no journal":
        journal.unlink()
    elif damage == "cut journal":
        journal.write_text(journal.read_text()[:-20])
        kept = ["p0", "p1"]
    elif damage == "short file":
        path.write_bytes(path.read_bytes()[:1250])
        kept = ["p0"]
    write_data(path, counted.parts(), recipe="s" if damage == "another recipe" else "r")
    assert counted.made == [name for name in counted.arrays if name not in kept]
    assert path.read_bytes() == counted.whole


def test_whatever_a_killed_run_left_is_gone_on_with_to_the_same_bytes(tmp_path):
    """Both files cut anywhere, whichever of them is ahead."""
    write_data(tmp_path / "whole", Counted().parts(), recipe="r")
    bytes_, journal = (
        path.read_bytes() for path in (tmp_path / "whole", journal_of(tmp_path / "whole"))
    )
    ends = [0, 1, 1199, 1200, 1201, 2404, 2500, len(bytes_)]
    for data_end in ends:
        for line_end in [*range(0, len(journal), 29), len(journal)]:
            path, counted = tmp_path / "d", Counted()
            path.write_bytes(bytes_[:data_end])
            journal_of(path).write_bytes(journal[:line_end])
            write_data(path, counted.parts(), recipe="r")
            assert path.read_bytes() == bytes_
            assert journal_of(path).read_bytes() == journal


def test_a_part_is_on_the_disk_before_the_journal_names_it(tmp_path, monkeypatch):
    path, synced, sync = tmp_path / "d", [], os.fsync

    def noted(handle):
        sync(handle)
        lines = journal_of(path).read_text().splitlines()
        synced.append((os.fstat(handle).st_size, len(lines) - 1))

    monkeypatch.setattr(os, "fsync", noted)
    write_data(path, Counted(3).parts(), recipe="r")
    assert synced == [(1200, 0), (2404, 1), (3612, 2)]


def test_without_a_recipe_nothing_is_kept_and_no_journal_is_left(tmp_path):
    path, counted = stopped(tmp_path)
    journal_of(path).unlink()
    write_data(path, counted.parts())
    assert counted.made == list(counted.arrays)
    assert not journal_of(path).exists()


def test_the_journal_has_a_line_for_each_part(tmp_path):
    counted = Counted(2)
    write_data(tmp_path / "d", counted.parts(), recipe="r")
    lines = [json.loads(line) for line in journal_of(tmp_path / "d").read_text().splitlines()]
    assert lines[0] == "r"
    assert [line[:2] for line in lines[1:]] == [["p0", 1200], ["p1", 1204]]


def test_a_part_of_another_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="p has 4 bytes, not 8"):
        write_data(tmp_path / "d", [Part("p", 8, lambda: np.zeros(1, np.float32))])
