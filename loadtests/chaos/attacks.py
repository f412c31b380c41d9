"""What a stranger can make the service use: memory, descriptors and time, without a key.

Each attack has a service of its own. Meanwhile a probe asks for its liveness fifty times per second, each
time on a new connection as the kubelet does. The peak of its memory is read from /proc.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from loadtests.chaos import payloads
from loadtests.chaos.client import Connection, Hung, Lost, request
from loadtests.chaos.payloads import MB
from loadtests.chaos.probe import failures, p99_ms, probing
from loadtests.chaos.proc import Resources
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import Running, Subject, running
from loadtests.chaos.verdicts import Figure, Row
from loadtests.peers.wire import JSON, OCTETS
from loadtests.progress import say

MOST_MB = 16.0
MOST_MS = 100.0
PROBES_PER_SECOND = 50.0
LEAST_SECONDS = 3.0
"""An attack lasts at least this long: it holds its connections, and the probe gets 150 samples."""

ATTACK_SECONDS = 20.0
DESCRIPTORS = 1024
"""The usual soft limit, which as many silent connections exhaust."""

DECODE_AT_ONCE = 8


@dataclass(frozen=True)
class Attack:
    """One attack. run: blocks; gets the server and the time by which it must end, on the monotonic clock.

    on_peers: whether it makes sense without inkserve's routes. descriptors: a limit for the server.
    """

    name: str
    run: Callable[[Running, float], None]
    on_peers: bool = False
    descriptors: int | None = None


def attacks(context: Context) -> Iterator[Row]:
    """Run every attack that applies to the subject."""
    for attack in ATTACKS:
        if context.subject.ours or attack.on_peers:
            yield _attack(context.subject, attack)
            say(f"    {attack.name}")


def _attack(subject: Subject, attack: Attack) -> Row:
    prefix = []
    if attack.descriptors is not None:
        prefix = ["sh", "-c", f'ulimit -n {attack.descriptors}; exec "$@"', "sh"]
    with running(subject, prefix=prefix) as run:
        _warm_up(run)
        resources = Resources(run.server.processes())
        with probing(run.port, subject.live, PROBES_PER_SECOND, new_connections=True) as probe:
            time.sleep(0.5)
            with resources.watching() as watch:
                started = time.monotonic()
                attack.run(run, started + ATTACK_SECONDS)
                time.sleep(max(0.0, started + LEAST_SECONDS - time.monotonic()))
                ended = time.monotonic()
        samples = probe.between(started, ended)
        alive = run.answers()
    figures: dict[str, Figure] = {
        "MB grown": max(0.0, watch.grown / MB),
        "/live p99 ms": p99_ms(samples),
        "/live failed": failures(samples),
        "s": ended - started,
        "processes died": watch.exited,
        "dead at the end": int(not alive),
    }
    bars = {
        "MB grown": MOST_MB,
        "/live p99 ms": MOST_MS,
        "/live failed": 0,
        "processes died": 0,
        "dead at the end": 0,
    }
    return Row(f"Attack: {attack.name}", subject.name, figures, bars)


def _warm_up(run: Running) -> None:
    """Send ordinary requests first: what they allocate once is not the attack's."""
    connection = Connection(run.port)
    for rows in (1, 64, 1):
        connection.ask(run.subject.request(rows))
    if run.subject.ours:
        for path in ("/openapi.json", "/models"):
            connection.ask(request("GET", path))
        connection.ask(_picture(payloads.large_png()))
        connection.ask(_post("/generate", JSON, b"{}"))
    connection.close()


def _post(path: str, kind: str, body: bytes) -> bytes:
    return request("POST", path, body, {"Content-Type": kind})


def _picture(content: bytes) -> bytes:
    return _post("/classify", "image/png", content)


def _until(deadline: float) -> float:
    return max(0.1, deadline - time.monotonic())


def _announced_bodies(run: Running, deadline: float) -> None:
    """Announce twenty bodies of 16 MiB, and send none."""
    path = run.subject.contestant.path
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {OCTETS}\r\nContent-Length: {16 * MB}\r\n\r\n"
    held = []
    for _ in range(20):
        connection = Connection(run.port, _until(deadline))
        held.append(connection)
        connection.socket.sendall(head.encode())
    time.sleep(LEAST_SECONDS)
    for connection in held:
        connection.close()


def _endless_head(first: bytes, piece: bytes, size: int, run: Running, deadline: float) -> None:
    """Send a head until the server objects, or until so many bytes are sent."""
    connection = Connection(run.port, _until(deadline))
    sent = 0
    with contextlib.suppress(OSError):
        connection.socket.sendall(first)
        while sent < size and time.monotonic() < deadline:
            connection.socket.sendall(piece)
            sent += len(piece)
        time.sleep(0.5)  # held a moment, as an attacker would
    connection.close()


def _pipelined(run: Running, deadline: float) -> None:
    """Send 30 MB of small requests on one connection, and read the responses."""
    live = run.subject.live
    _send_and_read(run.port, live * (MB // len(live)), 30, deadline, read=True)


def _unread(run: Running, deadline: float) -> None:
    """Ask for large responses on four connections, and read nothing."""
    page = request("GET", "/openapi.json") if run.subject.ours else run.subject.live
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(_send_and_read, run.port, page * 2000, 20, deadline, read=False)


def _send_and_read(port: int, piece: bytes, pieces: int, deadline: float, *, read: bool) -> None:
    connection = Connection(port, 3)
    reader = threading.Thread(target=_read_all, args=(connection.socket, deadline))
    if read:
        reader.start()
    with contextlib.suppress(OSError):
        for _ in range(pieces):
            connection.socket.sendall(piece)
            if time.monotonic() > deadline:
                break
        connection.socket.shutdown(socket.SHUT_WR)
    if read:
        reader.join()
    else:
        time.sleep(1)
    connection.close()


def _read_all(source: socket.socket, deadline: float) -> None:
    with contextlib.suppress(OSError):
        while time.monotonic() < deadline:
            if not source.recv(1 << 20):
                return


def _silent(run: Running, deadline: float) -> None:
    """Open as many connections as the server may have descriptors, and say nothing."""
    held: list[Connection] = []
    with contextlib.suppress(OSError):
        while len(held) < DESCRIPTORS and time.monotonic() < deadline:
            held.append(Connection(run.port, 2))
    time.sleep(LEAST_SECONDS)
    for connection in held:
        connection.close()


def _ask_all(requests: Sequence[bytes], at_once: int, run: Running, deadline: float) -> None:
    with ThreadPoolExecutor(at_once) as pool:
        for one in requests:
            pool.submit(_ask, run.port, one, deadline)


def _ask(port: int, one: bytes, deadline: float) -> None:
    if time.monotonic() > deadline:
        return
    with contextlib.suppress(OSError, Lost, Hung):
        connection = Connection(port, _until(deadline))
        with contextlib.closing(connection):
            connection.ask(one)


def _keys(run: Running, deadline: float) -> None:
    """Send 14 MB of unknown JSON keys."""
    _ask(run.port, _post("/generate", JSON, payloads.unknown_keys()), deadline)


def _lists(run: Running, deadline: float) -> None:
    """Send sixteen JSON bodies of nested lists at once."""
    body = _post("/classify", JSON, payloads.nested_lists())
    _ask_all([body] * 16, 16, run, deadline)


def _large_pngs(run: Running, deadline: float) -> None:
    """Send eighty small PNGs with many pixels, eight at a time."""
    _ask_all([_picture(payloads.large_png())] * 80, DECODE_AT_ONCE, run, deadline)


def _form(run: Running, deadline: float) -> None:
    """Send one form of a hundred such PNGs."""
    body, kind = payloads.form_of(100)
    _ask(run.port, _post("/classify", kind, body), deadline)


def _scans(run: Running, deadline: float) -> None:
    """Send a JPEG of a thousand scans, eight times at once."""
    _ask_all([_post("/classify", "image/jpeg", payloads.jpeg_of_scans())] * 8, 8, run, deadline)


HEAD = b"POST /classify HTTP/1.1\r\nHost: x\r\n"
HEADERS = b"".join(b"X-%d: v\r\n" % number for number in range(100_000))
ATTACKS = (
    Attack("announced bodies", _announced_bodies, on_peers=True),
    Attack("endless headers", partial(_endless_head, HEAD, HEADERS, 64 * MB), on_peers=True),
    Attack("endless header", partial(_endless_head, HEAD + b"X: ", b"a" * MB, 42 * MB), on_peers=True),
    Attack("endless path", partial(_endless_head, b"GET /", b"a" * 65536, 16 * MB), on_peers=True),
    Attack("pipelined requests", _pipelined, on_peers=True),
    Attack("responses that nobody reads", _unread, on_peers=True),
    Attack("silent connections", _silent, on_peers=True, descriptors=DESCRIPTORS),
    Attack("unknown JSON keys", _keys),
    Attack("nested JSON lists", _lists),
    Attack("80 PNGs of 4000 x 4000", _large_pngs),
    Attack("a form of 100 PNGs", _form),
    Attack("JPEGs of 1,000 scans", _scans),
)
