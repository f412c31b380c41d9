"""Measure one server from start to stop: whether it is correct, how fast it is, and what it costs."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from loadtests import wrk
from loadtests.machine import ROOT
from loadtests.peers import wire
from loadtests.peers.contestants import Contestant, newest_graph
from loadtests.processes import Server, ServerFailed, free_port, serving

CONNECTIONS = (1, 16, 64, 256)
LARGE_ROWS = 256
LARGE_CONNECTIONS = 4
"""Enough to keep one large body queued while another is computed; more would only queue."""
WARM_UP_SECONDS = 1.0

Json = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """The options of every measurement in a run. threads: onnxruntime's, for one batch."""

    models_dir: Path
    seconds: float
    threads: int


def measure(contestant: Contestant, options: Options) -> Json:
    """Measure one server. Returns {"failed": the reason} instead of raising an error of the server."""
    try:
        contestant.install()
        return _measure(contestant, options)
    except Exception as error:  # the edge of one server: its failure is reported next to the others' results
        return {"failed": str(error) or repr(error)}


def measure_engine(options: Options) -> Json:
    """Measure onnxruntime alone, in a process of its own; results by batch size."""
    model = newest_graph(options.models_dir, "mlp")
    environment = {"MODEL": str(model), "THREADS": str(options.threads)}
    seconds = str(max(1.0, options.seconds / 2))
    output = _python("-m", "loadtests.peers.engine", seconds, environment=environment)
    result: Json = json.loads(output)
    return result


def import_seconds() -> float:
    """Seconds that Python takes to start and to import onnxruntime and fastapi: no server can be faster."""
    started = time.monotonic()
    _python("-c", "import fastapi, onnxruntime", environment={})
    return time.monotonic() - started


def _python(*arguments: str, environment: Mapping[str, str]) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout


def _measure(contestant: Contestant, options: Options) -> Json:
    port = free_port()
    command, environment = contestant.launch(port, options.models_dir, options.threads)
    examples = _Examples(contestant, port, options)
    with serving(
        command, examples.answered, directory=contestant.directory, environment=environment
    ) as server:
        examples.check()
        _load(server, contestant, port, 1, 64, WARM_UP_SECONDS)
        points = {
            str(connections): _load(server, contestant, port, 1, connections, options.seconds)
            for connections in CONNECTIONS
        }
        # inkserve cuts large batches for a second after the last small request.
        _load(server, contestant, port, LARGE_ROWS, LARGE_CONNECTIONS, WARM_UP_SECONDS)
        points["large"] = _load(server, contestant, port, LARGE_ROWS, LARGE_CONNECTIONS, options.seconds)
        memory = server.memory()
        examples.check()
    return {"cold_start_seconds": server.cold_start_seconds, "points": points, **asdict(memory)}


class _Examples:
    """Requests with known results, which onnxruntime gave in this process."""

    def __init__(self, contestant: Contestant, port: int, options: Options) -> None:
        self._contestant, self._port = contestant, port
        self._known = []
        if contestant.model:
            graph = newest_graph(options.models_dir, contestant.model)
            for rows in (1, 3, LARGE_ROWS):
                self._known.append((images_of(rows), right_answer(graph, images_of(rows))))

    def answered(self) -> bool:
        """Whether one image gets the correct response; without a model, whether it gets any."""
        if not self._known:
            return wire.ask(self._port, self._contestant.path, self._contestant.wire, images_of(1))[0] == 200
        return self._agrees(0)

    def check(self) -> None:
        """Raise ServerFailed unless bodies of every size get the correct response."""
        for index, (images, _) in enumerate(self._known):
            try:
                if not self._agrees(index):
                    raise ServerFailed(f"wrong response to a body of {len(images)} images")
            except OSError as error:
                raise ServerFailed(f"no response to a body of {len(images)} images: {error}") from error

    def _agrees(self, index: int) -> bool:
        images, expected = self._known[index]
        return wire.agrees(self._port, self._contestant.path, self._contestant.wire, images, expected)


def images_of(rows: int) -> wire.Images:
    """Random images with ink where digits have it: (rows, 28, 28)."""
    images = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
    images[:, :4] = images[:, -4:] = images[:, :, :4] = images[:, :, -4:] = 0
    return images


def right_answer(graph: Path, images: wire.Images) -> wire.Probabilities:
    """The probabilities that onnxruntime gives in this process: (rows, 10)."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    probabilities: wire.Probabilities = session.run(["probabilities"], {"images": images})[0]
    return probabilities


def _load(
    server: Server, contestant: Contestant, port: int, rows: int, connections: int, seconds: float
) -> Json:
    body, headers = contestant.wire.encode(images_of(rows))
    url = f"http://127.0.0.1:{port}{contestant.path}"
    cpu_before = server.cpu_seconds()
    load = wrk.post(url, body, headers, connections=connections, seconds=seconds)
    cpu_seconds = server.cpu_seconds() - cpu_before
    answered = max(1, load.requests)
    return {
        "requests_per_second": load.requests / load.seconds,
        "images_per_second": rows * load.requests / load.seconds,
        "p50_seconds": load.p50_seconds,
        "p99_seconds": load.p99_seconds,
        "max_seconds": load.max_seconds,
        "errors": load.errors,
        "cpu_seconds_per_request": cpu_seconds / answered,
        "client_cpu_seconds_per_request": load.client_cpu_seconds / answered,
    }
