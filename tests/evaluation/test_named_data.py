"""`ris-data check` of a data set by its name."""

from __future__ import annotations

import hashlib
import json
import shutil

from click.testing import CliRunner

from conftest import GOLDEN as GOLDENS
from ris.evaluation.data_command import main

GOLDEN = GOLDENS / "evaluation"


def test_a_named_set_is_fetched_unpacked_and_checked(hub, tmp_path, monkeypatch):
    for name in ("grefcoco", "images"):
        shutil.copytree(GOLDEN / name, tmp_path / "set" / name)
    archive = tmp_path / "pairs.zip"
    shutil.make_archive(str(archive.with_suffix("")), "zip", tmp_path / "set")
    content = archive.read_bytes()
    file = {"role": None, "name": "pairs.zip", "url": hub.url("pairs.zip", content)}
    file |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    known = {"name": "pairs", "kind": "data", "title": "Pairs", "files": [file]}
    table = {"format": 1, "entries": [known | {"licences": {"data": "CC BY 4.0"}}]}
    (tmp_path / "table.json").write_text(json.dumps(table))
    monkeypatch.setenv("RIS_MODELS", str(tmp_path / "table.json"))

    done = CliRunner().invoke(main, ["check", "pairs", "--data", "grefcoco"])
    assert done.exit_code == 0, done.output
    assert "licences: data CC BY 4.0" in done.stderr
    assert "not stated" in done.stdout
    hub.sent()
    again = CliRunner().invoke(main, ["check", "pairs", "--data", "grefcoco", "--json"])
    assert json.loads(again.stdout)[0]["whole"]
    assert hub.sent() == 0

    done = CliRunner().invoke(main, ["check", "pears"])
    assert (done.exit_code, "Directory 'pears' does not exist." in done.stderr) == (2, True)
