"""What the commands share on the terminal."""

from __future__ import annotations

import errno
import os
import tempfile

import pytest

from ris.engines.errors import RisError
from ris.runtime.commands.console import require_writable


def test_what_can_be_written_is_not_made(tmp_path):
    file = tmp_path / "file"
    file.touch()
    require_writable(file)
    require_writable(tmp_path, folder=True)
    require_writable(tmp_path / "new" / "file")
    require_writable(tmp_path / "new" / "folder", folder=True)
    assert [*tmp_path.iterdir()] == [file]


def test_a_path_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    require_writable(type(tmp_path)("new") / "file")


@pytest.mark.parametrize(
    ("path", "folder", "sentence"),
    [
        ("file/below", False, "cannot write .*file/below: .*file is no folder"),
        ("file/a/b", True, "cannot write .*file/a/b: .*file is no folder"),
        ("file", True, "cannot write .*file: .*file is no folder"),
        ("folder", False, "cannot write .*folder: .*folder is a folder"),
    ],
)
def test_what_is_in_the_way_is_named(tmp_path, path, folder, sentence):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(RisError, match=sentence):
        require_writable(tmp_path / path, folder=folder)


def test_what_the_disk_refuses_to_look_at_is_a_sentence(tmp_path):
    with pytest.raises(RisError, match=r"cannot write .*: File name too long"):
        require_writable(tmp_path / ("n" * 300))


def test_no_permission_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "access", lambda *given: False)
    with pytest.raises(RisError, match=r"cannot write .*file: Permission denied"):
        require_writable(tmp_path / "file")

    def refuse(*given, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    with pytest.raises(RisError, match=r"cannot write .*a/b: Read-only file system"):
        require_writable(tmp_path / "a" / "b")
