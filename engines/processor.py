"""What this process may use of the CPU: features, cores, and a container's share of their time.

The one place that reads /proc/cpuinfo and the control group's limits. Other systems than Linux get
an answer too: no features, all cores, no limit.
"""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

_PROC = Path("/proc")
_CGROUP = Path("/sys/fs/cgroup")


@functools.cache
def cpu_features() -> frozenset[str]:
    """What the CPU has, as Linux names it ("avx2", "asimd"); empty elsewhere."""
    found = cpu_fields()
    return frozenset(found.get("flags", "").split()) | frozenset(found.get("Features", "").split())


def has_vnni() -> bool:
    """Whether an x86 CPU is known to sum products of INT8 in 32 bits.

    Without these instructions they are summed in pairs of 16 bits, which 2·127·127 overflows
    (docs/reference/int8.md, Without VNNI).
    """
    return not cpu_features().isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def cpu_fields() -> dict[str, str]:
    """The first core's entry of /proc/cpuinfo by field; all cores are taken to be alike."""
    fields: dict[str, str] = {}
    for line in read(_PROC / "cpuinfo").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def allowed_cores() -> int:
    """The cores that this process may run on: its affinity, where the system has one."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def usable_cores() -> int:
    """How many threads keep busy what this process may use: its cores, or a container's share.

    A quota of 1.5 cores is two threads: one would leave a third of it unused.
    """
    return core_limit() or allowed_cores()


def core_limit() -> int | None:
    """The cores that a container's CPU quota leaves, None where it leaves all of them.

    Engines count cores on their own, but none of them sees a quota: with a thread for each core
    they would be stopped for most of every period.
    """
    quota = cpu_quota()
    if quota is None:
        return None
    cores = max(1, math.ceil(quota))
    return cores if cores < allowed_cores() else None


def cpu_quota() -> float | None:
    """Cores' worth of time that the control group may spend, None without a limit."""
    quotas = []
    # version 2: "quota period" or "max period"
    for text in cgroup_files("cpu", version_2="cpu.max"):
        quota, _, period = text.partition(" ")
        quotas.append(_ratio(quota, period))

    pairs = zip(
        cgroup_files("cpu", version_1="cpu.cfs_quota_us"),
        cgroup_files("cpu", version_1="cpu.cfs_period_us"),
        strict=False,
    )
    quotas += [_ratio(quota, period) for quota, period in pairs]
    return min((q for q in quotas if q), default=None)


def cgroup_files(
    controller: str, *, version_2: str | None = None, version_1: str | None = None
) -> list[str]:
    """A control file's contents in the process's own group and every group above it.

    version_2 and version_1: the file's name in that version of control groups, None to skip it.
    """
    contents = []
    for line in read(_PROC / "self" / "cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if number == "0" and version_2:
            root, name = _CGROUP, version_2
        elif controller in controllers.split(",") and version_1:
            root, name = _CGROUP / controllers, version_1
            if not root.is_dir():
                root = _CGROUP / controller
        else:
            continue

        path = root / group.lstrip("/")
        while True:
            contents.append(read(path / name).strip())
            if path == root or root not in path.parents:
                break
            path = path.parent
    return [text for text in contents if text]


def positive_integer(text: str) -> int | None:
    """A control file's whole number; "max" and -1 mean none."""
    return int(text) if text.strip().isdigit() else None


def read(path: Path) -> str:
    """A text file, empty where it is not there."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ratio(quota: str, period: str) -> float | None:
    a, b = positive_integer(quota), positive_integer(period)
    return math.ceil(a / b * 100) / 100 if a and b else None
