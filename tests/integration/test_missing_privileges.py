"""CI skips the image only for a reason that this script prints, so the script must find every reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / ".ci" / "missing_privileges.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")


def missing(*prefix: str) -> list[str]:
    command = [*prefix, sys.executable, str(SCRIPT)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


@pytest.mark.parametrize("name", ["sys_admin", "mknod"])
def test_a_dropped_capability_is_printed(name: str) -> None:
    root = os.geteuid() == 0
    named = missing("setpriv", f"--bounding-set=-{name}") if root else missing()
    assert f"CAP_{name.upper()}" in named
    assert not root or "CAP_CHOWN" not in named
