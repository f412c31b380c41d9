"""What a stranger can make a connection take: time, memory, descriptors. All of it has a bound."""

import asyncio
import logging
import math
import re
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.http.fast.connections import Connections, Limits
from service.observability.metrics import Closing
from service.serving.local import LocalPredictor
from tests.support.held import Held
from tests.support.http import RAW, exchange, png, request
from tests.support.listener import Listener, listening
from tests.support.live import connected

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n\r\n"
PATHS = {
    "fast": request(RAW * 9),
    "asgi": request(png(7), kind="image/png"),
    "chunked": request(chunked=True),
}
TAKEN = [pytest.param(whole, id=name) for name, whole in PATHS.items()]


@pytest.fixture
async def listener(predictor: LocalPredictor, tmp_path: Path) -> AsyncIterator[Listener]:
    async with listening(
        predictor,
        tmp_path,
        head_timeout_seconds=0.2,
        send_timeout_seconds=0.2,
        request_timeout_seconds=0.4,
        max_connections=8,
        max_buffered_bytes=20_000,
        keep_alive_seconds=5.0,
    ) as listener:
        yield listener


async def until(condition: object) -> None:
    async with asyncio.timeout(10):
        while not condition():  # type: ignore[operator]
            await asyncio.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_a_body_that_does_not_come_is_given_up(listener: Listener, whole: bytes) -> None:
    async with connected(listener.port) as connection:
        response = await exchange(connection, whole[:-9])
        assert (response.status, response.headers["connection"]) == (408, "close")
        assert b"0.4 s" in response.body
        connection.writer.write(whole[-9:])
        assert await connection.reader.read() == b""
    assert listener.connections.closed["body_timeout"] == 1
    assert listener.counted(408) == 1
    assert listener.connections.buffered == 0


@pytest.mark.slow
@pytest.mark.parametrize("whole", TAKEN)
async def test_a_deadline_counts_from_the_first_byte(listener: Listener, whole: bytes) -> None:
    whole = whole.replace(b"Host: test", b"Host: test\r\ninkserve-timeout: 0.1", 1)
    async with connected(listener.port) as connection:
        assert (await exchange(connection, whole)).status == 200
        connection.writer.write(whole[:10])
        await asyncio.sleep(0.12)  # the head alone takes longer than the deadline
        assert (await exchange(connection, whole[10:])).status == 504
    async with connected(listener.port) as connection:
        assert (await exchange(connection, whole[:-9])).status == 504  # the rest never comes
    assert listener.counted(504) == 2


@pytest.mark.slow
async def test_a_head_that_does_not_end_is_given_up(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        for byte in b"GET / HTTP/1.1":
            connection.writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        response = await connection.receive()
        assert response.status == 408
        assert await connection.reader.read() == b""
    assert listener.connections.closed["head_timeout"] == 1


async def test_a_silent_connection_is_closed(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        assert await asyncio.wait_for(connection.reader.read(), 5) == b""


async def test_silent_connections_make_room_for_a_probe(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        kept = await enter(connected(listener.port))
        await exchange(kept, LIVE)
        silent = [await enter(connected(listener.port)) for _ in range(20)]
        probe = await enter(connected(listener.port))
        assert (await exchange(probe, LIVE)).status == 200
        assert (await exchange(kept, LIVE)).status == 200  # it has been served before, and is kept
        assert await asyncio.wait_for(silent[0].reader.read(), 5) == b""
    assert listener.connections.closed["evicted"] >= 10
    await until(lambda: "evicted" in caplog.text)
    assert caplog.text.count("connections closed") == 1


async def test_connections_in_use_are_not_evicted(listener: Listener, predictor: LocalPredictor) -> None:
    held = Held(predictor)
    async with AsyncExitStack() as stack:
        used = [await stack.enter_async_context(connected(listener.port)) for _ in range(8)]
        for connection in used:
            connection.writer.write(request())
        await held.holds(8)
        one_more = await stack.enter_async_context(connected(listener.port))
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await exchange(one_more, LIVE)
        held.let_go()
        assert [(await connection.receive()).status for connection in used] == [200] * 8
    assert listener.connections.closed["refused"] == 1


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png"])
async def test_announced_bytes_take_no_memory(listener: Listener, kind: str) -> None:
    head = request(b"", kind=kind).replace(b"Content-Length: 0", b"Content-Length: 64000")
    async with AsyncExitStack() as stack:
        for _ in range(8):
            connection = await stack.enter_async_context(connected(listener.port))
            connection.writer.write(head + bytes(100))
        await until(lambda: listener.connections.buffered == 800)
    await until(lambda: listener.connections.buffered == 0)


@pytest.mark.parametrize("kind", ["application/octet-stream", "image/png"])
async def test_all_bodies_together_have_a_bound(listener: Listener, kind: str) -> None:
    head = request(b"", kind=kind).replace(b"Content-Length: 0", b"Content-Length: 31360")
    async with AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(listener.port)) for _ in range(3)]
        for connection in connections[:2]:
            connection.writer.write(head)
            connection.writer.write(bytes(9000))
        await until(lambda: listener.connections.buffered == 18_000)
        response = await exchange(connections[2], head, bytes(9000))
        assert response.status in (429, 503)
        assert b"expected at most 20000" in response.body
        assert response.headers["connection"] == "close"
    await until(lambda: listener.connections.buffered == 0)


@pytest.mark.parametrize("whole", TAKEN)
@pytest.mark.parametrize("extra", [b"\r", b"GET", b"x" * 100_000])
async def test_a_disconnect_is_seen_behind_unread_bytes(
    listener: Listener, predictor: LocalPredictor, whole: bytes, extra: bytes
) -> None:
    held = Held(predictor)
    async with connected(listener.port) as connection:
        connection.writer.write(whole)
        await held.holds(1)
        connection.writer.write(extra)
        await connection.writer.drain()
        await asyncio.sleep(0.02)
    await until(lambda: held.cancelled == 1)
    await until(lambda: not listener.state.connections)
    assert listener.counted(499) == 1


@pytest.mark.slow
async def test_pipelined_requests_are_read_as_they_are_answered(listener: Listener) -> None:
    async with connected(listener.port) as connection:
        connection.writer.write(LIVE * 3000)
        for _ in range(3000):
            assert (await connection.receive()).status == 200
            held = [each for each in listener.state.connections if hasattr(each, "_early")]
            assert sum(len(data) for each in held for data in each._early) < 600_000
        assert (await exchange(connection, request())).status == 200


async def test_responses_that_nobody_reads_end_the_connection(listener: Listener) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.setblocking(False)
        await loop.sock_connect(client, ("127.0.0.1", listener.port))
        asking = b"GET /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n" * 1000
        sending = asyncio.ensure_future(loop.sock_sendall(client, asking))
        await until(lambda: listener.connections.closed["send_timeout"] == 1)
        await until(lambda: listener.connections.buffered == 0)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)


async def test_a_server_that_drains_closes_after_each_response(listener: Listener) -> None:
    listener.connections.draining = True
    for whole in (*PATHS.values(), LIVE, request(bytes(9)), b"GET /none HTTP/1.1\r\nHost: test\r\n\r\n"):
        async with connected(listener.port) as connection:
            assert (await exchange(connection, whole)).headers["connection"] == "close"
            assert await asyncio.wait_for(connection.reader.read(), 5) == b""


@pytest.mark.parametrize("path", ["/classify", "/none"])
async def test_a_client_that_sends_too_much_sees_why(listener: Listener, path: str) -> None:
    """The connection is not reset while the client still sends: it reads the response when it is done."""
    head = request(b"", path=path, kind="image/png")
    head = head.replace(b"Content-Length: 0", b"Content-Length: 8000000")
    async with connected(listener.port) as connection:
        for _ in range(100):
            connection.writer.write(head + bytes(80_000 - len(head)))
            head = b""
            await connection.writer.drain()
        response = await connection.receive()
        assert response.status in (404, 413)
        assert response.headers["connection"] == "close"


async def test_malformed_requests_are_counted_and_logged_seldom(
    listener: Listener, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(50):
        async with connected(listener.port) as connection:
            assert (await exchange(connection, b"nonsense\r\n\r\n")).status == 400
    labels = {"route": "malformed", "model": "", "status": "400"}
    assert listener.metrics.registry.get_sample_value("inkserve_requests_total", labels) == 50
    await until(lambda: caplog.text)
    assert len(re.findall("malformed", caplog.text)) <= 2


async def test_connections_are_forgotten(listener: Listener) -> None:
    for _ in range(20):
        async with connected(listener.port) as connection:
            await exchange(connection, request())
    await until(lambda: not listener.connections.open)
    assert not listener.connections.deaf
    assert not listener.state.tasks


MUCH_JSON = b" " * 40_000 + b"[]"
"""More than the event loop decodes at once."""


@pytest.mark.parametrize(
    ("whole", "route"),
    [
        (request(MUCH_JSON, kind="application/json"), "/classify"),
        (
            request(
                MUCH_JSON,
                path="/v2/models/first-pixel/infer",
                kind=None,
                extra=f"Inference-Header-Content-Length: {len(MUCH_JSON)}",
            ),
            "/v2/models/{name}/infer",
        ),
    ],
    ids=["pixels", "tensors"],
)
async def test_bodies_that_wait_to_be_decoded_are_bounded(
    predictor: LocalPredictor, tmp_path: Path, whole: bytes, route: str
) -> None:
    async with (
        listening(predictor, tmp_path, max_waiting_bytes=20_000) as listener,
        connected(listener.port) as large,
        connected(listener.port) as second,
    ):
        large.writer.write(whole[:30_000])  # may exceed the bound, because no other body does
        await until(lambda: listener.connections.buffered >= 25_000)
        response = await exchange(second, whole)
        assert (response.status, response.headers["retry-after"]) == (429, "1")
        assert b"waiting to be decoded" in response.body
        assert (await exchange(large, whole[30_000:])).status == 400
    assert listener.counted(429, route=route) == 1


@dataclass
class Peer:
    """A connection whose state a test chooses."""

    name: str
    idle_since: float | None
    served: bool
    unread: bool
    deadline: float = math.inf
    closed: bool = False
    in_flight: bool = False

    __hash__ = object.__hash__

    def expire(self, now: float) -> None:
        raise AssertionError(now)

    def fileno(self) -> int:
        return -1

    def has_bytes(self) -> bool:
        return self.unread

    def close_now(self, why: Closing) -> None:
        assert why == "evicted"
        self.closed = True

    def abandon(self) -> None:
        raise AssertionError(self.name)


PEERS = st.builds(
    Peer,
    name=st.just("peer"),
    idle_since=st.none() | st.floats(0, 10),
    served=st.booleans(),
    unread=st.booleans(),
)


@given(st.lists(PEERS, min_size=1, max_size=40))
async def test_room_is_made_by_the_connection_that_is_missed_least(peers: list[Peer]) -> None:
    connections = Connections(
        Limits(len(peers), 1, 1, math.inf, math.inf, math.inf, math.inf, 0), tick_seconds=1000
    )
    for peer in peers:
        assert connections.add(peer)
    quiet = [peer for peer in peers if peer.idle_since is not None and not peer.unread]
    there_is_room = connections.add(Peer("new", None, False, False))
    connections.stop()
    closed = [peer for peer in peers if peer.closed]
    assert there_is_room == bool(quiet)
    assert bool(closed) == bool(quiet)
    assert len(closed) <= max(1, len(peers) // 16)
    assert all(peer in quiet for peer in closed)
    for peer in closed:
        kept = [other for other in quiet if not other.closed]
        assert all((other.served, other.idle_since) >= (peer.served, peer.idle_since) for other in kept)
        assert peer.served == closed[0].served
