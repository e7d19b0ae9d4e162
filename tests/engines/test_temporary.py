"""Temporary names, and what is removed of them: only what a killed writer left, provably."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import warnings

import pytest

from ris.engines.temporary import (
    clear_dead,
    clear_folder,
    dead_siblings,
    recover_folder,
    replace_folder,
    temporary_folder,
    temporary_sibling,
    write_atomically,
)

HOLD = """
import sys, time
from pathlib import Path
from ris.engines.temporary import temporary_file, temporary_folder
kind = {"folder": temporary_folder, "file": temporary_file}[sys.argv[1]]
with kind(Path(sys.argv[2])):
    print("holds", flush=True)
    time.sleep(60)
"""
IN_A_CONTAINER = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


@pytest.fixture
def hold():
    """Starts processes that write a file or folder until they are killed."""
    started = []

    def start(what, path, before=()):
        command = [*before, sys.executable, "-c", HOLD, what, str(path)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, as Lustre mounted without `flock`."""

    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)


def kill(process):
    """Returns when nobody holds the process's output any more: it has ended, and its children."""
    process.send_signal(signal.SIGKILL)
    process.stdout.read()
    process.wait()


def kept(old, new):
    """Nothing stays of an old folder."""


def gone():
    """The number of a process that has ended."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def rename(path, *, place=None, process=None):
    """Gives a temporary file the name that another writer would have given it."""
    found = re.search(r"([0-9a-f]{12})-(\d+)-([0-9a-f]{8})$", path.name)
    parts = place or found[1], process or found[2], found[3]
    return path.rename(path.with_name(path.name[: found.start()] + "-".join(map(str, parts))))


@pytest.mark.parametrize("name", ["a.json", "x" * 255, "ü" * 127, "[a]*?", "a\nb"])
def test_a_name_fits_is_hidden_and_is_found_by_any_process(tmp_path, monkeypatch, name):
    path = tmp_path / name
    one, other = temporary_sibling(path), temporary_sibling(path)
    assert one != other
    assert one.parent == tmp_path
    assert one.name.startswith(".")
    assert len(os.fsencode(one.name)) <= 255
    one.touch()
    monkeypatch.setattr(os, "getpid", lambda: 4194303)
    assert dead_siblings(path) == [one]
    assert dead_siblings(path, "old") == []


def test_long_names_that_begin_alike_are_told_apart(tmp_path):
    one, other = tmp_path / ("x" * 250 + "1"), tmp_path / ("x" * 250 + "2")
    temporary_sibling(one).touch()
    assert dead_siblings(other) == []


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def save(file):
        file.write(b"half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write_atomically(path, save)
    assert path.read_text() == "old"
    write_atomically(path, lambda file: file.write(b"new"), to_disk=True)
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("what", ["folder", "file"])
def test_what_a_process_writes_stays_until_it_is_killed(tmp_path, hold, what):
    path = tmp_path / "out"
    process = hold(what, path)
    clear_dead(path)
    assert len(os.listdir(tmp_path)) == 1
    kill(process)
    clear_folder(tmp_path)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("what", ["folder", "file"])
def test_containers_that_share_a_folder_leave_each_other_alone(tmp_path, hold, what):
    """Each has a process 1, and neither knows the other's processes."""
    path = tmp_path / "out"
    if subprocess.run([*IN_A_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no namespaces of processes for this user")
    process = hold(what, path, IN_A_CONTAINER)
    look = "from pathlib import Path; from ris.engines import temporary as t;"
    look += f"t.clear_dead(Path({str(path)!r}))"
    subprocess.run([*IN_A_CONTAINER, sys.executable, "-c", look], check=True)
    clear_dead(path)
    assert len(os.listdir(tmp_path)) == 1
    kill(process)
    clear_dead(path)
    assert os.listdir(tmp_path) == []


def test_without_locks_a_process_of_this_place_tells(tmp_path, no_locks):
    path = tmp_path / "out"
    temporary_sibling(path).touch()
    with pytest.warns(UserWarning, match="left alone.*remove it by hand"):
        assert dead_siblings(path) == []
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it was said
        clear_dead(path)
    [left] = tmp_path.iterdir()
    rename(left, process=gone())
    clear_dead(path)
    assert os.listdir(tmp_path) == []


def test_without_locks_files_and_folders_are_written_all_the_same(tmp_path, no_locks):
    write_atomically(tmp_path / "a", lambda file: file.write(b"a"))
    with temporary_folder(tmp_path / "b") as folder:
        replace_folder(tmp_path / "b", folder, kept)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("locks", [True, False])
def test_nothing_is_proved_about_another_machine(tmp_path, request, locks):
    if not locks:
        request.getfixturevalue("no_locks")
    path = tmp_path / "out"
    temporary_sibling(path).touch()
    [left] = tmp_path.iterdir()
    rename(left, place="0" * 12, process=gone())
    with pytest.warns(UserWarning, match="on another machine"):
        clear_dead(path)
    assert len(os.listdir(tmp_path)) == 1


def test_what_only_looks_temporary_stays(tmp_path):
    names = [".out.partial-1", ".out.partial-notes.txt", "out.partial-000000000000-1-00000000"]
    for name in names:
        (tmp_path / name).touch()
    clear_dead(tmp_path / "out")
    clear_folder(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(names)


def test_a_kill_between_the_renames_brings_the_old_folder_back(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "old").touch()
    code = f"""
import os, signal
from ris.engines import temporary
from pathlib import Path
out, new = Path({str(path)!r}), Path({str(tmp_path / "new")!r})
new.mkdir()
rename = Path.rename
def once(self, to):
    if self == new:
        os.kill(os.getpid(), signal.SIGKILL)
    return rename(self, to)
Path.rename = once
temporary.replace_folder(out, new, lambda old, new: None)
"""
    subprocess.run([sys.executable, "-c", code])
    assert not path.exists()
    recover_folder(path, kept)
    assert os.listdir(path) == ["old"]
    assert sorted(os.listdir(tmp_path)) == ["new", "out"]


def test_a_folder_that_cannot_take_the_place_leaves_the_old_one(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    with pytest.raises(OSError, match="No such file"):
        replace_folder(path, tmp_path / "none", kept)
    assert os.listdir(tmp_path) == ["out"]


def test_what_is_to_stay_is_moved(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "cache").touch()
    with temporary_folder(path) as folder:
        (folder / "new").touch()
        replace_folder(path, folder, lambda old, new: shutil.move(old / "cache", new / "cache"))
    assert sorted(os.listdir(path)) == ["cache", "new"]
