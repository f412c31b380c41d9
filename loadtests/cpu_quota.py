"""CPU quotas of running processes, as Kubernetes sets them for containers: a cgroup each, version 1 or 2."""

import contextlib
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PERIOD_US = 10_000
"""Short, so that a quota is a slow core rather than pauses: at Kubernetes' 100 ms, a tenth of a core would
run for 10 ms and then stand still for 90."""

SHARES = 8192
"""The weight of the quotas' parent, 8 times the usual: other work here must not slow them further."""


class NoQuotas(Exception):
    """No cgroup with a CPU controller can be made here."""


@contextmanager
def quotas(cores_of: dict[int, float], root: Path = Path("/sys/fs/cgroup")) -> Iterator[None]:
    """Limit each process, by its id, to this many cores until the block ends. Raises NoQuotas.

    root: where the cgroups are mounted. Takes root's rights. The processes are back in `root` afterwards.
    """
    top = root / "cpu" if (root / "cpu").is_dir() else root
    with ExitStack() as made:
        try:
            _make(made, top, cores_of, v1=top != root)
        except OSError as error:
            raise NoQuotas(f"{top} takes no CPU quota: {error}") from error
        yield


def _make(made: ExitStack, top: Path, cores_of: dict[int, float], *, v1: bool) -> None:
    if not v1:
        (top / "cgroup.subtree_control").write_text("+cpu")
    parent = made.enter_context(_group(top / f"inkserve-{os.getpid()}"))
    (parent / ("cpu.shares" if v1 else "cpu.weight")).write_text(str(SHARES))
    if not v1:
        (parent / "cgroup.subtree_control").write_text("+cpu")
    for pid, cores in cores_of.items():
        group = made.enter_context(_group(parent / str(pid)))
        made.callback(_move, pid, top)
        _limit(group, cores, v1=v1)
        _move(pid, group)


def _limit(group: Path, cores: float, *, v1: bool) -> None:
    quota = str(round(cores * PERIOD_US))
    if v1:
        (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
        (group / "cpu.cfs_quota_us").write_text(quota)
    else:
        (group / "cpu.max").write_text(f"{quota} {PERIOD_US}")


def _move(pid: int, group: Path) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has exited
        (group / "cgroup.procs").write_text(str(pid))


@contextmanager
def _group(path: Path) -> Iterator[Path]:
    path.mkdir()
    try:
        yield path
    finally:
        for _ in range(50):  # the kernel takes a moment to see that it is empty
            with contextlib.suppress(OSError):
                path.rmdir()
                break
            time.sleep(0.02)
