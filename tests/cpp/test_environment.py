"""libris on real machines: what it finds of them, beside what Python finds, and what it leaves."""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

import pytest

from libris_helper import run
from ris.engines import processor, trust, user_folders
from ris.engines.cuda import Gpu

V2 = "0::/slice/box\n"
V1 = "4:memory:/box\n3:cpu,cpuacct:/box\n0::/\n"
MACHINES = {
    "no groups": {},
    "version 2": {"proc/self/cgroup": V2, "sys/fs/cgroup/slice/box/cpu.max": "50000 100000\n"},
    "version 2, of the group above": {
        "proc/self/cgroup": V2,
        "sys/fs/cgroup/slice/box/cpu.max": "max 100000\n",
        "sys/fs/cgroup/slice/cpu.max": "150000 100000\n",
    },
    "version 2, the least": {
        "proc/self/cgroup": V2,
        "sys/fs/cgroup/slice/box/cpu.max": "400000 100000\n",
        "sys/fs/cgroup/cpu.max": "33333 100000\n",
    },
    "version 2, seen from inside": {
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cpu.max": "100000 100000\n",
    },
    "version 2, a group outside": {
        "proc/self/cgroup": "0::/../other\n",
        "sys/fs/cgroup/cpu.max": "120000 100000\n",
    },
    "version 2, no limit": {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "max 100000\n"},
    "version 1": {
        "proc/self/cgroup": V1,
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_quota_us": "120000\n",
        "sys/fs/cgroup/cpu,cpuacct/box/cpu.cfs_period_us": "100000\n",
    },
    "version 1, by its own name": {
        "proc/self/cgroup": V1,
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "70000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "50000\n",
    },
    "version 1, no limit": {
        "proc/self/cgroup": V1,
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
    },
    "nonsense": {"proc/self/cgroup": "0\n::\nx:cpu\n" + V2, "sys/fs/cgroup/cpu.max": "1 0\n"},
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_containers_share_of_the_processor(internals, tmp_path, monkeypatch, name):
    for file, text in MACHINES[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(processor, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(processor, "_CGROUP", tmp_path / "sys" / "fs" / "cgroup")
    internals.test_cpu_quota.restype = ctypes.c_double
    root = str(tmp_path).encode()
    assert internals.test_cpu_quota(root) == (processor.cpu_quota() or 0)
    assert internals.test_usable_cores(root) == processor.usable_cores()


# a driver with one GPU
DRIVER = """
#include <string.h>
int cuInit(unsigned flags) { return flags; }
int cuDeviceGet(int *found, int device) { *found = device; return device == 0 ? 0 : 101; }
int cuDeviceGetName(char *name, int room, int device) {
    strncpy(name, "NVIDIA H200 MIG 1g.18gb", room);
    return device;
}
int cuDeviceTotalMem_v2(unsigned long *found, int device) { *found = 16ul << 30; return device; }
int cuDeviceGetAttribute(int *found, int what, int device) {
    *found = what == 16 ? 16 : what == 75 ? 9 : what == 76 ? 0 : -1;
    return device;
}
"""
ASKED = """
import ctypes, sys
key = ctypes.create_string_buffer(1000)
ctypes.CDLL(sys.argv[1]).test_gpu_key(int(sys.argv[2]), key)
print(key.value.decode())
"""


def test_an_engine_is_kept_under_its_gpu_as_pythons_are(cpp_build, tmp_path):
    (tmp_path / "driver.c").write_text(DRIVER)
    run("gcc", "-shared", "-fPIC", tmp_path / "driver.c", "-o", tmp_path / "libcuda.so.1")
    library = cpp_build / "tests" / "libris_internals.so"

    def key(device):
        asked = (sys.executable, "-c", ASKED, library, device)
        return run("env", f"LD_LIBRARY_PATH={tmp_path}", *asked).strip()

    assert key(0) == Gpu("NVIDIA H200 MIG 1g.18gb", (9, 0), 16, 16 << 30).key
    assert key(1) == ""


def key_of(internals) -> str:
    """libris's key in hexadecimal; empty where it refuses."""
    text = ctypes.create_string_buffer(65)
    internals.test_user_key(text)
    return text.value.decode()


def folders_of(internals) -> list[str]:
    lines = ctypes.create_string_buffer(1 << 14)
    internals.test_state_folders(lines, ctypes.c_size_t(len(lines)))
    return lines.value.decode().splitlines()


@pytest.fixture
def no_folders(monkeypatch):
    """No variable names a folder or a key."""
    for name in ("RIS_PLAN_KEY", "XDG_STATE_HOME", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"HOME": "/nowhere"},
        {"HOME": ""},
        {"HOME": "/a", "XDG_STATE_HOME": "/b", "XDG_RUNTIME_DIR": "/c"},
        {"XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": ""},
    ],
)
def test_the_folders_for_the_key_are_pythons(internals, no_folders, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert folders_of(internals) == [str(folder) for folder in user_folders.state_folders()]


def test_one_key_for_libris_and_python(internals, no_folders, monkeypatch, tmp_path):
    for first in ("libris", "Python"):
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / first / "state"))
        sides = [lambda: key_of(internals), lambda: trust.user_key().secret.hex()]
        keys = [side() for side in (sides if first == "libris" else reversed(sides))]
        assert keys[0] == keys[1]
        assert len(keys[0]) == 64
        file = tmp_path / first / "state" / "ris-runtime" / "key"
        assert file.stat().st_mode & 0o777 == 0o600
        assert file.parent.stat().st_mode & 0o777 == 0o700
        assert [*file.parent.iterdir()] == [file]


def test_where_a_folder_will_not_have_the_key_the_next_one_does(
    internals, no_folders, monkeypatch, tmp_path
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    key = key_of(internals)
    assert (tmp_path / "run" / "ris-runtime" / "key").read_bytes().hex() == key
    # a key that others may read is none
    (tmp_path / "run" / "ris-runtime" / "key").chmod(0o644)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    other = key_of(internals)
    assert other != key
    assert (tmp_path / f"ris-runtime-{os.getuid()}" / "key").read_bytes().hex() == other


def test_a_key_that_is_named(internals, monkeypatch, tmp_path):
    file = tmp_path / "key"
    monkeypatch.setenv("RIS_PLAN_KEY", str(file))
    assert key_of(internals) == ""
    file.write_bytes(bytes(31))
    assert key_of(internals) == ""
    file.write_bytes(bytes(range(32)))
    assert key_of(internals) == bytes(range(32)).hex()
    file.chmod(0o666)
    assert key_of(internals) == ""


def test_callers_of_the_first_version_are_served_for_ever(internals):
    """Though a struct has grown by then: what they lack has its default, and is not written."""
    written = ctypes.c_size_t()
    first, grown = 16, 24
    for size, newer in ((first, 7), (first + 4, 0), (grown, 0), (grown + 8, 0)):
        got = internals.test_grown_struct(ctypes.c_size_t(size), ctypes.byref(written))
        assert got == newer
        assert written.value == min(size, grown)
    for size in (0, first - 1, 1 << 20):
        refused = internals.test_grown_struct(ctypes.c_size_t(size), ctypes.byref(written))
        assert refused == -1


def linked(bundle, folder):
    """The bundle as Hugging Face's cache lays it: each file is a link to one of another name."""
    (folder / "blobs").mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in bundle.rglob("*") if p.is_file())):
        blob = folder / "blobs" / str(number)
        shutil.copy(path, blob)
        place = folder / "snapshot" / path.relative_to(bundle)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(blob, place.parent))
    return folder / "snapshot"


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_fp16_bundle"])
def test_a_bundle_of_links(libris, request, picture, tmp_path, name):
    bundle = request.getfixturevalue(name)
    some = shutil.copytree(bundle, tmp_path / "some")
    data = some / "graphs" / "fusion.onnx.data"
    data.rename(tmp_path / "elsewhere")
    data.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder").symlink_to(bundle)
    answers = []
    for place in (bundle, linked(bundle, tmp_path / "hub"), some, tmp_path / "folder"):
        model = libris.open(place)
        scene = libris.encode_image(model, picture)
        answers.append(libris.ask(scene, ["left man"])[0]["logits"].tobytes())
        libris.check(libris.abi.ris_free_scene(scene))
        libris.check(libris.abi.ris_close(model))
    assert len(set(answers)) == 1


def test_nothing_leaves_the_machine(cpp_build, tiny_bundle, tmp_path):
    """No socket, and no file in the user's home, where ONNX Runtime keeps what it would send."""
    trace = tmp_path / "trace"
    strace = ["strace", "-f", "-e", "trace=%network", "-o", trace]
    watched = strace if shutil.which("strace") else []
    home = tmp_path / "home"
    home.mkdir()
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("ORT", "XDG"))
    }
    program = [cpp_build / "examples" / "ris-hello", tiny_bundle, "left man"]
    run(*watched, *program, env={**kept, "HOME": str(home)})
    assert not [*home.rglob("*")]
    if watched:
        assert "socket" not in trace.read_text()


@pytest.mark.parametrize("variables", [{}, {"HOME": "/proc/nowhere"}, {"LC_ALL": "tr_TR.UTF-8"}])
def test_it_needs_no_home_and_no_locale(cpp_build, tiny_bundle, variables):
    program = [cpp_build / "examples" / "ris-hello", tiny_bundle, "left man"]
    assert "score" in run(*program, env=variables)


def test_processes_and_threads(cpp_build, tiny_bundle):
    """A model is closed while eight threads ask, and children of fork() ask, close and end."""
    assert "all passed" in run(cpp_build / "tests" / "ris-processes", tiny_bundle)


def test_sanitizers_are_silent_about_processes(sanitized_build, tiny_bundle):
    assert "all passed" in run(sanitized_build / "tests" / "ris-processes", tiny_bundle)
