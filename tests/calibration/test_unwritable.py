"""`ris-calibrate`: what cannot be written is said before the work; what was found is shown."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner
from rounded_helper import FEW, INT4, SOURCE

from ris.calibration import asking
from ris.calibration.command import main
from ris.calibration.numerics.ranges import Ranges, TensorRange
from ris.engines.errors import RisError
from ris.export.weight_calibration import calibrate_weights

FOUND = Ranges({"look": {"y": TensorRange("mul", "Mul", 7e4)}}, 2, {})


def command(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that takes no files; root may write to any that a test can make."""

    def refuse(*given, dir=None, **named):
        if dir is not None and os.path.realpath(dir) == str(folder):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return make(*given, dir=dir, **named)

    make, folder = tempfile.TemporaryFile, tmp_path / "locked"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    return folder


def refused(done, sentence):
    """The one error of a command."""
    assert done.exit_code == 2
    assert done.stderr.count("Error: ") == 1
    assert sentence in done.stderr, done.stderr


# ranges


def test_ranges_that_cannot_be_written_are_not_measured(made_up_bundle, locked, monkeypatch):
    monkeypatch.setattr(
        "ris.calibration.numerics.measure_ranges", lambda *a, **k: pytest.fail("measured first")
    )
    done = command("ranges", made_up_bundle, "--out", locked / "ranges.json")
    refused(done, f"cannot write {locked}: Permission denied")
    done = command("ranges", made_up_bundle, "--out", locked.parent / "none" / "ranges.json")
    refused(done, "none: no such folder; make it")


@pytest.mark.parametrize("as_json", [False, True])
def test_ranges_are_shown_though_they_cannot_be_written(
    made_up_bundle, tmp_path, monkeypatch, as_json
):
    def fail(ranges, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("ris.calibration.numerics.measure_ranges", lambda *a, **k: FOUND)
    monkeypatch.setattr(Ranges, "write", fail)
    out = tmp_path / "ranges.json"
    done = command("ranges", made_up_bundle, "--out", out, *["--json"] * as_json)
    refused(done, f"cannot write {out}: No space left on device")
    if as_json:
        assert json.loads(done.stdout)["stages"]["look"]["y"]["largest"] == 7e4
    else:
        assert "look: y reaches 7e+04, written by mul (Mul)" in done.stdout
        assert "Wrote" not in done.stdout


# int8


def int8(bundle, out, *arguments):
    graph = ["--graph", "everything"] if bundle.name == "whole" else []
    return command("int8", bundle, "--out", out, "--samples", "1", *graph, *arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "cannot write int8-report/report.json: "),
        (["--report", "file"], "cannot write file/report.json: "),
        (["--report", "file/report"], "file is no folder"),
        (["--report", "locked"], "cannot write locked/report.json: Permission denied"),
        (["--report", "."], "cannot write layers.png: layers.png is a folder"),
    ],
)
def test_no_layer_is_measured_for_a_report_that_cannot_be_written(
    made_up_bundle, locked, monkeypatch, begun, arguments, sentence
):
    monkeypatch.chdir(locked.parent)
    for name in ("int8-report", "file"):
        (locked.parent / name).touch()
    (locked.parent / "layers.png").mkdir()
    refused(int8(made_up_bundle, "int8", *arguments), sentence)
    assert not begun


@pytest.mark.parametrize("as_json", [False, True])
def test_the_cost_of_layers_is_shown_though_the_report_cannot_be_written(
    made_up_bundle, tmp_path, monkeypatch, begun, as_json
):
    def fail(path, text, **named):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", fail)
    done = int8(made_up_bundle, tmp_path / "int8", *["--json"] * as_json)
    refused(done, f"cannot write {tmp_path / 'int8-report'}: No space left on device")
    if as_json:
        assert json.loads(done.stdout)["calibrator"] == "minmax"
    else:
        assert "calibrator minmax; with every layer in INT8 the drop is" in done.stdout
        assert "Next:" not in done.stdout


def test_a_report_may_be_in_the_new_bundle(made_up_bundle, tmp_path, begun):
    out = tmp_path / "int8"
    done = int8(made_up_bundle, out, "--report", out / "report")
    assert done.exit_code == 0, done.output
    assert json.loads((out / "report" / "report.json").read_text())["samples"] == 1


# weights


MODEL = ["--preset", "tiny-lisa", "--random-weights", "0"]


@pytest.mark.parametrize(
    ("model", "out", "sentence"),
    [
        (MODEL, "locked/rounded", "locked: Permission denied"),
        (MODEL, "none/rounded", "none: no such folder; make it"),
        (["--preset", "nothing"], "rounded", "there is no preset 'nothing'"),
        ([*MODEL, "park.png", "-e", "man", "--category", "auto"], "rounded", "auto needs a bundle"),
        ([*MODEL, "--family", "lisa"], "rounded", "--checkpoint"),
        ([*MODEL, "--weight-format", "int3"], "rounded", "int3"),
    ],
)
def test_what_weights_cannot_do_is_said_before_scenes_are_drawn(
    locked, monkeypatch, model, out, sentence
):
    monkeypatch.chdir(locked.parent)
    monkeypatch.setattr(asking, "scene_set", lambda count: pytest.fail("drawn first"))
    refused(command("weights", *model, "--out", out), sentence)


def test_a_disk_that_refuses_is_met_before_weight_files_are_hashed(tmp_path):
    source = dataclasses.replace(SOURCE, describe=lambda: pytest.fail("hashed first"))
    (tmp_path / "file").touch()
    with pytest.raises(RisError, match="Not a directory"):
        calibrate_weights(source, FEW, tmp_path / "file" / "rounded", INT4)
