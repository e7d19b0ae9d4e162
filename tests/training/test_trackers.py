"""Where a run's figures go: a tracker that fails ends itself and no run."""

from __future__ import annotations

import csv
import json

import pytest
from accelerate.tracking import GeneralTracker

from ris.engines.errors import RisError
from ris.training import command, trackers
from ris.training.command import _words
from ris.training.run_folder import WEIGHTS, Progress, states
from training_runs import scenes_run


class Failing(GeneralTracker):
    """W&B without its service."""

    name = "wandb"
    requires_logging_directory = False
    tracker = None

    def __init__(self, fails: str) -> None:
        super().__init__()
        self.fails, self.asked = fails, []

    def _asked(self, what: str) -> None:
        self.asked.append(what)
        if what == self.fails:
            raise ConnectionError("no answer\nfor a minute")

    def start(self) -> None:
        self._asked("start")

    def log(self, values, step=None, **kwargs) -> None:
        self._asked("log")

    def log_images(self, values, step=None, **kwargs) -> None:
        self._asked("log_images")

    def finish(self) -> None:
        self._asked("finish")


def made(monkeypatch, fails):
    """The tracker that `--log wandb` makes."""
    failing, real = Failing(fails), trackers._tracker
    monkeypatch.setattr(
        trackers, "_tracker", lambda name, *args: failing if name == "wandb" else real(name, *args)
    )
    return failing


@pytest.mark.parametrize("fails", ["log", "log_images", "finish"])
def test_a_tracker_that_fails_is_named_and_the_run_goes_on(tmp_path, monkeypatch, fails):
    failing = made(monkeypatch, fails)
    run = scenes_run(tmp_path, trackers=("wandb", "csv"))
    lines = []
    run.run(log_every=1, validate_every=2, report=lines.append)
    notes = [line.note for line in lines if line.note]
    assert notes == ["--log wandb ends here, the run goes on: no answer"]
    assert "--log wandb ends here" in _words(next(line for line in lines if line.note))
    assert failing.asked.count(fails) == 1, "it is not asked again"
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2", "3", "4"]
    kept = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["note"] for line in kept if line["note"]] == notes
    assert states(tmp_path)[-1].exists()
    assert (tmp_path / WEIGHTS).exists()


def test_a_tracker_that_is_named_twice_is_one(tmp_path):
    run = scenes_run(tmp_path, trackers=("csv", "csv"))
    run.run(log_every=1, stop=2)
    with (tmp_path / "log.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["1", "2"]


def test_a_note_is_printed_as_it_is(tmp_path, capsys):
    """It may have another's words, which are no markup."""

    class Noted:
        """A trainer that reports one line."""

        keeper = type("Kept", (), {"folder": tmp_path})
        accelerator = type("Main", (), {"is_main_process": True})
        step = 0

        def run(self, report, **given):
            report(Progress(1, {}, 0.1, 0.0, note="--log wandb ends here: [/tmp/x] at [fe80::1]"))

    given = dict.fromkeys(("log_every", "save_every", "validate_every")) | {"stop": 1}
    command._run(Noted(), given, lambda sentence: None)
    assert "--log wandb ends here: [/tmp/x] at [fe80::1]" in capsys.readouterr().out


def test_a_tracker_that_cannot_begin_is_said_before_the_first_step(tmp_path, monkeypatch):
    made(monkeypatch, "start")
    run = scenes_run(tmp_path, trackers=("csv", "wandb"))
    with pytest.raises(RisError, match=r"^--log wandb cannot begin: no answer$"):
        run.run()
    assert run.step == 0
    again = scenes_run(tmp_path, trackers=("csv",))
    assert not again.resume()
    again.run(stop=1)  # the folder is as good as new
    assert states(tmp_path)
