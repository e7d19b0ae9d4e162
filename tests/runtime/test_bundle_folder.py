"""Where a bundle is written to: links stay, and what cannot be replaced is said before the work."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from ris.engines.temporary import temporary_sibling
from ris.runtime import BundleError
from ris.runtime.bundle_folder import building, check_target, recover, require_movable


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(folder, content="old"):
    """What passes for a bundle, with something compiled in it."""
    (folder / "engines" / "abc").mkdir(parents=True)
    (folder / "manifest.json").write_text(content)
    return folder


def write(out, content="new"):
    with building(out, overwrite=True) as folder:
        (folder / "manifest.json").write_text(content)


def test_a_link_stays_and_what_it_leads_to_is_replaced(here):
    make(here / "v1")
    (here / "current").symlink_to("v1")
    write(here / "current")
    assert (here / "current").readlink().name == "v1"
    assert (here / "v1" / "manifest.json").read_text() == "new"
    assert (here / "v1" / "engines" / "abc").is_dir()
    assert sorted(os.listdir(here)) == ["current", "v1"]


def test_a_link_to_nothing_is_filled(here):
    (here / "current").symlink_to("v2")
    write(here / "current")
    assert (here / "v2" / "manifest.json").read_text() == "new"
    assert sorted(os.listdir(here)) == ["current", "v2"]


@pytest.mark.parametrize("out", [".", "..", "/", "link"])
def test_the_folder_that_the_command_runs_in_is_refused(here, monkeypatch, out):
    make(here / "bundle" / "inner")
    (here / "bundle" / "inner" / "link").symlink_to(here / "bundle")
    monkeypatch.chdir(here / "bundle" / "inner")
    for overwrite in (False, True):
        refused = rf"{re.escape(out)} is the folder that this command runs in, or is around it"
        with pytest.raises(BundleError, match=refused):
            check_target(Path(out), overwrite)


def test_a_mount_point_is_refused():
    with pytest.raises(BundleError, match="/proc is a mount point and cannot be replaced; name a"):
        require_movable(Path("/proc"))


def test_a_folder_that_was_removed_is_no_reason_to_refuse(here, monkeypatch):
    (here / "gone").mkdir()
    monkeypatch.chdir(here / "gone")
    (here / "gone").rmdir()
    write(here / "out")
    assert (here / "out" / "manifest.json").is_file()


def test_what_is_compiled_survives_a_kill_before_it_was_moved(here):
    """The new bundle is in its place, and the old one has not given its engines yet."""
    old = temporary_sibling(here / "out", "old")
    make(old)
    (here / "out").mkdir()
    recover(here / "out")
    assert (here / "out" / "engines" / "abc").is_dir()
    assert os.listdir(here) == ["out"]


def test_a_place_that_is_a_file_is_a_sentence(here):
    (here / "file").touch()
    with pytest.raises(BundleError, match=r"out: Not a directory; nothing was written|file: "):
        write(here / "file" / "out")


def test_the_old_bundle_is_whole_where_the_new_one_fails(here):
    make(here / "out")

    def fail():
        with building(here / "out", overwrite=True) as folder:
            (folder / "manifest.json").write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert (here / "out" / "manifest.json").read_text() == "old"
    assert os.listdir(here) == ["out"]
