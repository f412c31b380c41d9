"""HAProxy in front of pods: its configuration, its process, and the weights that it has for them."""

import csv
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loadtests.processes import free_port, terminate

START_SECONDS = 10.0
STOP_SECONDS = 5.0

WEIGHT = 100
"""Of each server. An agent's percentage is taken of it and cut to a whole number: of HAProxy's default, 1,
any answer below 100 % would leave nothing."""

Algorithm = Literal["roundrobin", "leastconn"]


@dataclass(frozen=True)
class Backend:
    """One way to balance the pods. agents: whether their agent checks set the weights."""

    name: str
    algorithm: Algorithm
    agents: bool


@dataclass(frozen=True)
class Pod:
    """Ports of a pod on this machine."""

    port: int
    agent_port: int


class Haproxy:
    """A running HAProxy. ports: of the frontend of each backend, by its name."""

    def __init__(self, ports: dict[str, int], control: Path) -> None:
        self.ports = ports
        self._control = control

    def servers(self, backend: str) -> list[dict[str, str]]:
        """The rows of `show stat` for a backend's servers: `status`, `weight`, `check_status` and more."""
        text = self._ask(f"show stat {backend} 4 -1").removeprefix("# ")
        return list(csv.DictReader(text.splitlines()))

    def weights(self, backend: str) -> list[int]:
        """The current weight of each server."""
        return [int(row["weight"]) for row in self.servers(backend)]

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(f"{command}\n".encode("ascii"))
            return control.makefile("r").read()


def installed() -> str | None:
    """The path of HAProxy's program, or None."""
    return shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")


def version(program: str) -> str:
    """The first line of its version."""
    return subprocess.run([program, "-v"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


@contextmanager
def balancing(program: str, backends: Sequence[Backend], pods: Sequence[Pod]) -> Iterator[Haproxy]:
    """Run HAProxy over these pods, with a frontend for each backend, until the block ends."""
    with tempfile.TemporaryDirectory(prefix="inkserve-haproxy-") as folder:
        control = Path(folder) / "control"
        ports = {backend.name: free_port() for backend in backends}
        file = Path(folder) / "haproxy.cfg"
        file.write_text(configuration(backends, pods, ports, control))
        # It logs to stderr each server that goes down.
        process = subprocess.Popen(
            [program, "-db", "-f", str(file)], stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            haproxy = Haproxy(ports, control)
            _await_servers(haproxy, backends, process)
            yield haproxy
        finally:
            terminate(process, STOP_SECONDS)


def configuration(
    backends: Sequence[Backend], pods: Sequence[Pod], ports: dict[str, int], control: Path
) -> str:
    """HAProxy's configuration file."""
    lines = [
        "global",
        f"    stats socket {control}",
        "    nbthread 1",
        "defaults",
        "    mode http",
        "    http-reuse always",
        "    option httpchk GET /v2/health/ready",
        "    timeout connect 5s",
        "    timeout client 60s",
        "    timeout server 60s",
        "    timeout check 2s",
    ]
    for backend in backends:
        lines += [f"listen {backend.name}", f"    bind 127.0.0.1:{ports[backend.name]}"]
        lines += [f"    balance {backend.algorithm}"]
        for number, pod in enumerate(pods, 1):
            agent = f" agent-check agent-port {pod.agent_port} agent-inter 1s" if backend.agents else ""
            server = f"server pod{number} 127.0.0.1:{pod.port} weight {WEIGHT} check inter 1s"
            lines.append(f"    {server}{agent}")
    return "\n".join([*lines, ""])


def _await_servers(haproxy: Haproxy, backends: Sequence[Backend], process: "subprocess.Popen[bytes]") -> None:
    """Wait until every server has passed a health check."""
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and process.poll() is None:
        try:
            rows = [row for backend in backends for row in haproxy.servers(backend.name)]
        except OSError:  # it does not listen yet
            rows = []
        if rows and all(row["check_status"] == "L7OK" for row in rows):
            return
        time.sleep(0.05)
    raise RuntimeError("HAProxy did not start, or a pod did not pass its health check")
