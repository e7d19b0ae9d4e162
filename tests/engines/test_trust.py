"""Compiled graphs are code: loaded where this user's key vouches for them, and nowhere else."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from ris.engines import EngineOptions, trust
from ris.engines.cache import obtain
from ris.engines.entry import read_checked
from ris.engines.errors import EngineError, PlanError
from ris.engines.recipe import Recipe, file_hash

RECIPE = Recipe("fusion", {"fusion.onnx": "a" * 64}, "openvino", "2026.1", "CPU", {"x": 1}, {})
NO_BUILD = EngineOptions(build=False)


@pytest.fixture(autouse=True)
def user(tmp_path, monkeypatch):
    """A user with a home of its own."""
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", trust.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "home"


@pytest.fixture
def key(user):
    return user / ".local" / "state" / "ris-runtime" / "key"


@pytest.fixture
def engines(tmp_path):
    """The bundle's folder of compiled graphs."""
    return tmp_path / "bundle" / "engines"


def build(artifact):
    artifact.write_bytes(b"a plan")
    return {"layers": {"fp32": 3}}


def compiled(engines, options=None, said=None):
    progress = (lambda stage, what, done: said.append(what)) if said is not None else None
    arguments = [progress] if progress else []
    return obtain(RECIPE, engines, build, options or EngineOptions(), *arguments)


def edit(artifact, **changes):
    """Changes the sidecar of an artifact."""
    file = artifact.with_suffix(".json")
    data = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in data.items() if value is not None}))


def test_the_key_is_made_once_and_is_the_users_alone(key):
    first = trust.user_key()
    assert first.file == key
    assert key.read_bytes() == first.secret == trust.user_key().secret
    assert len(first.secret) == 32
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    assert first.secret.hex() not in first.name


def test_processes_that_make_the_key_at_once_have_the_same(user, key):
    code = "from ris.engines.trust import user_key; print(user_key().secret.hex())"
    command = [sys.executable, "-c", code]
    at_once = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate()[0].strip() for process in at_once} == {key.read_bytes().hex()}
    assert os.listdir(key.parent) == ["key"]


@pytest.mark.parametrize("spoil", [lambda f: f.chmod(0o644), lambda f: f.write_bytes(b"short")])
def test_a_file_that_is_no_secret_of_the_user_is_passed_over(tmp_path, key, spoil):
    trust.user_key()
    spoil(key)
    assert trust.user_key().file == tmp_path / f"ris-runtime-{os.getuid()}" / "key"


def test_where_no_folder_has_the_key_a_process_trusts_itself(tmp_path, monkeypatch, engines):
    monkeypatch.setenv("HOME", "/dev/null")
    monkeypatch.setattr(tempfile, "tempdir", "/dev/null")
    assert trust.user_key().file is None
    entry = compiled(engines)
    assert not compiled(engines).built_now
    assert read_checked(entry.artifact, "openvino") == b"a plan"


def test_links_that_a_file_system_refuses_are_not_needed(monkeypatch, key):
    def refuse(source, target):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert trust.user_key().secret == key.read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"report": {"layers": {"fp32": 4}}}, "changed after it was compiled"),
        ({"tag": "0" * 64}, "changed after it was compiled"),
        ({"tag": "ü"}, "changed after it was compiled"),
        ({"tag": None}, "no key vouches for it"),
        ({"tag": None, "key": None}, "no key vouches for it"),
        ({"key": "0" * 16}, "another key than this user's"),
    ],
)
def test_what_the_key_does_not_vouch_for_is_not_loaded(engines, changes, reason):
    artifact = compiled(engines).artifact
    edit(artifact, **changes)
    with pytest.raises(PlanError, match=rf"not trusted: .*{reason}.*; compile it again"):
        read_checked(artifact, "openvino")
    with pytest.raises(EngineError, match=rf"may be loaded \(.*{reason}"):
        compiled(engines, NO_BUILD)
    said = []
    again = compiled(engines, said=said)
    assert again.built_now
    assert reason in said[0]
    assert read_checked(again.artifact, "openvino") == b"a plan"
    assert not compiled(engines).built_now


def test_a_plan_with_a_sidecar_to_match_is_not_enough(engines):
    """Whoever can write the bundle can write both."""
    artifact = compiled(engines).artifact
    artifact.write_bytes(b"a wicked plan")
    edit(artifact, sha256=file_hash(artifact))
    with pytest.raises(PlanError):
        read_checked(artifact, "openvino")
    assert compiled(engines).built_now


def test_what_others_may_write_is_not_loaded(engines):
    artifact = compiled(engines).artifact
    artifact.chmod(0o666)
    with pytest.raises(PlanError, match="not trusted: other users may write it"):
        read_checked(artifact, "openvino")
    assert compiled(engines).built_now


def test_what_is_compiled_with_an_open_umask_is_closed(engines):
    before = os.umask(0)
    try:
        artifact = compiled(engines).artifact
    finally:
        os.umask(before)
    assert not artifact.stat().st_mode & 0o022
    assert read_checked(artifact, "openvino") == b"a plan"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_what_another_user_owns_is_not_loaded(engines):
    artifact = compiled(engines).artifact
    os.chown(artifact, 12345, -1)
    with pytest.raises(PlanError, match=r"belongs to user 12345, neither this one \(0\) nor root"):
        read_checked(artifact, "openvino")


def test_another_users_plan_stays_where_it_is(engines, key, user):
    """Two users of one bundle do not compile in turns."""
    first = compiled(engines)
    key.unlink()  # the other user has another
    second = compiled(engines)
    assert second.built_now
    assert second.artifact.is_relative_to(user / ".cache")
    assert first.artifact.is_file()
    assert compiled(engines).artifact == second.artifact


def test_a_key_that_is_named_goes_from_machine_to_machine(engines, tmp_path, monkeypatch, key):
    secret = tmp_path / "plan.key"
    secret.write_bytes(os.urandom(32))
    monkeypatch.setenv(trust.VARIABLE, str(secret))
    artifact = compiled(engines).artifact
    monkeypatch.setenv("HOME", str(tmp_path / "other-machine"))
    assert not compiled(engines, NO_BUILD).built_now
    assert read_checked(artifact, "openvino") == b"a plan"
    assert not key.exists()
    monkeypatch.delenv(trust.VARIABLE)
    with pytest.raises(PlanError, match="RIS_PLAN_KEY can name that one"):
        read_checked(artifact, "openvino")


def test_a_named_key_that_is_none_is_said_before_the_work(engines, tmp_path, monkeypatch):
    secret = tmp_path / "plan.key"
    monkeypatch.setenv(trust.VARIABLE, str(secret))
    with pytest.raises(EngineError, match=r"plan.key cannot be read \(No such file"):
        compiled(engines)
    secret.write_text("00" * 32)
    with pytest.raises(EngineError, match=r"has 64 bytes, and a key has 32; make one with: head"):
        compiled(engines)
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o666)
    with pytest.raises(EngineError, match="no secret of this user: other users may write it"):
        compiled(engines)
    assert not Path(engines).exists()
