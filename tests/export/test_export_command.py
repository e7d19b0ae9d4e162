"""`ris-export`: what it says, what it refuses, and that nothing is lost when it is killed."""

from __future__ import annotations

import errno
import functools
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from stages import STAGES

from ris.engines.temporary import temporary_folder, temporary_sibling
from ris.export import graph_writer
from ris.export.command import main
from ris.export.families.dfam.prompts_and_masks import MaskDecoder
from ris.runtime import bundle_folder, open_bundle

COMMAND = Path(sys.executable).parent / "ris-export"
TAKEN = "taken exists and is not a bundle, so it is not overwritten"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def export(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def names(folder):
    return sorted(p.name for p in Path(folder).iterdir())


@pytest.fixture(scope="module")
def from_the_shell(tmp_path_factory):
    """The folder in which `ris-export --preset tiny` ran, and what came of the process.

    A process of its own knows nothing of `traced`: its graphs are traced anew.
    """
    folder = tmp_path_factory.mktemp("shell")
    command = [COMMAND, "--preset", "tiny"]
    return folder, subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=folder)


def test_the_whole_command(from_the_shell):
    """From the shell: progress, what was written, parity per stage, the next commands."""
    folder, done = from_the_shell
    assert done.returncode == 0, done.stderr
    for stage in ("reference pass", "sam_image_encoder", "fusion", "end to end"):
        assert f"Export: {stage}" in done.stderr
    assert "Wrote ris-bundle: fp32" in done.stdout
    assert done.stdout.count("relative error") == len(STAGES)
    assert 'Next:\n  ris-infer image.jpg "left man"\n  ris-parity ris-bundle' in done.stdout
    open_bundle(folder / "ris-bundle")
    assert names(folder) == ["ris-bundle"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--precision", "fp12"], "'fp12' is not one of 'fp32', 'bf16', 'fp16'"),
        (["--preset", "vitb-vitl336"], "no weights for vitb-vitl336; --random-weights 0"),
        (["--preset", "rela-swin-tiny"], "no weights for rela-swin-tiny; --random-weights 0"),
        (["--preset", "huge"], "'huge' is not one of"),
        (["--lang-weight", "stored"], "--lang-weight is of no use to the family dfam"),
        (["--lang-weight", "half"], "'half' is not one of 'zero', 'stored'"),
        (["--vocabulary", "nosuch.txt"], "'nosuch.txt' does not exist"),
        (["--vocabulary", "short.txt"], "must begin with [PAD]"),
        (["--vocabulary", "long.txt"], "the vocabulary has 400 tokens, the model's BERT has 320"),
        (["--fp32", "fusion"], "--fp32 names graphs of a narrower bundle; give --precision"),
        (
            ["--precision", "fp16", "--fp32", "fussion"],
            "there is no graph 'fussion' to keep FP32; there are sam_image_encoder, ",
        ),
        (["--precision", "fp16", "--fp32", "fussion", "--dry-run"], "no graph 'fussion'"),
        (["--out", "taken"], TAKEN),
        (["--out", "taken", "--force"], TAKEN),
        (["--out", "short.txt"], "short.txt exists and is not a folder"),
    ],
)
def test_one_sentence_for_each_mistake(here, arguments, message):
    Path("short.txt").write_text("a\nb\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(395))]
    Path("long.txt").write_text("\n".join(words))
    Path("taken").mkdir()
    Path("taken/thesis.txt").write_text("mine")
    preset = [] if "--preset" in arguments else ["--preset", "tiny"]
    done = export(*preset, *arguments)
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert Path("taken/thesis.txt").read_text() == "mine"
    assert names(here) == ["long.txt", "short.txt", "taken"]


def test_an_existing_bundle_is_replaced_only_by_force(here, tiny_bundle):
    shutil.copytree(tiny_bundle, "ris-bundle")
    (here / "ris-bundle" / "old").write_text("")
    done = export("--preset", "tiny")
    assert done.exit_code == 2
    assert "ris-bundle exists; use --force to replace it" in done.output
    done = export("--preset", "tiny", "--force")
    assert done.exit_code == 0, done.output
    assert not (here / "ris-bundle" / "old").exists()
    assert names(here) == ["ris-bundle"]


def test_a_full_disk_leaves_the_old_bundle(here, tiny_bundle, monkeypatch):
    shutil.copytree(tiny_bundle, "ris-bundle")

    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(graph_writer, "write_onnx", full)
    done = export("--preset", "tiny", "--force")
    assert done.exit_code == 2
    assert "Error: ris-bundle: the disk is full; nothing was written" in done.output
    open_bundle(here / "ris-bundle")
    assert names(here) == ["ris-bundle"]


def test_too_little_disk_is_seen_before_the_work(here, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    done = export("--preset", "tiny")
    assert done.exit_code == 2
    assert "the disk is too full: the export needs about" in done.output
    assert names(here) == []


def test_a_graph_that_disagrees_is_an_error_with_numbers(here, monkeypatch):
    original = MaskDecoder.forward

    @functools.wraps(original)  # torch reads the names of the arguments
    def wrong(*arguments, **named):
        return original(*arguments, **named) * 1.01

    monkeypatch.setattr(MaskDecoder, "forward", wrong)
    done = export("--preset", "tiny")
    assert done.exit_code == 1
    assert "mask_decoder does not agree with the PyTorch reference" in done.output
    assert "relative error 1.00e-02" in done.output
    assert names(here) == []


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_export_leaves_the_old_bundle(here, tiny_bundle, sign):
    shutil.copytree(tiny_bundle, "ris-bundle")
    before = (here / "ris-bundle" / "manifest.json").read_bytes()
    # a test run in the background has SIGINT ignored, and children inherit that
    process = subprocess.Popen(
        [COMMAND, "--preset", "tiny", "--force"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stderr:
        if "clip_image_encoder" in line:
            break
    process.send_signal(sign)
    _, error = process.communicate(timeout=60)
    if sign != signal.SIGKILL:
        assert process.returncode == 130
        assert "Stopped" in error
        assert names(here) == ["ris-bundle"]
    open_bundle(here / "ris-bundle")
    assert (here / "ris-bundle" / "manifest.json").read_bytes() == before
    if sign == signal.SIGKILL:  # nobody could clean up; the next export does
        [beside, left, whole] = names(here)
        assert beside == ".ris-bundle.export"  # the lock, which died with the process
        assert left.startswith(".ris-bundle.partial-")
        assert f"-{process.pid}-" in left
        assert whole == "ris-bundle"
        assert export("--preset", "tiny", "--force", "--precision", "fp32").exit_code == 0
        assert names(here) == ["ris-bundle"]


def test_two_exports_at_once_do_not_disturb_each_other(here):
    with temporary_folder(here / "ris-bundle") as other:
        bundle_folder.recover(here / "ris-bundle")
        assert other.exists()


def test_a_kill_between_the_renames_loses_nothing(here, tiny_bundle):
    for kind in ("old", "partial"):  # nobody holds their locks any more
        shutil.copytree(tiny_bundle, temporary_sibling(here / "ris-bundle", kind))
    assert "ris-bundle exists; use --force" in export("--preset", "tiny").output
    open_bundle(here / "ris-bundle")
    assert names(here) == ["ris-bundle"]


def test_the_same_model_gives_the_same_files(from_the_shell, tiny_bundle):
    """To the byte, so that an engine cache that is keyed by content stays valid."""
    folder, _ = from_the_shell
    first, second = (
        json.loads((bundle / "manifest.json").read_text())["stages"]
        for bundle in (tiny_bundle, folder / "ris-bundle")
    )
    assert len(first) == len(second) == len(STAGES)
    for one, other in zip(first, second, strict=True):
        assert one["sha256"] == other["sha256"], one["name"]
