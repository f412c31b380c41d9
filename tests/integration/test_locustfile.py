"""The load test against the real service: correct responses pass, a wrong one fails the run."""

import csv
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from loadtests.processes import free_port
from tests.support.live import serving
from tests.support.models import add_reader

ROOT = Path(__file__).parents[2]
MODELS = ROOT / "models"
LOCUSTS_OWN_PORT = 5557
SHORT = ("--rate", "40", "--seconds", "4")


def load(models_dir: Path, reports: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loadtests.load", "--models-dir", str(models_dir)]
    command += ["--reports", str(reports), *SHORT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def counts(reports: Path) -> dict[str, tuple[int, int]]:
    """Requests and failures by name."""
    with (reports / "load_stats.csv").open() as file:
        rows: Sequence[dict[str, str]] = list(csv.DictReader(file))
    return {row["Name"]: (int(row["Request Count"]), int(row["Failure Count"])) for row in rows}


@dataclass(frozen=True)
class Distributed:
    """A master and two workers of locust, each a process started by itself, as on three machines."""

    master: "subprocess.Popen[str]"
    workers: list["subprocess.Popen[str]"]

    def codes(self) -> list[int]:
        """Exit codes, the master's first."""
        return [process.wait(timeout=60) for process in (self.master, *self.workers)]


@contextmanager
def distributed(host: str, reports: Path, *arguments: str) -> Iterator[Distributed]:
    locust = [sys.executable, "-m", "locust", "--locustfile", "loadtests/locustfile.py"]
    port = str(free_port())
    flags = ["--master", "--master-bind-host", "127.0.0.1", "--master-bind-port", port, "--headless"]
    flags += ["--expect-workers", "2", "--expect-workers-max-wait", "60", "--host", host]
    flags += ["--html", str(reports / "report.html"), "--csv", str(reports / "load"), *arguments]
    worker = [*locust, "--worker", "--master-host", "127.0.0.1", "--master-port", port]
    with (reports / "log").open("w") as log:
        master = subprocess.Popen([*locust, *flags], cwd=ROOT, stdout=log, stderr=log, text=True)
        workers = [subprocess.Popen(worker, cwd=ROOT, stderr=subprocess.DEVNULL, text=True) for _ in range(2)]
        try:
            yield Distributed(master, workers)
        finally:
            for process in (master, *workers):
                process.kill()
                process.wait()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


def answered(port: int) -> int:
    """The number of requests that the service itself has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
        text = response.read().decode()
    counted = re.findall(
        r'^inkserve_requests_total{.*route="/(?:classify|generate)".*} (.*)$', text, re.MULTILINE
    )
    return round(sum(map(float, counted)))


def test_a_master_counts_what_two_workers_send(
    tmp_path: Path, add_generator: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_reader(tmp_path)
    add_generator()
    reports = tmp_path_factory.mktemp("reports")
    with serving("--models-dir", str(tmp_path)) as service:
        url = f"http://127.0.0.1:{service.port}"
        with distributed(url, reports, "--stages", "ramp", "--rate", "80", "--seconds", "6") as run:
            assert run.codes() == [0, 0, 0], (reports / "log").read_text()
        sent, failed = counts(reports)["Aggregated"]
        assert answered(service.port) == sent > 100
        assert failed == 0
    log = (reports / "log").read_text()
    assert "2 workers connected" in log
    # The stages: more and more users, up to the rate, and none while the last reports arrive.
    *users, last = [int(number) for number in re.findall(r'All users spawned: {"Visitor": (\d+)}', log)]
    assert users == sorted(users)
    assert len(users) > 2
    assert (users[-1], last) == (16, 0)
    assert "<html" in (reports / "report.html").read_text()[:500]


def test_a_wrong_response_to_a_worker_fails_the_master(
    tmp_path: Path, add_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_classifier()
    reports = tmp_path_factory.mktemp("reports")
    with serving("--models-dir", str(tmp_path)) as service:
        url = f"http://127.0.0.1:{service.port}"
        with distributed(url, reports, *SHORT, "--mix", "raw=1") as run:
            assert run.codes()[0] == 1
    assert "labels are ['0'], expected [7]" in (reports / "load_failures.csv").read_text()


def test_a_lost_worker_fails_the_run(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    add_reader(tmp_path)
    reports = tmp_path_factory.mktemp("reports")
    with serving("--models-dir", str(tmp_path)) as service:
        url = f"http://127.0.0.1:{service.port}"
        options = ("--stages", "soak", "--rate", "40", "--seconds", "10", "--mix", "raw=1")
        with distributed(url, reports, *options) as run:
            wait_for(lambda: answered(service.port) > 0)
            run.workers[0].kill()
            assert run.codes() == [1, -9, 0]
    log = (reports / "log").read_text()
    assert "the run fails: workers became unresponsive" in log
    assert counts(reports)["Aggregated"][1] == 0


def test_shed_requests_count_separately_and_pass(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_reader(tmp_path)
    reports = tmp_path_factory.mktemp("reports")
    flags = ("--max-queue-rows", "64", "--max-request-rows", "64", "--max-batch-size", "1")
    with serving("--models-dir", str(tmp_path), *flags) as service:
        host = ("--host", f"http://127.0.0.1:{service.port}")
        run = load(tmp_path, reports, *host, "--stages", "soak", "--rate", "400", "--mix", "batch=1")
    assert run.returncode == 0, run.stdout + run.stderr
    requests, failures = counts(reports)["Aggregated"]
    assert 0 < failures < requests
    with (reports / "load_failures.csv").open() as file:
        assert all("shed: 429" in row["Error"] for row in csv.DictReader(file))


def test_a_run_that_serves_too_little_or_too_slowly_fails(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_reader(tmp_path)
    reports = tmp_path_factory.mktemp("reports")
    limits = ("--min-rate-share", "0.9", "--max-p99-ms", "0.5")  # no response over HTTP is this fast
    flags = ("--max-queue-rows", "64", "--max-request-rows", "64", "--max-batch-size", "1")
    with serving("--models-dir", str(tmp_path), *flags) as service:
        host = ("--host", f"http://127.0.0.1:{service.port}")
        overload = ("--stages", "soak", "--rate", "400", "--mix", "batch=1")
        run = load(tmp_path, reports, *host, *overload, *limits)
    assert run.returncode == 1, run.stdout + run.stderr
    (line,) = re.findall(r"the run fails: (.*)", run.stderr)
    requests, failures = counts(reports)["Aggregated"]
    served = re.escape(f"served {requests - failures} of the 1600 requests asked for, ")
    slow = r"the p99 response time is [1-9]\d* ms, expected at most 0\.5 ms"
    assert re.fullmatch(rf"{served}\d+%, and shed {failures}, expected at least 90%; {slow}", line)


def test_a_run_that_keeps_its_limits_passes(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The share is of what the stages ask for, which is less than the highest rate throughout."""
    add_reader(tmp_path)
    limits = ("--min-rate-share", "0.7", "--max-p99-ms", "10000", "--mix", "raw=1", "--workers", "0")
    run = load(tmp_path, tmp_path_factory.mktemp("reports"), "--stages", "spike", "--seconds", "6", *limits)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--min-rate-share", "90", "a fraction from 0 to 1"),
        ("--max-p99-ms", "-1", "milliseconds of at least 0"),
    ],
)
def test_an_invalid_limit_is_rejected(tmp_path: Path, flag: str, value: str, expected: str) -> None:
    run = load(tmp_path / "nothing", tmp_path, f"{flag}={value}")
    assert run.returncode == 2
    assert run.stderr.strip() == f"loadtests: argument {flag}: value is {value!r}, expected {expected}"


def test_a_mistake_in_the_load_test_itself_fails_the_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_reader(tmp_path)
    file = tmp_path_factory.mktemp("locustfile") / "locustfile.py"
    file.write_text(
        "from loadtests.locustfile import *\n"
        "def ask(self): raise RuntimeError('a mistake')\n"
        "Visitor.classify_png = ask\n"
    )
    with serving("--models-dir", str(tmp_path)) as service:
        command = [sys.executable, "-m", "locust", "--locustfile", str(file), "--headless", *SHORT]
        command += ["--host", f"http://127.0.0.1:{service.port}", "--mix", "raw=1,png=1"]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1, run.stderr
    assert "the run fails: 1 kind(s) of exception in the load test itself" in run.stderr


def test_correct_responses_to_two_processes_pass(
    tmp_path: Path, add_generator: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_reader(tmp_path)
    add_generator()
    reports = tmp_path_factory.mktemp("reports")
    with socket.socket() as taken:
        with suppress(OSError):  # another process has it, which serves as well
            taken.bind(("127.0.0.1", LOCUSTS_OWN_PORT))
            taken.listen()
        run = load(tmp_path, reports, "--mix", "raw=1,png=1,json=1,batch=1,generate=1")
    assert run.returncode == 0, run.stdout + run.stderr
    seen = counts(reports)
    assert seen.keys() == {
        "/classify raw",
        "/classify png",
        "/classify json",
        "/classify batch",
        "/generate",
        "Aggregated",
    }
    assert all(requests > 0 and failures == 0 for requests, failures in seen.values())
    assert "<html" in (reports / "report.html").read_text()[:500]
    # Two workers: the master itself sends nothing.
    assert run.stderr.count("Worker") >= 2


def test_a_wrong_response_is_counted_and_fails_the_run(
    tmp_path: Path, add_classifier: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> None:
    add_classifier()  # classifies every digit as 0, because its first pixel is 0
    reports = tmp_path_factory.mktemp("reports")
    run = load(tmp_path, reports, "--mix", "raw=1,batch=1", "--stages", "soak", "--workers", "0")
    assert run.returncode == 1, run.stdout + run.stderr
    requests, failures = counts(reports)["Aggregated"]
    assert 0.8 * requests < failures <= requests  # nine digits of ten
    assert "labels are ['0'], expected [7]" in (reports / "load_failures.csv").read_text()


def test_a_service_that_does_not_start_fails_the_run(tmp_path: Path) -> None:
    run = load(tmp_path / "nothing", tmp_path)
    assert run.returncode == 1
    assert "did not start" in run.stderr


def test_an_unknown_stage_is_rejected_before_anything_runs(tmp_path: Path) -> None:
    old = tmp_path / "report.html"
    old.write_text("the report of the last run")
    run = load(tmp_path / "nothing", tmp_path, "--stages", "wrong")  # a service would fail: it has no models
    assert run.returncode == 2
    message = "argument --stages: invalid choice: 'wrong' (choose from 'ramp', 'spike', 'soak')"
    assert run.stderr.strip() == f"loadtests: {message}"
    assert old.read_text() == "the report of the last run"


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("http://127.0.0.1:{port}", "nobody answers at http://127.0.0.1:{port}: "),
        ("127.0.0.1:{port}", "host is '127.0.0.1:{port}', expected for instance http://127.0.0.1:8000"),
    ],
)
def test_a_host_that_nobody_answers_at_is_named(tmp_path: Path, host: str, message: str) -> None:
    port = free_port()
    run = load(tmp_path, tmp_path, "--host", host.format(port=port))
    assert run.returncode == 1
    assert run.stderr.startswith(f"loadtests: {message.format(port=port)}")
    assert not list(tmp_path.iterdir())


def test_a_service_that_is_gone_is_called_no_response(tmp_path: Path) -> None:
    """Runs locust directly, which does not check the address first."""
    command = [sys.executable, "-m", "locust", "--locustfile", "loadtests/locustfile.py", "--headless"]
    command += ["--host", f"http://127.0.0.1:{free_port()}", "--rate", "20", "--seconds", "1"]
    command += ["--mix", "raw=1", "--csv", str(tmp_path / "load")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 1
    assert "the run fails" in run.stderr
    assert "no response: ConnectionRefusedError" in (tmp_path / "load_failures.csv").read_text()


@pytest.mark.skipif(
    not all((MODELS / name).is_dir() for name in ("mlp", "gan")), reason="models/ lacks a kind of model"
)
@pytest.mark.parametrize(
    "stages", ["spike", *(pytest.param(each, marks=pytest.mark.nightly) for each in ("ramp", "soak"))]
)
def test_the_shipped_models_answer_correctly(tmp_path: Path, stages: str) -> None:
    run = load(MODELS, tmp_path, "--stages", stages, "--workers", "0")
    assert run.returncode == 0, run.stdout + run.stderr


class Listener(ThreadingHTTPServer):
    """Rejects every request as overload, and records the Authorization headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Overloaded)
        self.authorizations: set[str | None] = set()


class Overloaded(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.authorizations.add(self.headers["authorization"])
        self.send_response(429)
        self.send_header("retry-after", "1")
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    "keys",
    [
        None,
        pytest.param(
            "# of the load test\n\n first-key-0123456789 \nsecond-key-0123456789\n", marks=pytest.mark.nightly
        ),
        "scraper:metrics:a-key-0123456789\nweb:infer:sha256=00\nshop : infer : first-key-0123456789\n",
    ],
)
def test_the_first_key_of_the_file_is_sent(tmp_path: Path, keys: str | None) -> None:
    flags = ["--mix", "raw=1,json=1,batch=1"]
    if keys is not None:
        (tmp_path / "keys").write_text(keys)
        flags += ["--api-keys-file", str(tmp_path / "keys")]
    with Listener() as listener:
        thread = threading.Thread(target=listener.serve_forever)
        thread.start()
        try:
            host = f"http://127.0.0.1:{listener.server_port}"
            load(tmp_path, tmp_path / "reports", "--host", host, *flags)
        finally:
            listener.shutdown()
            thread.join()
    assert listener.authorizations == {None if keys is None else "Bearer first-key-0123456789"}


@pytest.mark.parametrize(("text", "message"), [(None, "No such file"), ("# none\n", "holds no API key")])
def test_a_file_without_a_key_is_rejected(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "keys").write_text(text)
    run = load(tmp_path, tmp_path, "--host", "http://127.0.0.1:1", "--api-keys-file", str(tmp_path / "keys"))
    assert run.returncode == 2
    assert "argument --api-keys-file" in run.stderr
    assert message in run.stderr


@pytest.mark.parametrize("text", ["raw", "row=1", "raw=0", "raw=-1,png=2"])
def test_an_invalid_mix_is_rejected(text: str) -> None:
    # In a process of its own: importing locust replaces the standard library's sockets.
    command = [sys.executable, "-m", "locust", "--locustfile", "loadtests/locustfile.py", "--mix", text]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 2
    assert "argument --mix: mix" in run.stderr
