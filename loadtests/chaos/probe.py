"""One polite client in a process of its own, so that the trouble's own work does not delay it.

`python -m loadtests.chaos.probe PORT RATE keep|new`: the request comes on stdin after a line with its length.
At end-of-file the probe sends what was due by then, and prints its samples as JSON. Latencies count from the
time at which a request was due: a server that stalls delays all requests that were due meanwhile.
"""

import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from loadtests.chaos.client import Connection, Hung, Lost
from loadtests.chaos.verdicts import percentile
from loadtests.machine import ROOT

TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class Sample:
    """One request. due: on the machine's monotonic clock. ok: whether it was answered with 200."""

    due: float
    seconds: float
    ok: bool


@dataclass
class Probe:
    """A running probe, in the process that started it. samples: complete after `probing`'s block."""

    samples: list[Sample] = field(default_factory=list)

    def between(self, first: float, last: float) -> list[Sample]:
        """The requests that were due in this time."""
        return [sample for sample in self.samples if first <= sample.due < last]


def p99_ms(samples: Sequence[Sample]) -> float:
    """The 99th percentile of all, answered or not, in milliseconds."""
    return 1e3 * percentile([sample.seconds for sample in samples], 0.99)


def failures(samples: Sequence[Sample]) -> int:
    """How many were not answered with 200."""
    return sum(not sample.ok for sample in samples)


@contextmanager
def probing(port: int, request: bytes, rate: float, *, new_connections: bool = False) -> Iterator[Probe]:
    """Send a request at a rate per second until the block ends."""
    arguments = [str(port), str(rate), "new" if new_connections else "keep"]
    command = [sys.executable, "-m", "loadtests.chaos.probe", *arguments]
    probe = Probe()
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(b"%d\n%s" % (len(request), request))
            process.stdin.flush()
            process.stdout.readline()  # it has begun
            yield probe
            output, _ = process.communicate(timeout=3 * TIMEOUT_SECONDS)
            probe.samples.extend(Sample(*values) for values in json.loads(output))
        finally:
            process.kill()


def _run(port: int, rate: float, new_connections: bool, request: bytes) -> Iterator[Sample]:
    connection: Connection | None = None
    due = time.monotonic()
    ended: float | None = None
    while True:
        if ended is None and _ended(due):
            ended = time.monotonic()
        if ended is not None and due >= ended:
            return
        if ended is not None and time.monotonic() > ended + TIMEOUT_SECONDS:
            yield Sample(due, time.monotonic() - due, False)  # the service stalls: this one was never sent
            due += 1 / rate
            continue
        ok = False
        try:
            if connection is None:
                connection = Connection(port, TIMEOUT_SECONDS)
            answer = connection.ask(request)
            ok = answer.status == 200
        except (OSError, Lost, Hung):
            answer = None
        yield Sample(due, time.monotonic() - due, ok)
        if connection is not None and (new_connections or answer is None or answer.close):
            connection.close()
            connection = None
        due += 1 / rate


def _ended(until: float) -> bool:
    """Wait until this time; return whether stdin has ended meanwhile."""
    wait = max(0.0, until - time.monotonic())
    return bool(select.select([0], [], [], wait)[0])


def main(arguments: Sequence[str]) -> int:
    """Run the probe."""
    port, rate, connections = arguments
    length = b""
    while not length.endswith(b"\n"):  # unbuffered: what follows the request must stay for `select`
        length += os.read(0, 1)
    body = b""
    while len(body) < int(length):
        body += os.read(0, int(length) - len(body))
    print("begun", flush=True)
    samples = _run(int(port), float(rate), connections == "new", body)
    print(json.dumps([(sample.due, sample.seconds, sample.ok) for sample in samples]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
