"""Streams of bytes as clients, proxies and attackers send them: where does a request end, and who says so?

Compared with h11, an independent, strict parser. A stream that the two read in two ways could smuggle a
request past one of them.
"""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.http.fast.bodies import ChunkedFraming
from service.http.fast.head import MalformedRequest
from service.settings import Settings
from tests.support.wire import Echo, fast_path_over, feed, protocol_over, read_strictly, statuses

SETTINGS = Settings(models_dir=Path())
EXAMPLES = hypothesis_settings(max_examples=4 * hypothesis_settings().max_examples, deadline=None)
"""400, and 4,000 in the profile of .ci/nightly."""

INNER = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES = st.sampled_from(
    [b"", b"abcde", INNER, b"0\r\n\r\n", b"5\r\nabcde\r\n0\r\n\r\n", b"\r\n", b"a" * 300]
)


def in_chunks(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


FRAMINGS = (
    b"Content-Length: %(size)d",
    b"Content-Length: %(size)d\r\nContent-Length: %(size)d",
    b"Content-Length: %(size)d\r\nContent-Length: 3",
    b"Content-Length: %(size)d, %(size)d",
    b"Content-Length: +%(size)d",
    b"Content-Length: -1",
    b"Content-Length: 0x5",
    b"Content-Length: 99999999999999999999999",
    b"Content-Length : %(size)d",
    b"Content-Length:\t%(size)d \t",
    b"Content-Length: \x0b%(size)d",
    b"Content-Length: %(size)d\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nContent-Length: %(size)d",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: Chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    b"Transfer-Encoding: identity, chunked",
    b"Transfer-Encoding: chunked, identity",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding: xchunked",
    b'Transfer-Encoding: "chunked"',
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding\x00: chunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\r\n chunked",
    b" Transfer-Encoding: chunked",
    b"X: y\r\n Transfer-Encoding: chunked",
    b"X: y\nTransfer-Encoding: chunked",
    b"X: y\rTransfer-Encoding: chunked",
    b"X: y\x00z",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nContent-Length: %(size)d",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nTransfer-Encoding: chunked",
    b"Connection: close\r\nContent-Length: %(size)d",
    b"Expect: 100-continue\r\nContent-Length: %(size)d",
    b"Expect: a-wonder\r\nContent-Length: %(size)d",
    b"Host: y\r\nContent-Length: %(size)d",
    b"",
)
LINES = (
    b"POST /a HTTP/1.1",
    b"GET /b?c=d HTTP/1.1",
    b"POST /a HTTP/1.0",
    b"HEAD /a HTTP/1.1",
    b"POST  /a HTTP/1.1",
    b"POST /a HTTP/1.1 ",
    b"POST /a HTTP/2.0",
    b"POST /a",
    b"POST /a\x00 HTTP/1.1",
    b"POST http://x/a HTTP/1.1",
    b"OPTIONS * HTTP/1.1",
)
ENDINGS = (b"\r\n\r\n", b"\r\n\r\n", b"\r\n\r\n", b"\n\n", b"\r\n\n", b"\n\r\n", b"\r\r\n\r\n")


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    body = draw(BODIES)
    usual = st.just(LINES[0])
    line = draw(st.one_of(usual, usual, st.sampled_from(LINES)))
    framing = draw(st.sampled_from(FRAMINGS))
    host = draw(st.sampled_from([b"Host: x\r\n"] * 6 + [b"", b"Host: x\r\nhost: x\r\n"]))
    wire = in_chunks(body, draw(st.integers(1, 200))) if draw(st.booleans()) else body
    ending = draw(st.sampled_from(ENDINGS))
    return line + b"\r\n" + host + framing.replace(b"%(size)d", b"%d" % len(wire)) + ending + wire


def pieces_of(stream: bytes, cuts: list[int]) -> list[bytes]:
    edges = sorted({0, *(cut % (len(stream) + 1) for cut in cuts), len(stream)})
    return [stream[start:stop] for start, stop in pairwise(edges)]


EMPTY = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"


@pytest.mark.slow
@EXAMPLES
@example([EMPTY, b"\r\n", EMPTY, b"\r\n\r\n", INNER], [], ())
@given(
    st.lists(requests(), min_size=1, max_size=4),
    st.lists(st.integers(0, 5000), max_size=8),
    st.sampled_from([(), (b"/a",), (b"/a", b"/b", b"/inner")]),
)
async def test_a_strict_parser_sees_the_same_requests(
    parts: list[bytes], cuts: list[int], fast_paths: tuple[bytes, ...]
) -> None:
    stream = b"".join(parts)
    expected, rejected = read_strictly(stream)
    echo = Echo()
    protocol, wire = protocol_over(echo, SETTINGS, fast_path_over(echo, *fast_paths))
    await feed(protocol, wire, pieces_of(stream, cuts))
    seen = [(method, path, body) for method, path, body in echo.seen]
    wanted = [(method, _path_of(target), body) for method, target, body in expected]
    assert seen == wanted[: len(seen)]
    answers = statuses(bytes(wire.written))
    assert answers[: len(seen)] == [200] * len(seen)
    refused = answers[len(seen) :]
    assert len(refused) <= 1
    assert all(400 <= status < 500 or status in (501, 505) for status in refused)
    if refused:
        assert wire.ended or wire.closed
    elif not rejected:  # nothing that a strict parser accepts is left without an answer
        assert len(seen) == len(wanted)


def _path_of(target: bytes) -> bytes:
    return target.removeprefix(b"http://x").partition(b"?")[0]


@pytest.mark.slow
@EXAMPLES
@given(st.lists(st.integers(1, 400), max_size=8), st.integers(1, 9))
def test_chunks_in_any_pieces_give_their_content(cuts: list[int], size: int) -> None:
    content = bytes(range(200))
    stream = in_chunks(content, size)[:-2] + b"Trailer: x\r\n\r\n" + INNER
    framing, got, at = ChunkedFraming(), b"", 0
    for piece in pieces_of(stream, cuts):
        pieces, rest = framing.split(piece)
        got += b"".join(pieces)
        at += len(piece)
        if framing.done:
            break
    assert framing.done
    assert got == content
    assert rest + stream[at:] == INNER


@pytest.mark.parametrize(
    "chunks",
    [
        b"5\nabcde\r\n",
        b"5\r\nabcdef\r\n",
        b"5\r\nabcde\n",
        b"-1\r\n",
        b"0x5\r\n",
        b" 5\r\n",
        b"5 \r\n",
        b"\r\n",
        b"g\r\n",
        b"5\rabcde",
        b"1" * 400,
        b"0\r\nno colon\r\n",
        b"0\r\n" + b"a: b\r\n" * 4000,
        b"1\r\nX\r\n" * 40_000,
    ],
)
def test_wrong_chunks_are_rejected_at_once(chunks: bytes) -> None:
    framing = ChunkedFraming()
    pieces = [chunks[at : at + 997] for at in range(0, len(chunks), 997)]
    with pytest.raises(MalformedRequest):
        list(map(framing.split, pieces))


async def test_a_declined_upgrade_keeps_the_body() -> None:
    """Java's HttpClient and `curl --http2` offer h2c with every POST."""
    echo = Echo()
    protocol, wire = protocol_over(echo, SETTINGS)
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    head = b"POST /a HTTP/1.1\r\nHost: x\r\n" + offer + b"Content-Length: %d\r\n\r\n" % len(INNER)
    await feed(protocol, wire, [head, INNER])
    assert echo.seen == [("POST", b"/a", INNER)]
    assert statuses(bytes(wire.written)) == [200]
    assert not wire.closed


async def test_an_error_does_not_overtake_a_response() -> None:
    echo = Echo()
    protocol, wire = protocol_over(echo, SETTINGS)
    await feed(protocol, wire, [INNER + b"nonsense\r\n\r\n" + INNER])
    assert statuses(bytes(wire.written)) == [200, 400]
    assert echo.seen == [("GET", b"/inner", b"")]
    assert wire.ended


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/1.1\nHost: x\n\n", b"\x00", b"{"]
)
async def test_what_can_never_become_a_request_is_rejected_at_once(garbage: bytes) -> None:
    protocol, wire = protocol_over(Echo(), SETTINGS)
    await feed(protocol, wire, [garbage])
    assert statuses(bytes(wire.written)) == [400]
    assert wire.ended


@pytest.mark.parametrize(
    "endless",
    [b"X-%d: v\r\n", b"aaaaaaaaaaaaaaaa", b"a: b\r\n"],
)
async def test_an_endless_head_is_rejected(endless: bytes) -> None:
    protocol, wire = protocol_over(Echo(), SETTINGS)
    begin = b"GET / HTTP/1.1\r\nHost: x\r\n"
    await feed(protocol, wire, [begin, *[endless * 100] * 100])
    assert statuses(bytes(wire.written)) == [431]


async def test_a_head_with_too_many_headers_is_rejected() -> None:
    protocol, wire = protocol_over(Echo(), SETTINGS)
    await feed(protocol, wire, [b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 100 + b"\r\n"])
    assert statuses(bytes(wire.written)) == [431]


async def test_empty_lines_between_requests_are_ignored() -> None:
    echo = Echo()
    protocol, wire = protocol_over(echo, SETTINGS)
    await feed(protocol, wire, [INNER + b"\r\n", b"\r", b"\n" + INNER, b"\r\n\r\n", INNER])
    assert len(echo.seen) == 3
    assert statuses(bytes(wire.written)) == [200] * 3
