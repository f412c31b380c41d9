"""Connections with descriptors, over a real socket."""

import asyncio
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from service.errors import FrameError
from service.split import accepting
from service.split.accepting import FIRST_BYTES, Acceptor


class Peer(asyncio.Protocol):
    """Sends back what it gets, after its connection's first bytes."""

    def __init__(self, first: bytes) -> None:
        self._first = first
        self.lost: list[Exception | None] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._first)

    def data_received(self, data: bytes) -> None:
        self._transport.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


class Listener:
    """An acceptor. read: what was in the descriptors that came. peers: one of each connection."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.socket.setblocking(False)
        self.read: list[bytes] = []
        self.fds: list[int] = []
        self.peers: list[Peer] = []
        self.acceptor = Acceptor(self.socket, self.begin)

    def begin(self, first: bytes, fds: Sequence[int]) -> asyncio.Protocol:
        self.fds += fds
        self.read += [os.pread(fd, 100, 0) for fd in fds]
        if first == b"bad":
            raise FrameError("it is bad")
        self.peers.append(Peer(first))
        return self.peers[-1]

    def connect(self) -> "closing[socket.socket]":
        peer = socket.socket(socket.AF_UNIX)
        peer.connect(str(self.path))
        peer.setblocking(False)
        return closing(peer)


@pytest.fixture
async def listener(tmp_path: Path) -> AsyncIterator[Listener]:
    listener = Listener(tmp_path / "socket")
    yield listener
    await listener.acceptor.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "file").write_bytes(b"what it holds")
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    yield fd
    os.close(fd)


async def receive(peer: socket.socket, size: int = 100) -> bytes:
    return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(peer, size), 30)


async def test_the_first_bytes_and_their_descriptors_come_before_the_others(
    listener: Listener, file: int
) -> None:
    with listener.connect() as peer:
        socket.send_fds(peer, [b"first"], [file])
        peer.send(b", second")
        seen = b""
        while len(seen) < 13:
            seen += await receive(peer)
    assert seen == b"first, second"
    assert listener.read == [b"what it holds"]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*listener.fds)


async def test_long_first_bytes_are_read_on_by_the_protocol(listener: Listener) -> None:
    sent = os.urandom(3 * FIRST_BYTES)
    with listener.connect() as peer:
        sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(peer, sent))
        seen = b""
        while len(seen) < len(sent):
            seen += await receive(peer, 1 << 20)
        await sending
    assert seen == sent


async def test_a_refused_connection_is_closed_with_its_descriptors(
    listener: Listener, file: int, caplog: pytest.LogCaptureFixture
) -> None:
    with listener.connect() as peer:
        socket.send_fds(peer, [b"bad"], [file])
        assert await receive(peer) == b""
    assert "a connection between processes is closed: it is bad" in caplog.text
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(*listener.fds)


async def test_connections_that_say_nothing_hold_up_nobody(listener: Listener) -> None:
    with listener.connect() as silent, listener.connect() as leaving, listener.connect() as peer:
        leaving.close()
        peer.send(b"hello")
        assert await receive(peer) == b"hello"
        await listener.acceptor.close()
        assert await receive(silent) == b""
        peer.send(b"still here")
        assert await receive(peer) == b"still here"
        with socket.socket(socket.AF_UNIX) as late:
            assert late.connect_ex(str(listener.path)) == errno.ECONNREFUSED


async def test_without_descriptors_it_waits_and_accepts_later(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accepting, "PAUSE_SECONDS", 0.01)
    accept: Callable[..., object] = socket.socket.accept
    failing = [OSError(24, "Too many open files")] * 2

    def fail_first(self: socket.socket) -> object:
        if failing:
            raise failing.pop()
        return accept(self)

    monkeypatch.setattr(socket.socket, "accept", fail_first)
    with listener.connect() as peer:
        peer.send(b"hello")
        assert await receive(peer) == b"hello"
    assert caplog.text.count("no connection between processes can be accepted") == 2


async def test_a_connection_that_no_transport_can_be_made_of_is_closed_and_its_protocol_told(
    listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loop fails so if it is out of descriptors or memory: nothing may be kept for such a connection."""
    full = OSError(errno.ENOMEM, "Cannot allocate memory")

    async def fail(*_: object) -> None:
        raise full

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(loop, "connect_accepted_socket", fail, raising=False)
    with listener.connect() as peer:
        peer.send(b"hello")
        assert await receive(peer) == b""
    assert [lost for each in listener.peers for lost in each.lost] == [full]
    assert "a connection between processes is closed: [Errno 12] Cannot allocate memory" in caplog.text
    monkeypatch.undo()
    with listener.connect() as peer:
        peer.send(b"hello")
        assert await receive(peer) == b"hello"
