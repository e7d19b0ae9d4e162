"""`ris-train` with names of published files where it takes paths."""

from __future__ import annotations

import hashlib
import json
import shutil

import pytest
from click.testing import CliRunner

from refer_files import write_refer
from ris.runtime.commands import models
from ris.training.command import main
from ris.training.initialise import fresh_model
from ris.training.run_folder import write_weights
from training_runs import TINY

SMALL = "--batch 4 --group 2 --validation-samples 4 --workers 0 --threads 1 --log csv --steps 1"


@pytest.fixture
def named(hub, tmp_path, monkeypatch):
    """A checkpoint, a data set and a SAM of a table, on the Hub and on another server."""
    write_refer(tmp_path / "set", "grefcoco")
    archive = shutil.make_archive(str(tmp_path / "pairs"), "zip", tmp_path / "set")
    content = (tmp_path / "pairs.zip").read_bytes()
    assert archive.endswith(".zip")
    model, weights = fresh_model(TINY, 0), tmp_path / "weights.safetensors"
    write_weights(weights, model.state_dict(), model, {})
    hub.repository("lab/whole", {"model.safetensors": weights.read_bytes()})
    files = {
        "whole": {"role": "checkpoint", "name": "model.safetensors", "repository": "lab/whole"},
        "pairs": {"role": None, "name": "pairs.zip", "url": hub.url("pairs.zip", content)}
        | {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "other": {"role": "checkpoint", "name": "x.pth", "repository": "lab/other"},
    }
    kinds = {"whole": "model", "pairs": "data", "other": "model"}
    families = {"whole": {"family": "dfam"}, "other": {"family": "rela"}}
    entries = [
        {"name": name, "kind": kinds[name], "title": name, "files": [file], "licences": {}}
        | families.get(name, {})
        for name, file in files.items()
    ]
    (tmp_path / "table.json").write_text(json.dumps({"format": 1, "entries": entries}))
    monkeypatch.setenv("RIS_MODELS", str(tmp_path / "table.json"))
    return tmp_path


def train(folder, *more):
    asked = ["--data", "grefcoco", "--root", "pairs", "--checkpoint", "whole", *SMALL.split()]
    return CliRunner().invoke(main, [*asked, "--out", str(folder / "run"), *more])


def test_a_run_from_names_fetches_what_they_stand_for(hub, named):
    done = train(named)
    assert "tensors come from the files" in done.output
    assert f"Wrote {named / 'run' / 'model.safetensors'}" in done.output
    said = done.stderr
    assert said.index("whole: whole") < said.index("  from hf://lab/whole") < said.index("Download")
    assert "licences: not stated" in said
    hub.sent()
    again = train(named, "--restart")
    assert "Wrote" in again.output
    assert hub.sent() == 0


def test_a_dry_run_downloads_nothing(hub, named):
    done = train(named, "--dry-run")
    assert done.exit_code == 2
    assert "missing: model.safetensors, which a run downloads from hf://lab/whole" in done.stdout
    assert "missing: pairs.zip, " in done.stdout
    assert "2 missing, named above; nothing was measured" in done.stderr
    assert hub.requests == []
    for name in ("whole", "pairs"):
        assert CliRunner().invoke(models.main, ["fetch", name]).exit_code == 0
    hub.sent()
    done = train(named, "--dry-run")
    assert "million of them train" in done.stdout, done.output
    assert hub.sent() == 0


def test_a_model_of_another_family_is_refused_before_the_download(hub, named):
    done = train(named, "--checkpoint", "other")
    assert done.exit_code == 2
    assert "other is of the family rela, and --checkpoint takes one of dfam here" in done.stderr
    done = train(named, "--root", "pears")
    assert "Directory 'pears' does not exist." in done.stderr
    assert hub.requests == []
