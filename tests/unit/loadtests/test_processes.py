"""Servers under test, with real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest

from loadtests.peers.wire import RAW, ask
from loadtests.processes import ServerFailed, free_port, serving

DETACHED_CHILD = """
import http.server, subprocess, sys
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep, start_new_session=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.BaseHTTPRequestHandler).serve_forever()
"""


@pytest.mark.slow
def test_every_process_of_a_server_is_measured_and_stopped(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-c", DETACHED_CHILD, str(port)]

    def ready() -> bool:
        return ask(port, "/", RAW, np.zeros((1, 28, 28), np.uint8))[0] == 501  # the server supports no POST

    with serving(command, ready, directory=tmp_path, environment={}) as server:
        memory = server.memory()
        assert memory.processes == 2
        assert memory.rss_bytes > memory.pss_bytes > 0
        assert server.cpu_seconds() > 0
        assert server.cold_start_seconds > 0
        started = server.processes()
    assert len(started) == 2
    assert not any(process.is_running() for process in started)


def test_a_server_that_exits_early_is_reported_with_its_last_output(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such model')"]
    with (
        pytest.raises(ServerFailed, match="exited with code 1: no such model"),
        serving(command, lambda: False, directory=tmp_path, environment={}),
    ):
        pass


def test_a_server_that_never_answers_correctly_is_given_up(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    with (
        pytest.raises(ServerFailed, match=r"no correct response in 0\.2 s"),
        serving(command, lambda: False, directory=tmp_path, environment={}, start_seconds=0.2),
    ):
        pass


def test_sigterm_stops_the_servers_first(tmp_path: Path) -> None:
    script = f"""
import pathlib, sys
from loadtests.processes import end_servers_on_sigterm, serving
end_servers_on_sigterm()
command = [sys.executable, "-c", "import time; time.sleep(600)"]
with serving(command, lambda: True, directory=pathlib.Path({str(tmp_path)!r}), environment={{}}) as server:
    print(*(process.pid for process in server.processes()), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        server = psutil.Process(int(runner.stdout.readline()))
        runner.terminate()
        assert runner.wait(60) == 128 + signal.SIGTERM
    assert not server.is_running()
