"""The servers under test: inkserve's forms and its peers, how they start and what they are asked."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import psutil

from loadtests.chaos import client
from loadtests.chaos.client import Connection, Hung, Lost
from loadtests.machine import ROOT, cores
from loadtests.peers import contestants, wire
from loadtests.peers.contestants import Contestant, newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.processes import Server, ServerFailed, free_port, serving

MODELS = ROOT / "models"
MODEL = "mlp"
LIVE = "/v2/health/live"
LOG = "log.txt"
Role = Literal["worker", "engine"]
SPARE_SECONDS = 60.0
IDLE_SECONDS = 0.2
"""A spare that sleeps, and took no CPU time for so long, has imported everything."""

ANSWER_SECONDS = 5.0
"""How long a correct response may take, when nothing troubles the server any more."""


@dataclass(frozen=True)
class Subject:
    """A server. live_path: what it answers without its model. ours: whether it is inkserve."""

    name: str
    contestant: Contestant
    live_path: str = LIVE
    ours: bool = False

    @property
    def split(self) -> bool:
        """Whether it is inkserve's split form."""
        return "--workers" in self.contestant.command

    def request(self, rows: int) -> bytes:
        """A request for so many images, whose response `correct` knows."""
        body, headers = self.contestant.wire.encode(images_of(rows))
        return client.request("POST", self.contestant.path, body, headers)

    @property
    def live(self) -> bytes:
        """A request that needs no model."""
        return client.request("GET", self.live_path)


FORMS = {
    "single": Subject("inkserve", contestants.inkserve("inkserve", "defaults"), ours=True),
    "split": Subject(
        "inkserve, --workers 2",
        contestants.inkserve("inkserve-split", "2 HTTP workers and an engine", ["--workers", "2"]),
        ours=True,
    ),
}
LIVE_PATHS = {"mosec": "/", "litserve": "/health", "bentoml": "/livez", "ray": "/-/healthz"}
PEERS = {
    contestant.name: Subject(contestant.name, contestant, LIVE_PATHS[contestant.name])
    for contestant in contestants.EVERY
    if contestant.name in LIVE_PATHS
}


@dataclass(frozen=True)
class Running:
    """A subject that runs."""

    subject: Subject
    server: Server
    port: int

    def answers(self) -> bool:
        """Whether it gives one image the correct response on a new connection."""
        return _correct(self.subject, self.port)


@contextmanager
def running(
    subject: Subject,
    *,
    models: Path | None = None,
    prefix: Sequence[str] = (),
    flags: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    ready: Callable[[int], bool] | None = None,
) -> Iterator[Running]:
    """Start a subject and stop it after the block.

    models: the folder of models; by default one with the model that is asked alone, for a quick start.
    prefix: a command that executes the server's. flags: for inkserve.
    ready: whether a port answers; by default one image must get the correct response.
    """
    with tempfile.TemporaryDirectory() as folder:
        if models is None and subject.ours:
            models = Path(folder)
            (models / MODEL).symlink_to(MODELS / MODEL)
        port = free_port()
        threads = max(1, cores() - 1)
        command, variables = subject.contestant.launch(port, models or MODELS, threads)
        with serving(
            [*prefix, *command, *flags],
            lambda: _correct(subject, port) if ready is None else ready(port),
            directory=subject.contestant.directory,
            environment={**variables, **(environment or {})},
        ) as server:
            if subject.split:
                _await_spare(server.process.pid)
            yield Running(subject, server, port)


def logging_to(folder: Path) -> list[str]:
    """The prefix of a server whose output goes to a file in this folder."""
    return ["sh", "-c", f'exec "$@" >{folder}/{LOG} 2>&1', "sh"]


def await_ready(folder: Path, seconds: float = 60.0) -> None:
    """Wait until inkserve has logged that all of its processes are ready. Raises TimeoutError."""
    deadline = time.monotonic() + seconds
    while "documentation at" not in (folder / LOG).read_text():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the service is not ready after {seconds:g} s: {(folder / LOG).read_text()}")
        time.sleep(0.02)


def _correct(subject: Subject, port: int) -> bool:
    contestant, images = subject.contestant, images_of(1)
    try:
        _, seen = wire.ask(port, contestant.path, contestant.wire, images, ANSWER_SECONDS)
    except (OSError, ValueError, KeyError):
        return False
    return seen is not None and seen.shape == (1, 10) and np.allclose(seen, _expected(), atol=wire.TOLERANCE)


@cache
def _expected() -> wire.Probabilities:
    return right_answer(newest_graph(MODELS, MODEL), images_of(1))


def children_of(supervisor: int, role: Role) -> list[psutil.Process]:
    """The supervisor's living children of a role; a spare engine counts as one."""
    found = []
    for process in psutil.Process(supervisor).children():
        with contextlib.suppress(psutil.Error):  # it has exited
            if role in process.cmdline()[:5] and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def listens(engine: psutil.Process) -> bool:
    """Whether an engine serves, which its spare does not."""
    try:
        return any(str(each.laddr).endswith("engine.sock") for each in engine.net_connections("unix"))
    except psutil.Error:  # it has exited
        return False


def _await_spare(supervisor: int) -> None:
    """Wait until a spare engine waits: the memory that it takes is not the load's."""
    deadline = time.monotonic() + SPARE_SECONDS
    used = 0.0
    while time.monotonic() < deadline:
        spares = [engine for engine in children_of(supervisor, "engine") if not listens(engine)]
        with contextlib.suppress(psutil.Error):
            now = sum(spare.cpu_times().user for spare in spares)
            asleep = all(spare.status() == psutil.STATUS_SLEEPING for spare in spares)
            if asleep and now == used > 0:
                return
            used = now
        time.sleep(IDLE_SECONDS)
    raise ServerFailed(f"no spare engine waits after {SPARE_SECONDS:g} s")


def metrics_of(port: int) -> str:
    """The text of /metrics; empty if it cannot be read."""
    try:
        connection = Connection(port)
    except OSError:
        return ""
    try:
        return connection.ask(client.request("GET", "/metrics")).body.decode("utf-8", "replace")
    except (Lost, Hung, OSError):
        return ""
    finally:
        connection.close()
