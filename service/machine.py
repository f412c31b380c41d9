"""The CPU cores that this process may use."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

ROOT = Path("/")


class _Mount(NamedTuple):
    """A mounted cgroup hierarchy. group: the cgroup at its root. v2: the unified hierarchy."""

    group: PurePosixPath
    place: Path
    v2: bool


def available_cores(root: Path = ROOT) -> int:
    """Return the number of cores in the affinity mask, or fewer if a cgroup's CPU quota is lower.

    A quota limits all groups below it, so the tightest quota counts: this process's group's or an ancestor's.
    root: holds /proc and /sys.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(int(quota) for quota in _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """Yield the CPU quotas, in cores, of this process's cgroups and their visible ancestors."""
    memberships = _memberships(root)
    for mount in list(_mounts(root)) or _usual_mounts(root):
        group = memberships.get(mount.v2, PurePosixPath("/"))
        # In a container the path may be the host's, which the mount does not show: then only its root counts.
        inside = group.relative_to(mount.group) if group.is_relative_to(mount.group) else PurePosixPath()
        for path in (inside, *inside.parents):
            quota = _quota(mount.place / path, mount.v2)
            if quota is not None:
                yield quota


def _memberships(root: Path) -> dict[bool, PurePosixPath]:
    """Return this process's cgroup in the unified hierarchy (True), and in v1's CPU hierarchy (False)."""
    groups = {}
    for line in _lines(root / "proc/self/cgroup"):
        number, controllers, path = [*line.split(":", 2), "", ""][:3]
        group = PurePosixPath(os.path.normpath(path or "/"))
        if number == "0" and not controllers:
            groups[True] = group
        elif "cpu" in controllers.split(","):
            groups[False] = group
    return groups


def _mounts(root: Path) -> Iterator[_Mount]:
    """Yield the mounted cgroup hierarchies that may hold CPU quotas; see proc_pid_mountinfo(5)."""
    for line in _lines(root / "proc/self/mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if len(fields) < 5 or not kind:
            continue
        v2 = kind[0] == "cgroup2"
        if v2 or (kind[0] == "cgroup" and "cpu" in kind[-1].split(",")):
            yield _Mount(PurePosixPath(fields[3]), root / fields[4].lstrip("/"), v2)


def _usual_mounts(root: Path) -> list[_Mount]:
    """Return where the hierarchies usually lie, for a sandbox that hides its mounts."""
    place, top = root / "sys/fs/cgroup", PurePosixPath("/")
    return [
        _Mount(top, place, True),
        *(_Mount(top, place / name, False) for name in ("cpu", "cpu,cpuacct")),
    ]


def _quota(group: Path, v2: bool) -> float | None:
    """Return a group's quota in cores; None if it has none."""
    if v2:
        words = " ".join(_lines(group / "cpu.max")).split()
    else:
        words = [*_lines(group / "cpu.cfs_quota_us"), *_lines(group / "cpu.cfs_period_us")]
    try:
        quota, period = (int(word) for word in words)
    except ValueError:  # "max", or no such file
        return None
    return quota / period if quota > 0 and period > 0 else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return []
