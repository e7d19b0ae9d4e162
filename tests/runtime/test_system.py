"""What a machine is, from made-up /proc files and nvidia-smi: x86, Arm, containers, nothing."""

from __future__ import annotations

import pytest

from ris.engines import processor
from ris.runtime import system

X86 = """processor\t: 0
model name\t: Some CPU @ 2.0GHz
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_tile

processor\t: 1
model name\t: Another
flags\t\t: fpu
"""
ARM = """processor\t: 0
Features\t: fp asimd asimdhp asimddp i8mm bf16
CPU implementer\t: 0x41
CPU part\t: 0xd4f
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Writes files below a made-up root."""
    monkeypatch.setattr(processor, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(processor, "_CGROUP", tmp_path / "cgroup")
    monkeypatch.setattr(system, "_MEMINFO", tmp_path / "proc" / "meminfo")
    monkeypatch.setattr("platform.processor", lambda: "")
    processor.cpu_features.cache_clear()

    def write(**files):
        for name, text in files.items():
            path = tmp_path / name.replace("__", "/").replace("_dot_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    yield write
    processor.cpu_features.cache_clear()


def test_an_x86_processor(machine):
    machine(proc__cpuinfo=X86)
    cpu = system.cpu()
    assert cpu.model == "Some CPU @ 2.0GHz"
    assert cpu.features == ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile")
    assert 1 <= cpu.usable <= cpu.present


def test_an_arm_processor(machine):
    machine(proc__cpuinfo=ARM)
    cpu = system.cpu()
    assert cpu.model == "Arm implementer 0x41 part 0xd4f"
    assert cpu.features == ("neon", "fp16", "dotprod", "bf16", "i8mm")


def test_no_proc_at_all(machine):
    assert system.cpu().model == "unknown"
    assert system.cpu().features == ()
    assert system.cpu().quota is None
    memory = system.memory()
    assert memory.limit is None
    assert memory.available is None
    assert memory.total is None or memory.total > 0


def test_a_version_2_container(machine):
    """The tightest limit of the process's group and those above it counts."""
    machine(
        proc__self__cgroup="0::/a/b\n",
        proc__meminfo="MemTotal:       16000 kB\nMemAvailable:    8000 kB\n",
        cgroup__a__b__cpu_dot_max="max 100000\n",
        cgroup__a__cpu_dot_max="150000 100000\n",
        cgroup__a__b__memory_dot_max="8192000\n",
        cgroup__a__memory_dot_max="max\n",
    )
    assert processor.cpu_quota() == 1.5
    assert system.memory() == system.Memory(16_384_000, 8_192_000, 8_192_000)


def test_a_version_1_container(machine):
    """Inside it the group's path is the host's, and the files lie at the root of the mount."""
    machine(
        proc__self__cgroup="4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n0::/\n",
        proc__meminfo="MemTotal:       16000 kB\n",
        cgroup__cpu__cpu_dot_cfs_quota_us="50000\n",
        cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
        cgroup__memory__memory_dot_limit_in_bytes="4096000\n",
    )
    assert processor.cpu_quota() == 0.5
    assert system.memory().limit == 4_096_000


def test_a_container_without_limits(machine):
    machine(
        proc__self__cgroup="4:memory:/\n3:cpu:/\n",
        proc__meminfo="MemTotal:       16000 kB\n",
        cgroup__cpu__cpu_dot_cfs_quota_us="-1\n",
        cgroup__cpu__cpu_dot_cfs_period_us="100000\n",
        cgroup__memory__memory_dot_limit_in_bytes="9223372036854771712\n",
    )
    assert processor.cpu_quota() is None
    assert processor.core_limit() is None
    assert system.memory().limit is None


@pytest.mark.parametrize(
    ("quota", "cores", "limit"),
    [("150000", 8, 2), ("200000", 8, 2), ("50000", 8, 1), ("800000", 8, None), ("max", 8, None)],
)
def test_threads_within_a_quota(machine, monkeypatch, quota, cores, limit):
    """Half a core of quota more is a thread more; a quota of all cores limits nothing."""
    monkeypatch.setattr(processor, "allowed_cores", lambda: cores)
    machine(proc__self__cgroup="0::/\n", cgroup__cpu_dot_max=f"{quota} 100000\n")
    assert processor.core_limit() == limit
    assert processor.usable_cores() == (limit or cores)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")

    def install(script):
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return install


def test_gpus(nvidia_smi):
    h200, t4 = "NVIDIA H200, 550.54.15, 143771, 9.0", "NVIDIA T4, 550.54.15, 15360, 7.5"
    nvidia_smi(f"echo '{h200}'; echo '{t4}'")
    found = system.gpus().found
    assert found[0] == system.Gpu("NVIDIA H200", "550.54.15", "143771", "9.0")
    assert found[1].compute_capability == "7.5"


def test_an_old_driver_knows_no_compute_capability(nvidia_smi):
    refuses = 'case "$1" in *compute_cap*) echo "not a valid field"; exit 2;; esac'
    nvidia_smi(f'{refuses}; echo "Tesla K80, 450.80, 11441"')
    assert system.gpus().found == (system.Gpu("Tesla K80", "450.80", "11441", None),)


@pytest.mark.parametrize(
    ("script", "note"),
    [
        (
            "echo 'NVIDIA-SMI has failed: no driver' >&2; exit 9",
            "nvidia-smi failed: NVIDIA-SMI has failed: no driver",
        ),
        ("exit 6", "nvidia-smi failed: exit code 6"),
        ("exit 0", "nvidia-smi lists none"),
        ("exec sleep 30", "nvidia-smi did not answer"),
    ],
)
def test_gpus_that_cannot_be_asked(nvidia_smi, script, note):
    nvidia_smi(script)
    gpus = system.gpus(timeout=1)
    assert gpus.found == ()
    assert note in gpus.note


def test_no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(system, "cuda_driver", lambda: False)
    assert system.gpus() == system.Gpus((), False, "no nvidia-smi and no driver library")


def test_versions_without_importing():
    assert set(system.versions(("numpy", "no-such-distribution"))) == {"numpy"}
    assert system.operating_system()["python"].startswith("CPython 3.")
