"""The cache of compiled graphs: built once, never half, and nothing loaded that does not fit."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ris.engines import EngineOptions, cache
from ris.engines.cache import obtain
from ris.engines.entry import read_checked
from ris.engines.errors import EngineError
from ris.engines.recipe import Recipe, graph_hashes
from ris.runtime import open_bundle

RECIPE = Recipe(
    stage="fusion",
    onnx={"fusion.onnx": "a" * 64, "fusion.onnx.data": "b" * 64},
    engine="tensorrt",
    version="10.16.1.11",
    device="sm_89",
    profiles={"x": [[1, 4], [1, 4], [8, 4]]},
    options={"workspace": None},
)
NO_BUILD = EngineOptions(build=False)


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    return tmp_path / "user" / "ris-runtime" / "engines"


@pytest.fixture
def home(tmp_path):
    return tmp_path / "engines"


class Builder:
    """Writes a plan and counts how often."""

    def __init__(self, content=b"a plan"):
        self.count, self.content = 0, content

    def __call__(self, artifact):
        self.count += 1
        artifact.write_bytes(self.content)
        return {"layers": {"fp16": 3}}


def notices():
    said = []
    return said, lambda stage, what, done: said.append(f"{stage}: {what}")


def test_builds_once_and_keeps_what_the_build_said(home):
    build = Builder()
    first, second = (obtain(RECIPE, home, build, EngineOptions()) for _ in range(2))
    assert (first.built_now, second.built_now, build.count) == (True, False, 1)
    assert first.artifact == second.artifact == home / RECIPE.key / "fusion.plan"
    assert second.report == {"layers": {"fp16": 3}}
    assert read_checked(second.artifact, "tensorrt") == b"a plan"
    assert obtain(RECIPE, home, build, NO_BUILD).artifact == first.artifact


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"version": "11.4.0.106"}, r"version \(10.16.1.11, here 11.4.0.106\)"),
        ({"device": "sm_90"}, r"device \(sm_89, here sm_90\)"),
        (
            {"onnx": RECIPE.onnx | {"fusion.onnx.data": "c" * 64}},
            r"onnx.fusion.onnx.data \(bbbbbbbb…, here cccccccc…\)",
        ),
        ({"options": {"workspace": 2**20}}, r"options.workspace \(none, here 1048576\)"),
        ({"profiles": {"x": [[1, 4], [1, 4], [16, 4]]}}, r"profiles.x \(.*8, 4.*, here .*16, 4"),
        ({"platform": "Linux-riscv64"}, r"platform \(.*, here Linux-riscv64\)"),
    ],
)
def test_another_recipe_is_another_entry_and_the_difference_is_named(home, change, named):
    build = Builder()
    obtain(RECIPE, home, build, EngineOptions())
    other = dataclasses.replace(RECIPE, **change)
    refused = f"no compiled tensorrt graph may be loaded .*is of another {named}"
    with pytest.raises(EngineError, match=refused):
        obtain(other, home, build, NO_BUILD)
    said, progress = notices()
    assert obtain(other, home, build, EngineOptions(), progress).built_now
    assert len(said) == 1
    assert said[0].startswith("fusion: not used: ")
    assert not obtain(RECIPE, home, build, EngineOptions()).built_now  # the other one stays
    assert build.count == 2


def test_nothing_there_and_no_build(home):
    refused = r"nothing was compiled for it in .*engines\); allow building it"
    with pytest.raises(EngineError, match=refused):
        obtain(RECIPE, home, Builder(), NO_BUILD)
    assert not home.exists()


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def edit_recipe(sidecar, **changed):
    data = json.loads(sidecar.read_text())
    data["recipe"].update(changed)
    sidecar.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: flip(folder / "fusion.plan"), "sha256 differs"),
        (lambda folder: (folder / "fusion.plan").unlink(), "fusion.plan is missing"),
        (lambda folder: (folder / "fusion.json").unlink(), "fusion.json is missing"),
        (lambda folder: (folder / "fusion.json").write_text("{"), "fusion.json cannot be read"),
        (
            lambda folder: (folder / "fusion.json").write_text("[]"),
            "lacks recipe, sha256, report, seconds",
        ),
        (
            lambda folder: edit_recipe(folder / "fusion.json", version="9.9"),
            r"version \(9.9, here",
        ),
        (
            lambda folder: edit_recipe(folder / "fusion.json", **{f"\n{i}": i for i in range(99)}),
            r"of another \\n0 \(0, here none\), .*, and 93 more",
        ),
    ],
)
def test_what_is_damaged_or_foreign_is_named_and_replaced(home, damage, named):
    build = Builder()
    entry = obtain(RECIPE, home, build, EngineOptions())
    damage(entry.artifact.parent)
    with pytest.raises(EngineError, match=named):
        obtain(RECIPE, home, build, NO_BUILD)
    said, progress = notices()
    again = obtain(RECIPE, home, build, EngineOptions(), progress)
    assert again.built_now
    assert str(home / RECIPE.key) in said[0]
    assert read_checked(again.artifact, "tensorrt") == b"a plan"


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda plan: flip(plan), "is damaged"),
        (lambda plan: plan.with_suffix(".json").unlink(), "only loaded with their sidecar"),
        (lambda plan: plan.unlink(), "cannot be read"),
        (
            lambda plan: edit_recipe(plan.with_suffix(".json"), engine="tensorrt-rtx"),
            "of another engine .'tensorrt-rtx', here 'tensorrt'.",
        ),
        (
            lambda plan: edit_recipe(plan.with_suffix(".json"), platform="\x1b[31m\n" * 999),
            "of another platform",
        ),
    ],
)
def test_nothing_is_read_that_the_sidecar_does_not_vouch_for(home, damage, named):
    plan = obtain(RECIPE, home, Builder(), EngineOptions()).artifact
    damage(plan)
    with pytest.raises(EngineError, match=named) as caught:
        read_checked(plan, "tensorrt")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < len(str(plan)) + 300


def test_a_failing_build_leaves_nothing(home):
    def build(artifact):
        artifact.write_bytes(b"half")
        raise EngineError("fusion: no")

    for _ in range(2):
        with pytest.raises(EngineError, match="fusion: no"):
            obtain(RECIPE, home, build, EngineOptions())
    assert [p.name for p in home.iterdir()] == [f".{RECIPE.key}.lock"]


def test_a_full_disk_is_a_sentence(home):
    def build(artifact):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EngineError, match=r"fusion: the disk is full at .*free some space"):
        obtain(RECIPE, home, build, EngineOptions())


def test_a_read_only_bundle_uses_the_users_folder(home, user_cache, monkeypatch):
    make = Path.mkdir

    def mkdir(self, *arguments, **options):
        if self == home:
            raise OSError(errno.EROFS, "Read-only file system")
        make(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    build = Builder()
    for _ in range(2):
        entry = obtain(RECIPE, home, build, EngineOptions())
        assert entry.artifact == user_cache / RECIPE.key / "fusion.plan"
    assert build.count == 1


def test_what_was_compiled_anew_beside_a_read_only_bundle_is_found(home, user_cache, monkeypatch):
    """Its entry looks whole, and the engine does not load it."""
    build = Builder()
    obtain(RECIPE, home, build, EngineOptions())

    with monkeypatch.context() as read_only:
        read_only.setattr("os.mkdir", _refusing_below(home))
        anew = obtain(RECIPE, home, build, EngineOptions(), anew=True)
        assert anew.artifact == user_cache / RECIPE.key / "fusion.plan"
        again = obtain(RECIPE, home, build, EngineOptions())
    assert (again.artifact, again.built_now, build.count) == (anew.artifact, False, 2)

    newer = obtain(RECIPE, home, build, EngineOptions(), anew=True)
    os.utime(newer.artifact)
    assert obtain(RECIPE, home, build, EngineOptions()).artifact.is_relative_to(home)


def _refusing_below(folder):
    """`os.mkdir` on a file system where this folder is read-only."""
    make = os.mkdir

    def mkdir(path, *arguments, **options):
        if Path(path).is_relative_to(folder):
            raise OSError(errno.EROFS, "Read-only file system")
        make(path, *arguments, **options)

    return mkdir


def test_a_folder_that_cannot_be_looked_at_is_passed_over(home, user_cache, monkeypatch):
    """HOME may be somebody else's, as in a container that runs as another user."""
    look = Path.is_dir

    def is_dir(self):
        if self.is_relative_to(user_cache):
            raise PermissionError(errno.EACCES, "Permission denied")
        return look(self)

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert obtain(RECIPE, home, Builder(), EngineOptions()).artifact.is_relative_to(home)


def test_without_a_home_the_temporary_folder_serves(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    entry = obtain(RECIPE, None, Builder(), EngineOptions())
    own = tmp_path / f"ris-runtime-{os.getuid()}" / "engines"
    assert entry.artifact.is_relative_to(own)
    assert cache.user_folder() == own


def test_where_nothing_can_be_written_all_places_are_named(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    monkeypatch.setattr("tempfile.tempdir", "/dev/null")
    refused = (
        r"cannot write to /dev/null/a \(Not a directory\) or /dev/null/ris-runtime/engines \(.*"
    )
    with pytest.raises(EngineError, match=refused + "set XDG_CACHE_HOME to a folder"):
        obtain(RECIPE, Path("/dev/null/a"), Builder(), EngineOptions())
    assert cache.user_folder() is None


def test_a_file_system_without_locks_compiles_all_the_same(home, monkeypatch):
    def refuse(handle, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    first = obtain(RECIPE, home, Builder(), EngineOptions())
    assert not obtain(RECIPE, home, Builder(), EngineOptions()).built_now
    again = obtain(RECIPE, home, Builder(b"another"), EngineOptions(), anew=True)
    assert again.artifact == first.artifact
    assert read_checked(again.artifact, "tensorrt") == b"another"
    assert sorted(p.name for p in home.iterdir()) == [f".{RECIPE.key}.lock", RECIPE.key]


def test_what_is_there_is_compiled_anew_where_that_is_asked(home):
    build = Builder()
    obtain(RECIPE, home, build, EngineOptions())
    entry = obtain(RECIPE, home, build, EngineOptions(), anew=True)
    assert (entry.built_now, build.count) == (True, 2)
    assert sorted(p.name for p in home.iterdir()) == [f".{RECIPE.key}.lock", RECIPE.key]


SLOW_BUILD = """
import sys, time
from pathlib import Path
from ris.engines import EngineOptions
from ris.engines.cache import obtain
from test_cache import RECIPE
def build(artifact):
    artifact.write_bytes(b"half")
    print("building", flush=True)
    time.sleep(float(sys.argv[2]))
    artifact.write_bytes(b"a plan")
    return {}
progress = lambda stage, what, part: print(what, flush=True)
done = obtain(RECIPE, Path(sys.argv[1]), build, EngineOptions(), progress)
print("built" if done.built_now else "found", flush=True)
"""


def start(home, seconds):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    command = [sys.executable, "-c", SLOW_BUILD, str(home), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def test_two_processes_build_once(home):
    both = [start(home, 1.5), start(home, 1.5)]
    output = [process.communicate(timeout=60)[0].split("\n") for process in both]
    first, second = sorted(output, key=lambda lines: "built" not in lines)
    assert first == ["building", "built", ""]
    assert second in (
        ["waiting for another process that compiles the same", "found", ""],
        ["found", ""],
    )


def test_a_killed_builder_leaves_nothing_that_is_loaded_and_the_next_cleans_up(home):
    process = start(home, 60)
    assert process.stdout.readline() == "building\n"
    process.send_signal(signal.SIGKILL)
    process.wait(timeout=60)
    left = list(home.glob(f".{RECIPE.key}.partial-*"))
    assert len(left) == 1
    with pytest.raises(EngineError, match="nothing was compiled"):
        obtain(RECIPE, home, Builder(), NO_BUILD)
    start_time = time.perf_counter()
    entry = obtain(RECIPE, home, Builder(), EngineOptions())
    assert entry.built_now  # the lock went with its process
    assert time.perf_counter() - start_time < 5
    assert sorted(p.name for p in home.iterdir()) == [f".{RECIPE.key}.lock", RECIPE.key]


def test_hashes_come_from_the_manifest_or_the_files(tiny_bundle):
    graph = open_bundle(tiny_bundle).graph("fusion")
    known = graph_hashes(graph)
    assert set(known) == {"fusion.onnx", "fusion.onnx.data"}
    assert graph_hashes(dataclasses.replace(graph, sha256={})) == known
    with pytest.raises(EngineError, match="cannot be read"):
        graph_hashes(dataclasses.replace(graph, sha256={}, path=tiny_bundle / "none.onnx"))


def test_the_users_folder_follows_the_desktop_standard(monkeypatch, tmp_path):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache.user_folder() == tmp_path / ".cache" / "ris-runtime" / "engines"
