"""wrk's script: without a body it must not report a rate, and each request may have another seed."""

import os
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests.wrk import SCRIPT, post

pytestmark = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is missing")


@pytest.mark.parametrize(
    ("body_file", "message"),
    [(None, "BODY_FILE is not set"), ("missing", "BODY_FILE cannot be read: ")],
)
def test_without_a_body_wrk_sends_nothing_and_fails(
    tmp_path: Path, body_file: str | None, message: str
) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "BODY_FILE"}
    if body_file is not None:
        environment["BODY_FILE"] = str(tmp_path / body_file)
    command = ["wrk", "-t1", "-c1", "-d1s", "-s", str(SCRIPT), "http://127.0.0.1:9/"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert f"post.lua: {message}" in run.stderr
    assert "requests" not in run.stdout.lower()


def test_each_request_has_another_seed_if_wanted() -> None:
    paths: list[str] = []

    class Recorder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            paths.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *_: object) -> None:
            pass  # wrk breaks off what is in flight at its end

    with Server(("127.0.0.1", 0), Recorder) as server:
        threading.Thread(target=server.serve_forever).start()
        url = f"http://127.0.0.1:{server.server_port}/generate?count=2"
        load = post(url, b"", {"Accept": "image/png"}, connections=2, seconds=1, seeded=True)
        server.shutdown()
    assert load.requests > 0
    assert load.errors == 0
    assert len(set(paths)) == len(paths) >= load.requests
    assert all(re.fullmatch(r"/generate\?count=2&seed=\d+", path) for path in paths)
