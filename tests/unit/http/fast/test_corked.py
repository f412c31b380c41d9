"""One write per iteration of the event loop."""

import asyncio

import pytest

from service.http.fast.corked import CorkedTransport


class Recorder(asyncio.Transport):
    """Notes what reaches the socket."""

    def __init__(self) -> None:
        super().__init__({"peername": ("127.0.0.1", 1)})
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        assert not self.closed
        self.writes.append(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close


@pytest.fixture
async def inner() -> Recorder:
    return Recorder()


async def test_head_and_body_go_out_together(inner: Recorder) -> None:
    corked = CorkedTransport(inner, asyncio.get_running_loop())
    corked.write(b"head ")
    corked.write(b"body")
    assert inner.writes == []
    await asyncio.sleep(0)
    corked.write(b"next")
    await asyncio.sleep(0)
    assert inner.writes == [b"head body", b"next"]


async def test_closing_writes_what_is_held(inner: Recorder) -> None:
    corked = CorkedTransport(inner, asyncio.get_running_loop())
    corked.write(b"last words")
    corked.close()
    assert inner.writes == [b"last words"]
    assert inner.closed
    await asyncio.sleep(0)


async def test_a_connection_that_broke_off_is_not_written_to(inner: Recorder) -> None:
    corked = CorkedTransport(inner, asyncio.get_running_loop())
    corked.write(b"too late")
    corked.abort()
    await asyncio.sleep(0)
    assert inner.writes == []


async def test_all_else_is_the_inner_transports(inner: Recorder) -> None:
    corked = CorkedTransport(inner, asyncio.get_running_loop())
    assert corked.get_extra_info("peername") == ("127.0.0.1", 1)
    assert not corked.is_closing()
