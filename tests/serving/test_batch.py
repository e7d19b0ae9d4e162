"""`ris-batch` as a process: every row once although a worker and then the driver are killed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')

from batch_drill import drill
from serving_helpers import picture_bytes


def ris_batch(*arguments, timeout=900):
    program = Path(sys.executable).parent / "ris-batch"
    return subprocess.run(
        [program, *map(str, arguments)], capture_output=True, text=True, timeout=timeout
    )


def test_killed_worker_and_killed_driver_lose_and_repeat_nothing(served_bundle, tmp_path):
    found = drill(served_bundle, tmp_path, rows=480, workers=2, part_rows=20)
    assert found["errors"] == 8


def test_another_question_is_not_mixed_into_a_batch(served_bundle, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture_bytes(1))
    source, bundle = tmp_path / "in", ("--bundle", served_bundle)
    common = [source, *bundle, "--out", tmp_path / "out", "--engine", "onnxruntime"]
    done = ris_batch(*common, "-e", "left man", "--json")
    assert done.returncode == 0, done.stderr
    assert '"rows": 1' in done.stdout

    other = ris_batch(*common, "-e", "the dog")
    assert other.returncode == 2
    assert "has a batch with other expressions" in other.stderr

    elsewhere = [*bundle, "--out", tmp_path / "out3"]
    engine = ris_batch(source, *elsewhere, "--engine", "tensorrt", "-e", "left man")
    assert engine.returncode == 2
    assert "engine 'tensorrt' cannot run here" in engine.stderr

    nowhere = [*bundle, "--out", tmp_path / "out4"]
    graph = ris_batch(source, *nowhere, "--compute", "decoder=bf16", "-e", "left man")
    assert graph.returncode == 2
    assert "there is no graph decoder; there are sam_image_encoder, " in graph.stderr
    assert not (tmp_path / "out4").exists()

    empty = ris_batch(tmp_path / "absent", *bundle, "--out", tmp_path / "out2")
    assert empty.returncode == 2
    assert "no such file or folder" in empty.stderr
    assert "Traceback" not in empty.stderr
