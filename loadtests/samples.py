"""What a service takes for a request under load, as several comparisons measure it."""

from collections.abc import Mapping
from dataclasses import dataclass

from loadtests import wrk
from loadtests.processes import Server, ServerFailed


@dataclass(frozen=True)
class Sample:
    """One slice of load. cpu_seconds: user and system time of the service per request."""

    cpu_seconds: float
    requests_per_second: float


def sample_of(
    server: Server, url: str, body: bytes, headers: Mapping[str, str], *, connections: int, seconds: float
) -> Sample:
    """Load a service with wrk. Raises ServerFailed unless every response is 200."""
    before = server.cpu_seconds()
    load = wrk.post(url, body, headers, connections=connections, seconds=seconds)
    cpu_seconds = server.cpu_seconds() - before
    if load.errors or not load.requests:
        raise ServerFailed(f"{load.errors} requests failed, {load.requests} were answered with 200")
    return Sample(cpu_seconds / load.requests, load.requests / load.seconds)
