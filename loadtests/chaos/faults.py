"""Faults around the service: disk full, output closed or unread, descriptors, clock, onnxruntime."""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from loadtests.chaos import broken_model
from loadtests.chaos.client import Connection, Hung, Lost, request
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import LOG, Running, Subject, await_ready, logging_to, running
from loadtests.chaos.verdicts import Figure, Row
from loadtests.peers.wire import OCTETS
from loadtests.processes import ServerFailed

BAD_REQUESTS = 3000
"""Each is worth a line in the log; two pipes' worth of lines."""

GRACE_SECONDS = 15.0
DESCRIPTORS = 64
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
JUMPS = ("+2h", "-2h", "+0", "+30d")
MATES = 15


def faults(context: Context) -> Iterator[Row]:
    """Inject one fault at a time."""
    subject = context.subject
    yield output(context, "Disk full", 'exec "$@" >/dev/full 2>/dev/full')
    yield output(context, "stdout and stderr closed", 'exec "$@" >&- 2>&-')
    yield output(context, "stderr that nobody reads", 'exec "$@" 2>"$PIPE"', unread=True)
    yield descriptors(subject)
    if FAKETIME.exists():
        yield _clock(subject)
    else:
        yield Row("Clock jumped", subject.name, {}, note="not run: libfaketime is missing")
    yield failing_batch(subject)


def _shell(script: str) -> list[str]:
    return ["sh", "-c", script, "sh"]


def output(context: Context, name: str, script: str, *, unread: bool = False) -> Row:
    """Take its output away, and let it log as much as a stranger can make it."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        environment = {}
        if unread:
            pipe = Path(folder) / "pipe"
            os.mkfifo(pipe)
            reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
            stack.callback(os.close, reader)
            environment = {"PIPE": str(pipe)}
        return _served(context, name, _shell(script), environment)


def _served(context: Context, name: str, prefix: Sequence[str], environment: Mapping[str, str]) -> Row:
    figures: dict[str, Figure] = dict.fromkeys(("wrong", "hung", "exit other than 0", "stop s"))
    note = ""
    try:
        with running(context.subject, prefix=prefix, environment=environment) as run:
            figures["hung"] = _malform(run, context.count(BAD_REQUESTS, 1200))
            figures["wrong"] = int(not run.answers())
            figures["exit other than 0"], figures["stop s"] = _stop(run)
    except ServerFailed as error:
        note = f"did not start: {error}"[:120]
    bars = {"wrong": 0.0, "hung": 0, "exit other than 0": 0, "stop s": GRACE_SECONDS}
    return Row(name, context.subject.name, figures, bars, note)


def _malform(run: Running, count: int) -> int:
    """Send malformed requests; return how many got no response at all."""
    hung = 0
    for _ in range(count):
        try:
            connection = Connection(run.port, 5)
            with contextlib.closing(connection):
                connection.ask(b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n")
        except Hung:
            hung += 1
            if hung > 2:
                break
        except (Lost, OSError):
            continue
    return hung


def _stop(run: Running) -> tuple[int, float]:
    """End the server; return 1 unless it exits with 0 in time, and how long it took."""
    started = time.monotonic()
    run.server.process.send_signal(signal.SIGTERM)
    try:
        code = run.server.process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        code = -1
    return int(code != 0), time.monotonic() - started


def descriptors(subject: Subject) -> Row:
    """Let silent connections take every descriptor: old connections are served, and new ones once they go."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / LOG
        script = f'ulimit -n {DESCRIPTORS}; exec "$@" >{log} 2>&1'
        with running(subject, prefix=_shell(script)) as run:
            old = Connection(run.port, 5)
            old.ask(run.subject.request(1))
            silent: list[Connection] = []
            with contextlib.suppress(OSError):
                silent.extend(Connection(run.port, 2) for _ in range(8 * DESCRIPTORS))
            cpu = run.server.cpu_seconds()
            time.sleep(1)
            busy = run.server.cpu_seconds() - cpu
            old_fails = not _succeeds(old, run.subject.request(1))
            for connection in silent:
                connection.close()
            recovery = _seconds_until_it_answers(run)
            old.close()
            said = "descriptor" in log.read_text().lower() or "open files" in log.read_text().lower()
    figures: dict[str, Figure] = {
        "old connection failed": int(old_fails),
        "CPU share while exhausted": busy,
        "recovered after s": recovery,
        "not in the log": int(not said),
    }
    bars = {"old connection failed": 0.0, "CPU share while exhausted": 0.5, "recovered after s": 1.0}
    bars["not in the log"] = 0
    return Row("Descriptors exhausted", subject.name, figures, bars)


def _succeeds(connection: Connection, one: bytes) -> bool:
    try:
        return connection.ask(one).status == 200
    except (OSError, Lost, Hung):
        return False


def _seconds_until_it_answers(run: Running, most: float = 15.0) -> float | None:
    started = time.monotonic()
    while time.monotonic() - started < most:
        if run.answers():
            return time.monotonic() - started
        time.sleep(0.02)
    return None


def _clock(subject: Subject) -> Row:
    """Let the wall clock jump while requests with deadlines are sent; the monotonic clock goes on."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Path(folder) / "faketime"
        clock.write_text("+0")
        environment = {
            "LD_PRELOAD": str(FAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }
        with running(subject, environment=environment, prefix=logging_to(Path(folder))) as run:
            body = run.subject.request(1).replace(b"\r\n", b"\r\ninkserve-timeout: 2\r\n", 1)
            failed = asked = 0
            connection = Connection(run.port, 5)
            for jump in JUMPS:
                clock.write_text(jump)
                for _ in range(50):
                    asked += 1
                    failed += not _succeeds(connection, body)
            connection.close()
            wrong = int(not run.answers())
            bad_exit, stop_seconds = _stop(run)
        last = (Path(folder) / LOG).read_text()[-1000:]
    month_ahead = datetime.fromtimestamp(time.time() + 30 * 86400).strftime("%Y-%m-%d")
    figures: dict[str, Figure] = {
        "jumps": len(JUMPS),
        "jumps not seen": int(month_ahead not in last),
        "requests": asked,
        "failed": failed + wrong,
        "exit other than 0": bad_exit,
        "stop s": stop_seconds,
    }
    bars = {"jumps not seen": 0.0, "failed": 0, "exit other than 0": 0, "stop s": GRACE_SECONDS}
    return Row("Clock jumped", subject.name, figures, bars)


def failing_batch(subject: Subject) -> Row:
    """Send rows that make onnxruntime raise among rows that do not."""
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        broken_model.write(models)
        contestant = replace(subject.contestant, model="broken", path="/classify?model=broken")
        prefix = logging_to(Path(folder))
        broken = replace(subject, contestant=contestant)
        with running(broken, models=models, prefix=prefix, ready=_listens) as run:
            if run.subject.split:
                await_ready(Path(folder))
            statuses = [_one_batch(run.port) for _ in range(20)]
            after = _row_statuses(run.port, [broken_model.GOOD] * 8)
    mates = [status for batch in statuses for status in batch[1:]]
    figures: dict[str, Figure] = {
        "bad rows": len(statuses),
        "mates": len(mates),
        "mates failed": sum(status != 200 for status in mates),
        "unanswered": sum(status == 0 for batch in statuses for status in batch),
        "bad rows answered 200": sum(batch[0] == 200 for batch in statuses),
        "failures afterwards": sum(status != 200 for status in after),
    }
    bars = {"unanswered": 0.0, "bad rows answered 200": 0, "failures afterwards": 0}
    note = "the batch fails as a whole: its mates are answered 500 too" if figures["mates failed"] else ""
    return Row("onnxruntime raises in a batch", subject.name, figures, bars, note)


def _listens(port: int) -> bool:
    connection = Connection(port, 5)
    with contextlib.closing(connection):
        return _succeeds(connection, _row(broken_model.GOOD))


def _row(value: int) -> bytes:
    body = bytes([value]) * broken_model.PIXELS
    return request("POST", "/classify?model=broken", body, {"Content-Type": OCTETS})


def _one_batch(port: int) -> list[int]:
    """Send a bad row and its mates at once; return their statuses, 0 for none."""
    return _row_statuses(port, [broken_model.BAD] + [broken_model.GOOD] * MATES)


def _row_statuses(port: int, values: Sequence[int]) -> list[int]:
    with ThreadPoolExecutor(len(values)) as pool:
        connections = list(pool.map(lambda _: Connection(port, 5), values))
        return list(pool.map(_status, connections, map(_row, values)))


def _status(connection: Connection, one: bytes) -> int:
    try:
        with contextlib.closing(connection):
            return connection.ask(one).status
    except (OSError, Lost, Hung):
        return 0
