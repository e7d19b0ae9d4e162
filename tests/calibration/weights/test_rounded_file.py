"""A file of calibrated levels that is another or damaged, and all that is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner
from rounded_helper import SOURCE, UP, about, changed, matrix_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ris.calibration.command import main as calibrate
from ris.calibration.weights.groups import round_in_groups
from ris.engines.errors import RisError
from ris.export.command import main as export
from ris.export.rounded_file import RoundedFile
from ris.export.sources import made_up


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (about(made_up("tiny-lisa", 1), language_question="int4"), "was made of other weights"),
        (about(made_up("tiny-evfsam", 0), fusion="int4"), "was made of other weights"),
        (about(language_question="int8"), "in 'int4', and int8 is asked for; run ris-"),
        (about(mask_decoder="int4"), "has no matrices of mask_decoder; run ris-calibrate weights"),
    ],
)
def test_a_file_of_another_model_or_format_is_refused(made, wanted, message):
    with pytest.raises(RisError, match=message):
        RoundedFile(made).require(wanted)


@pytest.mark.parametrize("damage", ["text", "other tensors", "cut", "later", "no scales"])
def test_what_is_no_such_file_is_refused(made, tmp_path, damage):
    path = tmp_path / "f"
    with safe_open(made, "numpy") as opened:
        metadata = opened.metadata()
    if damage == "text":
        path.write_text("levels")
    elif damage == "cut":
        path.write_bytes(made.read_bytes()[:-100])
    elif damage == "other tensors":
        save_file({"a": np.zeros(3)}, path)
    elif damage == "later":
        save_file(load_file(made), path, metadata | {"version": "3"})
    else:
        tensors = {name: value for name, value in load_file(made).items() if ".scales" not in name}
        save_file(tensors, path, metadata)
    message = "reads 2; run" if damage == "later" else "f is no (whole )?file of ris-calibrate"
    with pytest.raises(RisError, match=message):
        RoundedFile(path)


@pytest.mark.parametrize(
    ("part", "value"), [("levels", 8), ("scales", np.nan), ("scales", 0), ("scales", 1e38)]
)
def test_levels_that_four_bits_do_not_hold_and_odd_scales_are_refused(made, tmp_path, part, value):
    found = changed(made, tmp_path / "f", UP, part, (0, 0), value)
    with pytest.raises(RisError, match=f"has levels at {UP} that int4 does not; copy it again"):
        found(matrix_of(SOURCE.make(), UP), "int4", 128, UP)


def test_matrices_that_it_does_not_have_are_counted_and_none_at_all_is_refused(made, tmp_path):
    digest = load_file(made)[f"{UP}.sha256"]
    found = changed(made, tmp_path / "f", UP, "sha256", 0, digest[0] ^ 1)
    with pytest.raises(RisError, match="f has none of the matrices of these graphs; run ris-"):
        found.require_taken()
    for name in (UP, "layers.0.mlp.gate_proj.weight"):
        matrix = matrix_of(SOURCE.make(), name)
        rounded, nearest = found(matrix, "int4", 128, name), round_in_groups(matrix, "int4", 128)
        assert np.array_equal(rounded.levels, nearest.levels) == (name == UP)
    assert found.require_taken() == f"1 of 2 matrices as {tmp_path / 'f'} says"


def flipped(made, path, tensor):
    """A copy with one bit of a tensor flipped."""
    found = bytearray(made.read_bytes())
    begin = 8 + int.from_bytes(found[:8], "little")
    found[begin + json.loads(found[8:begin])[tensor]["data_offsets"][0]] ^= 1
    path.write_bytes(found)


@pytest.mark.parametrize("part", ["levels", "scales", "sha256", "errors", "check"])
def test_one_flipped_bit_is_found_before_anything_is_written(made, tmp_path, part):
    flipped(made, tmp_path / "f", f"{UP}.{part}")
    message = f"f is damaged at {UP}: its hash differs; copy it again, or run ris-calibrate weights"
    with pytest.raises(RisError, match=message):
        RoundedFile(tmp_path / "f").require(about(**RoundedFile(made).formats))
    if part != "sha256":  # by that it is found
        with pytest.raises(RisError, match=message):
            RoundedFile(tmp_path / "f")(matrix_of(SOURCE.make(), UP), "int4", 128, UP)


def test_so_is_one_in_what_the_file_says_of_itself(made, tmp_path):
    with safe_open(made, "numpy") as opened:
        inputs = opened.metadata()["inputs"]
    for text in (inputs, f"{UP}.levels", f"{UP}.check"):
        found = bytearray(made.read_bytes())
        found[found.index(text.encode())] ^= 1
        (tmp_path / "f").write_bytes(found)
        with pytest.raises(RisError, match=r"f is (damaged at|no whole file)"):
            RoundedFile(tmp_path / "f").require(about(**RoundedFile(made).formats))


def test_an_export_of_a_damaged_file_writes_no_bundle(made, tmp_path):
    flipped(made, tmp_path / "f", f"{UP}.levels")
    words = ["--preset", "tiny-lisa", "--random-weights", "0", "--weight-format", "int4"]
    words += ["--weights-from", str(tmp_path / "f"), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(export, words)
    assert done.exit_code == 2, done.output
    assert f"is damaged at {UP}: its hash differs; copy it again" in done.output
    assert not (tmp_path / "b").exists()


def test_matrices_whose_inputs_are_not_seen_are_named(tmp_path):
    """PyTorch's own attention multiplies with them itself."""
    words = ["--preset", "tiny", "--random-weights", "0", "--samples", "1", "--json"]
    words += ["--weight-format", "clip_image_encoder=int4", "--out", str(tmp_path / "r")]
    done = CliRunner().invoke(calibrate, ["weights", *words])
    assert done.exit_code == 0, done.output
    errors = json.loads(done.stdout)
    unseen = [name for name, one in errors.items() if one is None]
    assert unseen == [name for name in errors if name.endswith(".attn.out_proj.weight")]
    assert 0 < len(unseen) < len(errors)
    assert f"{unseen[0]}: none of its inputs were seen; nearest levels" in done.stderr


def test_a_link_is_followed(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far" / "r")
    words = ["--preset", "tiny", "--random-weights", "0", "--samples", "1"]
    words += ["--weight-format", "clip_image_encoder=int4", "--out", str(tmp_path / "link")]
    done = CliRunner().invoke(calibrate, ["weights", *words])
    assert done.exit_code == 0, done.output
    assert "not seen" in done.output
    assert (tmp_path / "link").is_symlink()
    assert [file.name for file in (tmp_path / "far").iterdir()] == ["r"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "tiny-nobody"], "there is no preset 'tiny-nobody'; there are "),
        (["--preset", "tiny-lisa", "--weight-format", "int2"], "expected int8 or int4"),
        (["--preset", "tiny"], "name them, as in --weight-format sam_image_encoder=int4"),
        (["--preset", "tiny-lisa", "--out", "there"], "there exists; choose another --out, or"),
        (["--preset", "tiny-lisa", "--out", "no/r"], "no: no such folder; make it"),
        (["--preset", "tiny-lisa", "-e", "left man"], "--expression is asked of IMAGES"),
    ],
)
def test_calibrations_that_cannot_be_are_refused(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").touch()
    out = [] if "--out" in arguments else ["--out", "r"]
    done = CliRunner().invoke(calibrate, ["weights", "--samples", "2", *arguments, *out])
    assert done.exit_code == 2, done.output
    assert message in done.output
    assert [file.name for file in tmp_path.iterdir()] == ["there"]


def test_levels_without_a_format_and_those_of_another_model_write_no_bundle(made, tmp_path):
    words = ["--preset", "tiny-lisa", "--weights-from", str(made), "--out", str(tmp_path / "b")]
    done = CliRunner().invoke(export, words)
    assert done.exit_code == 2
    assert "give --weight-format as well" in done.output
    done = CliRunner().invoke(export, [*words, "--weight-format", "int4", "--random-weights", "7"])
    assert done.exit_code == 2
    assert "was made of other weights than these" in done.output
    assert not (tmp_path / "b").exists()


def test_the_errors_are_there_for_programs(tmp_path):
    words = ["--preset", "tiny-evfsam", "--random-weights", "0", "--samples", "2", "--json"]
    done = CliRunner().invoke(calibrate, ["weights", *words, "--out", str(tmp_path / "r")])
    assert done.exit_code == 0, done.output
    errors = json.loads(done.stdout)
    assert len(errors) == 34
    assert all(0 <= one["chosen"] <= one["nearest"] for one in errors.values())
