"""The service split into processes: real ones, that get killed."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest

from tests.support.live import RAW, RAW_ANSWER, ROOT, Response, Service, connected, post_all, serving
from tests.support.models import IMAGES, PROBABILITIES, add_scored, first_pixel_classifier, write_model

GONE = (ConnectionError, asyncio.IncompleteReadError)
"""What a client sees whose worker is killed."""


def add_version(models_dir: Path, version: int) -> None:
    write_model(
        models_dir,
        first_pixel_classifier(),
        name="first-pixel",
        task="classification",
        inputs=(IMAGES,),
        outputs=(PROBABILITIES,),
        version=version,
    )


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    add_version(folder, 1)
    add_scored(folder, "scored")
    return folder


@pytest.fixture(scope="module")
def split(models_dir: Path) -> Iterator[Service]:
    """Two workers and an engine."""
    with serving("--workers", "2", "--models-dir", str(models_dir)) as service:
        yield service


@pytest.fixture(scope="module")
def patient(models_dir: Path) -> Iterator[Service]:
    """Two workers, and an engine that waits ten seconds for the second row of a batch."""
    waits = ("--max-batch-size", "2", "--max-batch-delay-seconds", "10")
    with serving("--workers", "2", "--models-dir", str(models_dir), *waits) as service:
        yield service


def children(service: Service) -> list[int]:
    """The service's processes but the supervisor, in the order of their start."""
    text = Path(f"/proc/{service.process.pid}/task/{service.process.pid}/children").read_text()
    return [int(pid) for pid in text.split()]


def processes(service: Service, command: str) -> list[int]:
    """Those that run a command."""
    return [pid for pid in children(service) if command_of(pid) == command]


def engine_of(service: Service) -> int:
    """The engine that serves; its spare has no socket with a path."""
    (engine,) = [pid for pid in processes(service, "engine") if has_path(psutil.Process(pid))]
    return engine


def has_path(process: psutil.Process) -> bool:
    """Whether one of its sockets has a path. While a process starts, it may have a pair without."""
    return any(each.laddr for each in process.net_connections("unix"))


async def spare_of(service: Service, engine: int) -> int:
    """The engine's spare, once it has imported everything."""
    spare = 0

    def waits() -> bool:
        nonlocal spare
        spare = next((pid for pid in processes(service, "engine") if pid != engine), 0)
        return spare > 0 and "onnxruntime" in Path(f"/proc/{spare}/maps").read_text()

    await until(waits)
    return spare


def command_of(pid: int) -> str:
    """What a process of the service does; empty once it has ended."""
    try:
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return arguments[3].decode() if len(arguments) > 3 else ""


def shared_mappings(pid: int) -> list[str]:
    """What a process may do with each memory that it shares."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if "memfd:inkserve-bodies" in line]


def image(first_pixel: int) -> bytes:
    return bytes([first_pixel]) + bytes(783)


async def ask(port: int, method: str, path: str, body: bytes = b"") -> Response:
    async with connected(port) as connection:
        return await connection.ask(method, path, body, RAW)


async def metric(port: int, name: str) -> float:
    """A metric summed over its labels."""
    text = (await ask(port, "GET", "/metrics")).body.decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(120):
        while not condition():
            await asyncio.sleep(0.02)


async def until_ready(port: int) -> None:
    async with asyncio.timeout(120):
        while (await ask(port, "GET", "/v2/health/ready")).status != 200:
            await asyncio.sleep(0.02)


async def until_ready_again(port: int) -> None:
    async with asyncio.timeout(60):
        while (await ask(port, "GET", "/v2/health/ready")).status != 503:
            pass
    await until_ready(port)
    async with asyncio.timeout(60):  # the other worker may hear of it a little later
        while (await ask(port, "POST", "/classify", image(1) * 2)).status != 200:
            await asyncio.sleep(0.02)


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Meanwhile the process does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)  # soon: one that is silent for 10 s is taken for hung


def test_only_the_engine_has_loaded_onnxruntime(split: Service) -> None:
    engine = engine_of(split)
    workers = processes(split, "worker")
    assert len(workers) == 2
    assert "onnxruntime" in Path(f"/proc/{engine}/maps").read_text()
    for pid in (split.process.pid, *workers):
        assert "onnxruntime" not in Path(f"/proc/{pid}/maps").read_text()


async def test_nobody_gets_anothers_answer_and_every_request_is_counted(split: Service) -> None:
    digits = [(7 * index) % 10 for index in range(2000)]
    name = r'inkserve_requests_total{model="first-pixel",route="/classify",status="200"}'
    bodies = [image(digit) + image(9 - digit) for digit in digits]
    before = await metric(split.port, re.escape(name))
    answers = await post_all(split.port, "/classify", bodies, RAW_ANSWER)
    for digit, answer in zip(digits, answers, strict=True):
        assert answer.status == 200
        probabilities = np.frombuffer(answer.body, "<f4").reshape(2, 10)
        assert probabilities.argmax(axis=1).tolist() == [digit, 9 - digit]
    assert await metric(split.port, re.escape(name)) == before + len(bodies)
    assert await metric(split.port, "inkserve_request_seconds_count") > len(bodies)
    assert await metric(split.port, "inkserve_rows_total") >= 2 * len(bodies)


async def test_a_model_abstains_and_is_counted_as_in_one_process(split: Service, models_dir: Path) -> None:
    async def told(port: int) -> tuple[bytes, float]:
        body = (await ask(port, "POST", "/classify?model=scored", image(9) + image(201))).body
        return body, await metric(port, "inkserve_abstained_total")

    before = await metric(split.port, "inkserve_abstained_total")
    body, abstained = await told(split.port)
    assert [each["abstain"] for each in json.loads(body)["predictions"]] == [False, True]
    assert abstained == before + 1
    with serving("--models-dir", str(models_dir)) as single:
        assert (await told(single.port)) == (body, 1)


async def test_large_bodies_get_their_own_answers_and_cross_in_shared_memory(split: Service) -> None:
    digits = [(7 * index) % 10 for index in range(100)]
    bodies = [image(digit) * 100 + image(9 - digit) * 100 for digit in digits]
    answers = await post_all(split.port, "/classify", bodies, RAW_ANSWER)
    for digit, answer in zip(digits, answers, strict=True):
        assert answer.status == 200
        probabilities = np.frombuffer(answer.body, "<f4").reshape(200, 10)
        assert probabilities.argmax(axis=1).tolist() == [digit] * 100 + [9 - digit] * 100
    assert shared_mappings(engine_of(split)) == ["r--s"] * 2  # nobody's but the workers'


async def test_metrics_have_the_names_of_one_process(split: Service, models_dir: Path) -> None:
    async def series(port: int) -> set[str]:
        await ask(port, "POST", "/classify", image(1))
        await ask(port, "GET", "/metrics")
        text = (await ask(port, "GET", "/metrics")).body.decode()
        return {
            re.sub(r"^(# HELP \S+ .*|# TYPE .*|.*?)( [^ ]*)?$", r"\1", line) for line in text.splitlines()
        }

    with serving("--models-dir", str(models_dir)) as single:
        missing = await series(single.port) - await series(split.port)
    assert not missing


async def test_a_killed_worker_is_replaced_and_its_counts_stay(split: Service) -> None:
    await post_all(split.port, "/classify", [image(1)] * 200, RAW)
    counted = await metric(split.port, "inkserve_requests_total")
    victim, _ = processes(split, "worker")
    os.kill(victim, signal.SIGKILL)
    async with asyncio.timeout(120):
        while victim in (workers := processes(split, "worker")) or len(workers) < 2:
            try:
                assert (await ask(split.port, "POST", "/classify", image(3))).status == 200
                again = await metric(split.port, "inkserve_requests_total")
            except GONE:
                continue
            assert again > counted
            counted = again
    answers = await post_all(split.port, "/classify", [image(1)] * 200, RAW)
    assert {answer.status for answer in answers} == {200}
    assert await metric(split.port, "inkserve_requests_total") >= counted + 200


async def test_sighup_reaches_every_worker(split: Service, models_dir: Path) -> None:
    async def until_served() -> None:
        body = b""
        async with asyncio.timeout(120), connected(split.port) as connection:
            while b'"version":2' not in body:
                body = (await connection.ask("GET", "/models/first-pixel")).body

    add_version(models_dir, 2)
    split.process.send_signal(signal.SIGHUP)
    await until_served()
    for worker in processes(split, "worker"):
        with stopped(worker):
            await until_served()  # by the other


async def test_a_batch_holds_rows_of_two_workers(patient: Service) -> None:
    first, second = processes(patient, "worker")
    with stopped(second):
        one = connected(patient.port)
        at_first = await one.__aenter__()
        assert (await at_first.ask("GET", "/v2/health/live")).status == 200
    with stopped(first):
        other = connected(patient.port)
        at_second = await other.__aenter__()
        assert (await at_second.ask("GET", "/v2/health/live")).status == 200
    answers = await asyncio.wait_for(
        asyncio.gather(
            at_first.ask("POST", "/classify", image(3), RAW_ANSWER),
            at_second.ask("POST", "/classify", image(4), RAW_ANSWER),
        ),
        timeout=9,
    )
    assert [int(np.frombuffer(answer.body, "<f4").argmax()) for answer in answers] == [3, 4]
    assert await metric(patient.port, 'inkserve_batches_total{.*reason="full".*}') == 1
    await one.__aexit__(None, None, None)
    await other.__aexit__(None, None, None)


async def test_the_load_is_that_of_all_processes(patient: Service) -> None:
    for name in ("requests_in_flight", "requests_queued", "requests_running"):
        assert await metric(patient.port, f"inkserve_{name}") == 0
    async with connected(patient.port) as leaving:
        await leaving.send("POST", "/classify", image(1), RAW)
        while await metric(patient.port, "inkserve_requests_queued") < 1:
            await asyncio.sleep(0.01)
        assert await metric(patient.port, "inkserve_requests_in_flight") == 1
    while await metric(patient.port, "inkserve_requests_in_flight") > 0:
        await asyncio.sleep(0.01)
    while await metric(patient.port, "inkserve_requests_queued") > 0:
        await asyncio.sleep(0.01)
    for part in ("http", "engine"):
        assert await metric(patient.port, f'inkserve_busy_seconds_total{{part="{part}"}}') > 0
    async with asyncio.timeout(30):  # the load needs two samples
        while not 0 < await metric(patient.port, "inkserve_load") <= 2:
            await asyncio.sleep(0.05)
        async with connected(
            patient.port
        ) as connection:  # a worker knows the load of all from the supervisor
            report = "application_utilization:0.001,"
            while "application_utilization:0.001," in report:
                asks = {"endpoint-load-metrics-format": "TEXT"}
                answer = await connection.ask("GET", "/v2/health/live", b"", asks)
                report = answer.headers["endpoint-load-metrics"]
                await asyncio.sleep(0.05)
        assert report.startswith("TEXT application_utilization:")


async def test_a_killed_engine_fails_what_waits_at_once_and_comes_back(patient: Service) -> None:
    rows = await metric(patient.port, "inkserve_rows_total")
    waiting = [asyncio.ensure_future(ask(patient.port, "POST", "/classify", image(1)))]
    while await metric(patient.port, "inkserve_rows_waiting") < 1:
        await asyncio.sleep(0.01)
    assert await metric(patient.port, "inkserve_requests_waiting") == 1
    engine = engine_of(patient)
    os.kill(engine, signal.SIGKILL)
    for answer in await asyncio.wait_for(asyncio.gather(*waiting), timeout=9):
        assert answer.status == 503
        assert answer.headers["retry-after"] == "1"
        assert b"the engine has exited" in answer.body
    async with asyncio.timeout(60):  # the other worker may hear of it a little later
        while (await ask(patient.port, "GET", "/v2/health/ready")).status != 503:
            pass
    assert (await ask(patient.port, "GET", "/v2/health/live")).status == 200
    assert await metric(patient.port, "inkserve_rows_total") >= rows
    await until_ready(patient.port)
    async with asyncio.timeout(60):
        while (await ask(patient.port, "POST", "/classify", image(1) * 2)).status != 200:
            await asyncio.sleep(0.02)
        while (
            await metric(patient.port, "inkserve_rows_total") <= rows
        ):  # the supervisor connects a little later
            await asyncio.sleep(0.02)


async def test_the_spare_takes_the_place_of_a_killed_engine_and_gets_a_spare(patient: Service) -> None:
    await until_ready(patient.port)
    for _ in range(2):
        engine = engine_of(patient)
        spare = await spare_of(patient, engine)
        os.kill(engine, signal.SIGKILL)
        await until_ready_again(patient.port)
        assert engine_of(patient) == spare


async def test_an_engine_comes_back_whose_spare_was_killed_first(patient: Service) -> None:
    await until_ready(patient.port)
    engine = engine_of(patient)
    spare = await spare_of(patient, engine)
    os.kill(spare, signal.SIGKILL)
    os.kill(engine, signal.SIGKILL)
    await until_ready_again(patient.port)
    assert engine_of(patient) not in (engine, spare)


async def test_when_the_supervisor_is_killed_nothing_is_left(patient: Service) -> None:
    await until_ready(patient.port)
    await spare_of(patient, engine_of(patient))
    pids = children(patient)
    assert len(pids) == 4
    patient.process.kill()
    await until(lambda: not any(command_of(pid) for pid in pids))


async def test_sigterm_answers_what_was_accepted_and_leaves_nothing(add_slow: Callable[[], Path]) -> None:
    drain = ("--drain-seconds", "0.5")
    with serving("--workers", "2", "--models-dir", str(add_slow()), *drain) as service:
        await spare_of(service, engine_of(service))
        pids = children(service)
        asking = [
            asyncio.ensure_future(ask(service.port, "POST", "/classify", bytes(784 * 20))) for _ in range(20)
        ]
        while await metric(service.port, "inkserve_batches_total") < 1:
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while (await ask(service.port, "GET", "/v2/health/ready")).status != 503:
                await asyncio.sleep(0.01)
        late = await ask(service.port, "POST", "/classify", bytes(784))
        assert late.status == 200
        assert {answer.status for answer in await asyncio.gather(*asking)} == {200}
        assert await asyncio.to_thread(service.process.wait, 120) == 0
    assert len(pids) == 4
    assert not any(command_of(pid) for pid in pids)


async def test_a_second_sigterm_ends_the_service_without_draining(models_dir: Path) -> None:
    with serving("--workers", "2", "--models-dir", str(models_dir), "--drain-seconds", "60") as service:
        await spare_of(service, engine_of(service))
        pids = children(service)
        service.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            while (await ask(service.port, "GET", "/v2/health/ready")).status != 503:
                await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(service.process.wait, 30)  # half of the time to drain
    assert len(pids) == 4
    assert not any(command_of(pid) for pid in pids)


async def test_the_halves_run_on_their_own_and_stop_together(models_dir: Path, tmp_path: Path) -> None:
    flags = ("--socket", str(tmp_path / "engine.sock"), "--models-dir", str(models_dir))
    command = [sys.executable, "-m", "service", "engine", *flags]
    engine = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    with serving("http", *flags) as http:
        assert (await ask(http.port, "POST", "/classify", image(5))).status == 200
        assert await metric(http.port, "inkserve_rows_total") == 1
        engine.send_signal(signal.SIGTERM)
        http.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(http.process.wait, 120) == 0
        assert await asyncio.wait_for(engine.wait(), 120) == 0


async def test_an_engine_stopped_first_answers_what_http_accepted(models_dir: Path, tmp_path: Path) -> None:
    waits = ("--max-batch-size", "2", "--max-batch-delay-seconds", "4")
    flags = ("--socket", str(tmp_path / "engine.sock"), "--models-dir", str(models_dir), *waits)
    command = [sys.executable, "-m", "service", "engine", *flags]
    engine = await asyncio.create_subprocess_exec(*command, cwd=ROOT)
    with serving("http", *flags) as http:
        asking = asyncio.ensure_future(ask(http.port, "POST", "/classify", image(5)))
        while await metric(http.port, "inkserve_rows_waiting") < 1:
            await asyncio.sleep(0.01)
        engine.send_signal(signal.SIGTERM)
        async with asyncio.timeout(60):
            while (await ask(http.port, "GET", "/v2/health/ready")).status != 503:
                await asyncio.sleep(0.01)
        http.process.send_signal(signal.SIGTERM)
        assert not asking.done()
        assert (await asking).status == 200
        assert await asyncio.to_thread(http.process.wait, 120) == 0
        assert await asyncio.wait_for(engine.wait(), 120) == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["serve", "--workers", "2", "--models-dir", "/nowhere"], 1, "models folder /nowhere is missing"),
        (["serve", "--workers", "2", "--host", "192.0.2.1"], 1, "192.0.2.1:0 cannot be listened on"),
        (["http"], 2, "socket is not set"),
        (["engine"], 2, "socket is not set"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_one_line(arguments: list[str], code: int, message: str) -> None:
    command = [sys.executable, "-m", "service", *arguments, "--port", "0"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == code
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
