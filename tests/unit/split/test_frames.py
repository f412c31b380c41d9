"""Frames, as bytes and over a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import FrameError
from service.split.frames import JOIN_BYTES, MAX_HEADER_BYTES, PREFIX, Frame, FrameReader, Link, frame_pieces

HEADERS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@pytest.mark.slow
@given(
    frames=st.lists(st.tuples(st.integers(0, 2**32 - 1), HEADERS, st.binary(max_size=300)), max_size=6),
    cuts=st.lists(st.integers(0, 2000), max_size=8),
)
def test_frames_come_out_as_they_went_in_however_the_stream_is_cut(
    frames: list[tuple[int, object, bytes]], cuts: list[int]
) -> None:
    arrays = [np.frombuffer(body, np.uint8) for _, _, body in frames]
    stream = b"".join(
        piece
        for (kind, header, _), array in zip(frames, arrays, strict=True)
        for piece in frame_pieces(kind, header, [array])
    )
    edges = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    reader = FrameReader(300)
    seen = [
        (frame.kind, frame.header, bytes(frame.body))
        for start, stop in pairwise(edges)
        for frame in reader.feed(stream[start:stop])
    ]
    assert seen == frames


@pytest.mark.parametrize("rows", [1, JOIN_BYTES // 8, 2 * JOIN_BYTES])
def test_arrays_of_any_size_and_layout_follow_each_other(rows: int) -> None:
    first = np.arange(2 * rows, dtype=np.int64)[::2]  # not contiguous
    second = np.zeros((0, 3), np.float32)
    third = np.ones((2, 2), bool)
    stream = b"".join(frame_pieces(7, None, [first, second, third]))
    (frame,) = FrameReader(16 * len(stream)).feed(stream)
    assert bytes(frame.body) == first.tobytes() + third.tobytes()


def test_a_frame_that_came_in_one_read_is_not_copied() -> None:
    stream = b"".join(frame_pieces(1, [], [np.arange(9, dtype=np.uint8)]))
    (frame,) = FrameReader(9).feed(stream)
    assert frame.body.obj is stream


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        (PREFIX.pack(1, 2, 101), "frame has 2 . 101 bytes, expected at most .* . 100"),
        (PREFIX.pack(1, MAX_HEADER_BYTES + 1, 0), "expected at most 16777216"),
        (PREFIX.pack(1, 2, 0) + b"{]", "header is not JSON"),
    ],
)
def test_what_is_too_large_or_no_header_is_refused_at_its_prefix(prefix: bytes, message: str) -> None:
    with pytest.raises(FrameError, match=message):
        list(FrameReader(100).feed(prefix))


class End:
    """A link's owner that keeps what comes."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Frame] = asyncio.Queue()
        self.lost = asyncio.Event()

    def link_opened(self, link: Link) -> None:
        link.allow_body(1 << 20)

    def link_lost(self, link: Link) -> None:
        del link
        self.lost.set()

    def frame_received(self, link: Link, frame: Frame) -> None:
        del link
        if frame.kind == 99:
            raise FrameError("no such kind")
        self.frames.put_nowait(frame)


@pytest.fixture
async def pair() -> AsyncIterator[tuple[Link, End, socket.socket]]:
    """A link, its owner, and the other end as a plain socket."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    end = End()
    link = Link(end, hold_back=True)
    await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
    with theirs:
        yield link, end, theirs
        link.abort()
        await end.lost.wait()


async def test_a_peer_that_sends_nonsense_is_cut_off(
    pair: tuple[Link, End, socket.socket], caplog: pytest.LogCaptureFixture
) -> None:
    _, end, peer = pair
    await asyncio.get_running_loop().sock_sendall(peer, b"GET / HTTP/1.1\r\nhost: engine\r\n\r\n")
    await end.lost.wait()
    assert "a connection between processes is closed: frame has" in caplog.text


async def test_a_frame_that_its_owner_refuses_ends_the_link(pair: tuple[Link, End, socket.socket]) -> None:
    _, end, peer = pair
    await asyncio.get_running_loop().sock_sendall(peer, b"".join(frame_pieces(99, [])))
    await end.lost.wait()


async def test_while_a_peer_does_not_read_nothing_more_is_read_from_it(
    pair: tuple[Link, End, socket.socket],
) -> None:
    link, end, peer = pair
    loop = asyncio.get_running_loop()
    array = np.zeros(1 << 20, np.uint8)
    for _ in range(4):
        link.send(1, [], [array])
    writable = asyncio.ensure_future(link.writable())
    await loop.sock_sendall(peer, b"".join(frame_pieces(2, ["question"])))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not writable.done()
    assert end.frames.empty()
    left = 4 * len(b"".join(frame_pieces(1, [], [array])))
    while left:
        left -= len(await loop.sock_recv(peer, left))
    await writable
    assert (await end.frames.get()).header == ["question"]
