"""Runs in processes of their own: several that share the steps, and one that is killed."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch

import training_runs
from refer_files import write_refer
from ris.training.reading import read_for_training
from ris.training.refer_source import ReferSource
from ris.training.run_folder import states
from training_runs import refer_run

ONE_THREAD = os.environ | {"OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def _one_thread():
    """As the processes have: other sums round otherwise."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def command(*arguments):
    """A process of `training_runs.py`."""
    environment = ONE_THREAD | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def two_processes(*arguments):
    """Two of `training_runs.py` that `torchrun` starts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "--master-port", port)
    return command(*launch, *arguments)


def test_two_processes_train_as_one_does(tmp_path):
    """DDP over gloo: the same losses in twenty steps, and the same weights after them."""
    two = two_processes(training_runs.__file__, "shared", tmp_path / "two")
    training_runs.shared(tmp_path / "one")
    said, _ = two.communicate(timeout=300)
    assert two.returncode == 0, said

    one, both = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(both) == 20
    for line, other in zip(one, both, strict=True):
        assert line["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert line["norm"] == pytest.approx(other["norm"], rel=1e-4)
    assert one[-1]["validation"] == both[-1]["validation"]
    assert one[0]["losses"]["sentence"] > 1.05 * one[-1]["losses"]["sentence"]  # it learns
    ours, theirs = (
        torch.load(states(tmp_path / name)[-1], weights_only=True) for name in ("one", "two")
    )
    for key, value in ours["trained"].items():
        torch.testing.assert_close(theirs["trained"][key], value, rtol=1e-3, atol=1e-5)


def left_out(said):
    """What a run names as left out, and how many it counts."""
    errors = [line for line in said.splitlines() if line.startswith("Error: ")]
    assert "named above; the model was trained on the others" in errors[-1]
    return errors[:-1], errors[-1]


def test_two_processes_share_a_data_set_and_the_main_one_names_what_was_left_out(tmp_path):
    """Groups of a published set, its validation by an evaluator, and damaged pictures."""
    root = tmp_path / "data"
    root.mkdir()
    write_refer(root, "grefcoco", images=12)
    for number in (1, 3, 4):
        picture = root / "images" / "train2014" / f"COCO_train2014_{number:012d}.jpg"
        picture.write_bytes(b"no picture")
    data = read_for_training("grefcoco", "train", root=root, skipped=lambda sentence: None)
    source = ReferSource([(data, 1.0)], 32, 4, 2)
    first, second = (
        {said for step in range(4) for said in source.batch(step, group).left_out}
        for group in (0, 1)
    )
    assert second - first, "the second process has to find something that the main one does not"

    both = two_processes(training_runs.__file__, "commanded", tmp_path / "two")
    alone = command(training_runs.__file__, "commanded", tmp_path / "one")
    one, _ = alone.communicate(timeout=300)
    two, _ = both.communicate(timeout=300)
    assert (alone.returncode, both.returncode) == (2, 1), one + two  # torchrun's own is 1
    (named, counted), (others, their_count) = left_out(one), left_out(two)
    assert len(others) == len(set(others)) == len(named)
    assert (set(others), their_count) == (set(named), counted)
    assert "2 processes share each step's groups" in two

    lines, theirs = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(lines) == len(theirs) == 4
    for line, other in zip(lines, theirs, strict=True):
        assert line["losses"] == pytest.approx(other["losses"], rel=1e-5)
        assert line["norm"] == pytest.approx(other["norm"], rel=1e-4)
    assert [line["validation"] for line in lines] == [line["validation"] for line in theirs]
    assert lines[-1]["validation"]["all"]["count"] > 0
    assert "gIoU" in lines[1]["validation"]["all"]


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    """SIGKILL in the third step, on a data set with stored features."""
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole, broken = tmp_path / "whole" / "run", tmp_path / "broken" / "run"
    child = command(training_runs.__file__, "killed", broken)
    refer_run(whole).run(log_every=1, save_every=1, validate_every=2)
    said, _ = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, said
    assert [path.name for path in states(broken)] == ["state-00000001.pt", "state-00000002.pt"]

    again = refer_run(broken)
    assert again.resume()
    again.run(log_every=1, save_every=1, validate_every=2)
    ours, theirs = (torch.load(states(f)[-1], weights_only=True) for f in (whole, broken))
    assert ours["step"] == theirs["step"] == 4
    for key, value in ours["trained"].items():
        assert torch.equal(value, theirs["trained"][key]), key
    for mine, other in zip(ours["optimisers"], theirs["optimisers"], strict=True):
        for number, kept in mine["state"].items():
            for name, value in kept.items():
                assert torch.equal(value, other["state"][number][name]), (number, name)
    first, second = log(whole), log(broken)
    assert [line["losses"] for line in first] == [line["losses"] for line in second]
    assert [line["validation"] for line in first] == [line["validation"] for line in second]
    assert len(list((broken.parent / "features").rglob("*.npz"))) > 0
