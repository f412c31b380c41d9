"""SIGKILL of the split form's workers and of its engine: who notices, and for how long."""

import math
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from loadtests.chaos.client import Connection, Hung, Lost
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Role, Running, await_ready, children_of, listens, logging_to, running
from loadtests.chaos.verdicts import Figure, Row
from loadtests.processes import ServerFailed
from loadtests.progress import say

KILLS = 100
KILLS_PER_LIFE = 3
CLIENTS = 16
ALLOWED = (200, 429, 502, 503, 504)
"""What a pending request may be answered. A worker's own connections may also close with it."""

RECOVERY_SECONDS = 1.0
HUNG_SECONDS = 10.0
SETTLED_SECONDS = 0.3
"""The service counts as recovered after this long without a failure."""

PATIENCE_SECONDS = 20.0
BACKOFF_SECONDS = 0.02
"""A client's, after a failure: clients without one would take the CPU time that the restart needs."""

NAMES: dict[Role, str] = {"worker": "a worker", "engine": "the engine"}


@dataclass(frozen=True)
class Event:
    """One request. outcome: its status; 0 if the connection closed or was refused, -1 if nothing came."""

    sent: float
    done: float
    outcome: int


def kills(context: Context) -> Iterator[Row]:
    """Kill the workers, then the engine."""
    if context.subject.split:
        yield kills_of(context, "worker")
        yield kills_of(context, "engine")


def kills_of(context: Context, role: Role) -> Row:
    """Kill one role's processes, one at a time."""
    count = context.count(KILLS, KILLS_PER_LIFE)
    events: list[Event] = []
    first: list[float] = []
    later: list[float] = []
    dead = 0
    for life in range(math.ceil(count / KILLS_PER_LIFE)):
        dead += _one_life(context, role, events, first, later)
        if life % 5 == 4:
            say(f"    {len(first) + len(later)} of {count} kills, slowest first recovery {max(first):.2f} s")
    outcomes = [event.outcome for event in events]
    figures: dict[str, Figure] = {
        "kills": len(first) + len(later),
        "requests": len(events),
        "answered with an error": sum(outcome > 200 for outcome in outcomes),
        "connections closed": outcomes.count(0),
        "other statuses": sum(outcome > 0 and outcome not in ALLOWED for outcome in outcomes),
        "hung": outcomes.count(-1),
        "slowest recovery of a first failure s": max(first),
        "of a later one s": max(later, default=0.0),
        "dead at the end": dead,
    }
    bars = {"hung": 0.0, "other statuses": 0, "slowest recovery of a first failure s": RECOVERY_SECONDS}
    bars["dead at the end"] = 0
    if role == "engine":  # the clients' connections are the workers'
        bars["connections closed"] = 0
    return Row(f"SIGKILL of {NAMES[role]}", context.subject.name, figures, bars)


def _one_life(
    context: Context, role: Role, events: list[Event], first: list[float], later: list[float]
) -> bool:
    """Start a service and kill some of its processes under load; return whether it is dead afterwards.

    A process that fails again soon is restarted after a growing delay, so first failures count apart.
    """
    with TemporaryDirectory() as folder, running(context.subject, prefix=logging_to(Path(folder))) as run:
        await_ready(Path(folder))
        supervisor = run.server.process.pid
        processes = processes_of(supervisor, role)
        sockets = min(map(_sockets, processes))
        load = _Load(run)
        with load:
            for number in range(KILLS_PER_LIFE):
                recovery = _one_kill(supervisor, load, role, sockets)
                (first if number < len(processes) else later).append(recovery)
        events += load.events()
        return not run.answers()


def _one_kill(supervisor: int, load: "_Load", role: Role, sockets: int) -> float:
    """Kill the oldest process of a role; return the seconds from the first failure to the last.

    sockets: how many a process of the role has once it is ready.
    """
    before = processes_of(supervisor, role)
    if not before:
        raise ServerFailed(f"no {role} runs {PATIENCE_SECONDS:g} s after it was killed")
    victim = min(before, key=lambda process: process.create_time())
    killed = time.monotonic()
    victim.kill()
    deadline = killed + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        now = time.monotonic()
        last = max((event.done for event in load.failures_since(killed)), default=killed)
        if now - last > SETTLED_SECONDS and _replaced(supervisor, role, before, sockets):
            break
        time.sleep(0.02)
    return recovery_seconds(load.failures_since(killed))


def recovery_seconds(failures: Sequence[Event]) -> float:
    """The time from the first failure to the end of the last one; 0 without failures."""
    done = [event.done for event in failures]
    return max(done) - min(done) if done else 0.0


def _replaced(supervisor: int, role: Role, before: Sequence[psutil.Process], sockets: int) -> bool:
    now = processes_of(supervisor, role)
    fresh = [process for process in now if process not in before]
    return len(now) == len(before) and bool(fresh) and all(_sockets(process) >= sockets for process in fresh)


def _sockets(process: psutil.Process) -> int:
    try:
        return len(process.net_connections("all"))
    except psutil.Error:  # it has exited
        return 0


def processes_of(supervisor: int, role: Role) -> list[psutil.Process]:
    """The supervisor's living children of a role, without a spare engine that waits."""
    children = children_of(supervisor, role)
    return children if role == "worker" else [child for child in children if listens(child)]


class _Load:
    """Clients that ask one after another, and reconnect, until the block ends."""

    def __init__(self, run: Running) -> None:
        self._run = run
        self._ended = threading.Event()
        self._events: list[Event] = []
        self._failures: list[Event] = []
        self._pool = ThreadPoolExecutor(CLIENTS)

    def __enter__(self) -> "_Load":
        request = self._run.subject.request(1)
        self._clients = [self._pool.submit(self._client, request) for _ in range(CLIENTS)]
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._pool.shutdown()

    def events(self) -> list[Event]:
        """Return every request, after the block."""
        for client in self._clients:
            client.result()
        return self._events

    def failures_since(self, when: float) -> list[Event]:
        """The requests that failed at this time or later."""
        return [event for event in self._failures if event.done >= when]

    def _client(self, request: bytes) -> None:
        connection: Connection | None = None
        while not self._ended.is_set():
            sent = time.monotonic()
            keep, outcome = False, 0
            try:
                connection = connection or Connection(self._run.port, HUNG_SECONDS)
                answer = connection.ask(request)
                keep, outcome = not answer.close, answer.status
            except Hung:
                outcome = -1
            except (Lost, OSError):
                outcome = 0
            event = Event(sent, time.monotonic(), outcome)
            self._events.append(event)
            if outcome != 200:
                self._failures.append(event)
                time.sleep(BACKOFF_SECONDS)
            if not keep and connection is not None:
                connection.close()
                connection = None
        if connection is not None:
            connection.close()
