"""Closed-loop load by wrk: each connection has one request in flight at any time."""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("post.lua")
TIMEOUT_SECONDS = 10
MISSING = "wrk is missing; on Debian: apt-get install wrk"


class WrkMissing(Exception):
    """wrk is not installed on this machine."""


@dataclass(frozen=True)
class Load:
    """What wrk measured.

    requests: answered with a status below 400. errors: all others, whether rejected, broken off or not
    answered within 10 s. client_cpu_seconds: CPU time of wrk itself.
    """

    requests: int
    seconds: float
    p50_seconds: float
    p99_seconds: float
    max_seconds: float
    errors: int
    client_cpu_seconds: float


def is_missing() -> bool:
    """Whether wrk is not installed; then a line on stderr says so."""
    missing = shutil.which("wrk") is None
    if missing:
        print(f"loadtests: {MISSING}", file=sys.stderr)
    return missing


def post(
    url: str,
    body: bytes,
    headers: Mapping[str, str],
    *,
    connections: int,
    seconds: float,
    threads: int = 1,
    seeded: bool = False,
) -> Load:
    """POST the body over all connections for this many seconds, rounded. Raises WrkMissing.

    threads: wrk's, at most one a connection. One uses at most one core, and less than a tenth of it with slow
        servers.
    seeded: append another seed to the query of each request.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        raise WrkMissing(MISSING)
    with tempfile.NamedTemporaryFile() as file:
        file.write(body)
        file.flush()
        lines = "\n".join(f"{name}: {value}" for name, value in headers.items())
        command = [wrk, f"-t{min(threads, connections)}", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
        command += ["--timeout", f"{TIMEOUT_SECONDS}s", "-s", str(SCRIPT), url]
        seeds = {"SEEDED": "1"} if seeded else {}
        before = _children_cpu_seconds()
        run = subprocess.run(
            command,
            env={**os.environ, **seeds, "BODY_FILE": file.name, "HEADERS": lines},
            capture_output=True,
            text=True,
            check=True,
            timeout=seconds + 60,
        )
        client_cpu_seconds = _children_cpu_seconds() - before
    line = next(line for line in run.stdout.splitlines() if line.startswith("RESULT "))
    return _load(json.loads(line.removeprefix("RESULT ")), client_cpu_seconds)


def _load(seen: Mapping[str, float], client_cpu_seconds: float) -> Load:
    return Load(
        requests=int(seen["requests"] - seen["refused"]),
        seconds=seen["seconds"],
        p50_seconds=seen["p50"],
        p99_seconds=seen["p99"],
        max_seconds=seen["max"],
        errors=int(seen["failed"] + seen["refused"]),
        client_cpu_seconds=client_cpu_seconds,
    )


def _children_cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
