"""A half of the split form in a process of its own, which kills itself at a step that it is told.

    python -m tests.support.halves SOCKET MODELS_DIR

Each line of stdin has a half and a step: forks that half and writes its process id. The engine's half kills
itself only while the file `armed` exists next to the socket.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from service.models.tensors import Array
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.local import LocalPredictor
from service.serving.predictor import infer
from service.settings import Settings
from service.split.engine_client import EngineClient
from service.split.engine_server import EngineServer
from service.split.frames import Link
from service.split.shared_memory import PAGE_BYTES, OwnMemory, PeerMemory
from tests.support.requests import request_for

ROWS = 100
MEMORY_BYTES = 64 * PAGE_BYTES

Step = tuple[type, str, bool]
"""A method, and whether the process dies when the call is over; else it dies before."""

ENGINE_STEPS: dict[str, Step] = {
    "the memory is mapped": (PeerMemory, "__init__", True),
    "the request has come": (EngineServer, "_in_memory", False),
    "the rows are found": (PeerMemory, "body", True),
    "the rows are queued": (LocalPredictor, "submit", True),
    "the batch begins": (Engine, "begin", False),
    "the batch runs": (Engine, "begin", True),
    "the batch has run": (EngineServer, "_answer", False),
    "the answer is sent": (EngineServer, "_answer", True),
    "the rows are released": (EngineServer, "_release", True),
}

WORKER_STEPS: dict[str, Step] = {
    "the memory is offered": (EngineClient, "_offer_memory", True),
    "the engine accepts": (EngineClient, "frame_received", True),
    "the rows are written": (OwnMemory, "place", True),
    "the request is sent": (EngineClient, "_send_rest", True),
    "the answer comes": (EngineClient, "_settle", False),
    "the rows are released": (OwnMemory, "release", False),
}


def images(first_pixel: int) -> dict[str, Array]:
    """Return the inputs of a large request whose rows all have this label."""
    batch = np.zeros((ROWS, 28, 28), np.uint8)
    batch[:, 0, 0] = first_pixel
    return {"images": batch}


def shared() -> tuple[int, int]:
    """Return how many descriptors this process has open, and how many mappings of shared memory."""
    maps = Path("/proc/self/maps").read_text().splitlines()
    return len(list(Path("/proc/self/fd").iterdir())), sum("memfd:inkserve" in line for line in maps)


def armed_file(path: Path) -> Path:
    """Return the file that arms the engine behind a socket."""
    return path.with_name("armed")


async def run_engine(path: Path, models_dir: Path, step: str) -> None:
    """Serve until the step."""
    settings = Settings(models_dir=models_dir, max_batch_size=16)
    predictor = LocalPredictor(settings, Metrics())
    await predictor.start()
    _die_at(ENGINE_STEPS[step], armed_file(path).exists)
    await EngineServer(predictor, settings.max_request_rows, list).start(path)
    await asyncio.Event().wait()


async def run_worker(path: Path, step: str) -> None:
    """Ask one large request after another until the step."""
    if step in WORKER_STEPS:
        _die_at(WORKER_STEPS[step], lambda: True)
    client = EngineClient(path, memory_bytes=MEMORY_BYTES)
    await client.connected()
    while True:
        await infer(client, request_for("first-pixel", None, images(1)))


def _die_at(step: Step, armed: Callable[[], bool]) -> None:
    kind, name, after = step
    method = getattr(kind, name)

    def wrapped(*arguments: Any, **more: Any) -> Any:
        if not after and armed():
            _die(arguments)
        result = method(*arguments, **more)
        if after and armed():
            _die(arguments)
        return result

    setattr(kind, name, wrapped)


def _die(arguments: tuple[object, ...]) -> None:
    """Kill this process, once what it has sent is written: at the end of this iteration it would be."""
    for link in arguments:
        if isinstance(link, Link):
            link.flush()
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Fork a half for each line."""
    path, models_dir = map(Path, sys.argv[1:])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        half, step = line.rstrip("\n").split(" ", 1)
        pid = os.fork()
        if not pid:
            asyncio.run(run_engine(path, models_dir, step) if half == "engine" else run_worker(path, step))
        print(pid, flush=True)


if __name__ == "__main__":
    main()
