#!/usr/bin/env python3
"""Print the privileges that .ci/image-check needs and this machine lacks, one per line, or nothing.

Checks the capabilities, then tries the calls that unprivileged containers forbid. Installs nothing and leaves
nothing behind. Raises every other OSError, so that no fault passes for a missing privilege.
"""

import ctypes
import os
import re
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

# From linux/capability.h: for Debian's files, devices and users; for chroot; for namespaces with a loopback.
CAPABILITIES = {
    "CAP_CHOWN": 0,
    "CAP_SETGID": 6,
    "CAP_SETUID": 7,
    "CAP_SETPCAP": 8,
    "CAP_NET_ADMIN": 12,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_ADMIN": 21,
    "CAP_MKNOD": 27,
}
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x8000000, 0x20000000, 0x40000000
MS_REC, MS_PRIVATE = 0x4000, 0x40000
LIBC = ctypes.CDLL(None, use_errno=True)


def missing_capabilities() -> list[str]:
    """Return the names of the capabilities that this process lacks."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    effective = int(found[1], 16)
    return [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]


def call(name: str, *arguments: object) -> None:
    """Call a function of libc. Raises OSError if it fails, PermissionError if it is forbidden."""
    if getattr(LIBC, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def refused_calls() -> list[str]:
    """Return the calls that seccomp, AppArmor or a user namespace forbids despite the capabilities."""
    with tempfile.TemporaryDirectory() as folder:
        target, device = os.fsencode(folder), Path(folder) / "null"
        calls: dict[str, Callable[[], None]] = {
            "unshare": lambda: call("unshare", CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET),
            "mount": lambda: call("mount", None, b"/", None, MS_REC | MS_PRIVATE, None),
            "mount of a tmpfs": lambda: call("mount", b"tmpfs", target, b"tmpfs", 0, None),
            "umount": lambda: call("umount2", target, 0),
            "mknod": lambda: os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 3)),
        }
        for name, attempt in calls.items():
            try:
                attempt()
            except PermissionError:
                return [f"{name}: refused"]
    return []


if __name__ == "__main__":
    for line in missing_capabilities() or refused_calls():
        print(line)
