"""Triton's own clients, for HTTP and gRPC, against the real service, in both of its forms."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support.live import ROOT, serving

PYTHON = ROOT / ".cache" / "clients" / "bin" / "python"
SCRIPT = Path(__file__).with_name("triton_client.py")
DIGITS = ROOT / "tests" / "digits" / "digits.raw"
REQUESTS = 13 + 72 + 2 + 2 + 8 + 200 + 15

pytestmark = pytest.mark.skipif(
    not PYTHON.exists() and not os.environ.get("CI"), reason="tritonclient is missing: make clients"
)


@pytest.mark.parametrize("flags", [[], ["--workers", "2"]], ids=["one process", "split"])
def test_every_request_of_tritons_clients_is_answered(flags: list[str]) -> None:
    with serving("--models-dir", str(ROOT / "models"), "--grpc-port", "0", *flags) as service:
        (address,) = re.findall(r"gRPC is ready at (\S+)", "".join(service.lines))
        done = subprocess.run(
            [PYTHON, SCRIPT, f"127.0.0.1:{service.port}", address, DIGITS],
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert (done.returncode, done.stdout) == (0, f"{REQUESTS}\n"), done.stderr
