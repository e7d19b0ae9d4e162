"""Weights to give away: mixed with those that a run began from, and from the command line."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file

from ris.engines.errors import CheckpointError
from ris.training.publish import main, publish


def test_weights_mixed_with_those_that_a_run_began_from(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in ("run", "start", "other", "out")]
    for file, value in zip(files, (1.0, 3.0, 3.0), strict=False):
        shape = (2, 3) if file.stem != "other" else (3, 2)
        save_file({"w": torch.full(shape, value), "n": torch.tensor([7])}, file)
    publish(files[0], files[3], files[1], 0.25)
    mixed = load_file(files[3])
    assert mixed["w"].dtype == torch.float16
    assert (mixed["w"].unique().tolist(), mixed["n"].tolist()) == ([1.5], [7])
    message = r"other.safetensors has no w of shape \(2, 3\): another model"
    with pytest.raises(CheckpointError, match=message):
        publish(files[0], files[3], files[2], 0.25)


def test_publishing_from_the_command_line(tmp_path, monkeypatch, capsys):
    run, start, out = (tmp_path / f"{name}.safetensors" for name in ("run", "start", "out"))
    save_file({"w": torch.full((2, 3), 1.0)}, run)
    save_file({"w": torch.full((2, 3), 3.0)}, start)

    def command(*arguments):
        monkeypatch.setattr("sys.argv", ["publish", *map(str, arguments)])
        main()

    command(run, out, "--began-from", start, "--share", "0.25")
    assert load_file(out)["w"].unique().tolist() == [1.5]
    assert "out.safetensors: 0.0 MB" in capsys.readouterr().out
    for wrong in (
        ["--share", "0.25"],
        ["--began-from", start],
        ["--began-from", start, "--share", "1.5"],
    ):
        with pytest.raises(SystemExit):
            command(run, out, *wrong)
        assert "belong together" in capsys.readouterr().err
    start.write_bytes(b"torn")
    with pytest.raises(SystemExit, match="Error: "):
        command(run, out, "--began-from", start, "--share", "0.25")
