"""The user's folders: where HOME is no help, another place serves, and it is the user's alone."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from ris.engines.user_folders import cache_folders, home_folder, make, state_folders


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch):
    for name in ("XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@pytest.fixture
def temporary(tmp_path):
    return tmp_path / f"ris-runtime-{os.getuid()}"


@pytest.fixture
def unknown(monkeypatch):
    """No HOME, and no entry in the system's list of users."""

    def no_entry(user):
        raise KeyError(user)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_entry)


def test_they_follow_the_desktop_standard(tmp_path, monkeypatch, temporary):
    home = tmp_path / "home"
    assert cache_folders() == [home / ".cache" / "ris-runtime", temporary]
    assert state_folders() == [home / ".local" / "state" / "ris-runtime", temporary]
    monkeypatch.setenv("XDG_CACHE_HOME", "/c")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    assert cache_folders() == [Path("/c/ris-runtime"), temporary]
    assert state_folders() == [Path("/s/ris-runtime"), Path("/r/ris-runtime"), temporary]


def test_a_user_whom_the_system_does_not_know_has_a_place(unknown, temporary):
    assert home_folder() is None
    assert cache_folders() == state_folders() == [temporary]


def test_nobody_elses_temporary_folder_is_used(tmp_path, unknown, temporary):
    temporary.mkdir(0o755)
    assert cache_folders() == []
    temporary.rmdir()
    (tmp_path / "mine").mkdir(0o700)
    temporary.symlink_to("mine")
    assert cache_folders() == []
    temporary.unlink()
    make(temporary / "engines")
    assert cache_folders() == [temporary]


def test_what_is_made_is_the_users_alone(tmp_path):
    make(tmp_path / "a" / "b")
    for folder in (tmp_path / "a", tmp_path / "a" / "b"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    make(tmp_path / "a" / "b")
    with pytest.raises(OSError, match="File exists"):
        make(Path("/dev/null/.cache"))
