"""Two exports into one bundle at the same time: the second is refused, and a killed one is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from ris.engines.errors import BundleError
from ris.export.alone import alone, kept_folder
from ris.export.command import main

HOLD = """
import sys
from pathlib import Path
from ris.export.alone import alone, kept_folder
with alone(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that writes to the bundle."""
    command = [sys.executable, "-c", HOLD, str(tmp_path / "bundle")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def export(out):
    return CliRunner().invoke(main, ["--preset", "tiny", "--out", str(out)])


def test_a_second_export_is_refused_in_a_sentence(holder, tmp_path, monkeypatch):
    out = tmp_path / "bundle"
    refused = export(out)
    assert refused.exit_code == 2
    assert refused.stderr.splitlines()[-1] == (
        f"Error: another run writes {out} at the moment; wait until it has ended, or choose"
        " another --out"
    )
    assert [file.name for file in tmp_path.iterdir()] == [kept_folder(out).name]


def test_a_link_to_the_bundle_is_the_bundle(holder, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "bundle")
    with pytest.raises(BundleError, match="another run writes"), alone(tmp_path / "link"):
        pass


def test_a_killed_export_holds_nothing_and_what_it_kept_is_there(holder, tmp_path):
    out = tmp_path / "bundle"
    kept = kept_folder(out) / "stage.onnx.data"
    kept.write_bytes(b"weights")
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with alone(out):
        assert kept.read_bytes() == b"weights"
    assert [file.name for file in kept_folder(out).iterdir()] == [kept.name]


def test_nothing_stays_beside_a_bundle_that_is_written(holder, tmp_path):
    holder.stdin.close()
    holder.wait()
    assert list(tmp_path.iterdir()) == []
    with alone(tmp_path / "bundle"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_bundles_are_written_meanwhile(holder, tmp_path):
    with alone(tmp_path / "another"):
        pass


def test_whoever_comes_as_it_ends_gets_a_lock_that_others_see(tmp_path):
    """The file of who has ended is gone, and a lock on it would be nobody's."""
    out, entered, inside, most = tmp_path / "bundle", [], [], []

    def often():
        for _ in range(200):
            try:
                with alone(out):
                    inside.append(1)
                    most.append(len(inside))
                    inside.pop()
                    entered.append(1)
            except BundleError:
                pass

    threads = [threading.Thread(target=often) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
    assert len(entered) > 0


def test_a_folder_that_may_not_be_written_is_a_sentence(tmp_path, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(BundleError, match="no permission to write there"), alone(tmp_path / "b"):
        pass


def test_without_locks_it_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr("ris.export.alone.lock", lambda handle: "none")
    with alone(tmp_path / "bundle"), alone(tmp_path / "bundle"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [8, 248, 255])
def test_a_name_may_be_as_long_as_any(tmp_path, length):
    out = tmp_path / ("b" * length)
    with alone(out):
        assert len(kept_folder(out).name) <= 255
        assert kept_folder(out).is_dir()
    assert not kept_folder(out).exists()
    assert kept_folder(out) != kept_folder(tmp_path / ("b" * (length - 1) + "c"))
