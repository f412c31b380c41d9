"""An OCI registry on loopback, Debian's docker-registry."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.support.console import free_port

HAS_REGISTRY = shutil.which("docker-registry") is not None


@contextmanager
def registry_on_loopback(storage: Path) -> Iterator[str]:
    """Run a registry that keeps its data in `storage`, and yield its host and port."""
    address = f"127.0.0.1:{free_port()}"
    config = storage / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {storage}/data}}}}\n"
        f"http: {{addr: '{address}'}}\n"
    )
    with (storage / "log").open("wb") as log:
        process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)
    try:
        _wait_for(f"http://{address}/v2/", process)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx.get(url, trust_env=False).raise_for_status()
            return
        except httpx.TransportError:
            time.sleep(0.05)
    pytest.fail("the registry did not start")
