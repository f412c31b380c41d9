"""Request heads: parsed once, strictly, for the fast path and for ASGI alike.

Whoever stands in front of this service has parsed the same bytes. A head that two parsers could read in two
ways is therefore refused, never repaired: the two would disagree about where the request ends.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import httptools

from service.http.types import Headers
from service.observability.request_ids import REQUEST_ID, sent_request_id

MAX_HEADERS = 100
"""More headers are refused, as in Apache and Python's own http.client."""

END_OF_HEAD = b"\r\n\r\n"

_REQUEST_LINE = re.compile(rb"[A-Z-]+ [!-~]+ HTTP/(1\.[01])\r\n")
_OTHER_VERSION = re.compile(rb"[A-Z-]+ [!-~]+ HTTP/\d+(?:\.\d+)?\r\n")


class MalformedRequest(Exception):
    """A request that is not HTTP/1.1; the connection must be closed. status: of the response."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class RequestHead(NamedTuple):
    """A request's head.

    path: as sent, with its escapes. headers: names in lower case, in the order sent.
    content_length: None if the body is chunked.
    """

    method: str
    path: bytes
    query: bytes
    version: str
    headers: list[tuple[bytes, bytes]]
    content_length: int | None
    keep_alive: bool
    expects_continue: bool


class Head(NamedTuple):
    """A request's head, with nothing unusual in it.

    headers: names in lower case, the last of each. parameters: of the path; see `service.http.paths`.
    """

    method: str
    path: bytes
    query: bytes
    headers: Headers
    content_length: int
    request_id: bytes | None
    parameters: Mapping[str, str] = MappingProxyType({})


class _Reader:
    """Collects the URL and the headers that a parser finds."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        self.complete = True


def read_head(head: bytes) -> RequestHead:
    """Parse a head, up to and including its empty line. Raises MalformedRequest.

    An offer to upgrade to another protocol is ignored (RFC 9110, 7.8): the request is served as HTTP/1.1, and
    its body is a body.
    """
    line = _REQUEST_LINE.match(head)
    if line is None:
        raise _wrong_line(head)
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise MalformedRequest(f"request head is malformed: {error}") from None
    if not reader.complete:
        raise MalformedRequest("request head ends early, expected an empty line after its headers")
    version = line[1].decode("ascii")
    names = [name for name, _ in reader.headers]
    _check_headers(names, reader.headers, version)
    path, query = _target(reader.url, parser.get_method())
    headers = dict(reader.headers)
    return RequestHead(
        parser.get_method().decode("ascii"),
        path,
        query,
        version,
        reader.headers,
        None if b"transfer-encoding" in headers else int(headers.get(b"content-length", b"0")),
        version == "1.1" and not _closes(reader.headers),
        version == "1.1" and headers.get(b"expect", b"").lower() == b"100-continue",
    )


def _wrong_line(head: bytes) -> MalformedRequest:
    line = head[: head.find(b"\r\n")][:80].decode("latin-1")
    if _OTHER_VERSION.match(head):
        return MalformedRequest(f"request line is {line!r}, expected version HTTP/1.1 or HTTP/1.0", 505)
    return MalformedRequest(f"request line is {line!r}, expected METHOD target HTTP/1.1")


def _check_headers(names: list[bytes], headers: list[tuple[bytes, bytes]], version: str) -> None:
    """Raise MalformedRequest for headers about which parsers could disagree."""
    if len(headers) > MAX_HEADERS:
        raise MalformedRequest(f"request has {len(headers)} headers, expected at most {MAX_HEADERS}", 431)
    hosts = names.count(b"host")
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise MalformedRequest(f"request has {hosts} Host headers, expected one")
    if b"transfer-encoding" in names:
        if names.count(b"transfer-encoding") > 1 or b"content-length" in names or version != "1.1":
            raise MalformedRequest("request has Transfer-Encoding beside another header that frames its body")
        coding = dict(headers)[b"transfer-encoding"]
        if coding.lower() != b"chunked":
            shown = coding[:40].decode("latin-1")
            raise MalformedRequest(f"Transfer-Encoding is {shown!r}, expected chunked alone", 501)
    elif names.count(b"content-length") > 1:
        raise MalformedRequest("request has several Content-Length headers, expected one")
    elif b"content-length" in names:
        length = dict(headers)[b"content-length"]
        if not length.isdigit() or len(length) > 18:
            shown = length[:40].decode("latin-1")
            raise MalformedRequest(f"Content-Length is {shown!r}, expected a number of bytes")


def _target(url: bytes, method: bytes) -> tuple[bytes, bytes]:
    """Return the path and the query of a request's target."""
    if url == b"*" and method == b"OPTIONS":
        return b"*", b""
    if method == b"CONNECT":
        raise MalformedRequest("method is CONNECT, but this service is no proxy", 405)
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserError:
        parsed = None
    if parsed is None or not (url.startswith(b"/") or parsed.schema in (b"http", b"https")):
        shown = url[:80].decode("latin-1")
        raise MalformedRequest(f"request target is {shown!r}, expected a path")
    return parsed.path or b"/", parsed.query or b""


def _closes(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a Connection header asks for the connection to be closed."""
    values = [value.lower().split(b",") for name, value in headers if name == b"connection"]
    return any(token.strip() == b"close" for tokens in values for token in tokens)


def parse_head(head: bytes) -> Head | None:
    """Parse a head, up to and including its empty line; None if anything about it is unusual."""
    try:
        read = read_head(head)
    except MalformedRequest:
        return None
    return plain_head(read)


def plain_head(read: RequestHead) -> Head | None:
    """Return the head if the fast path may take such requests, else None."""
    if not read.keep_alive or read.expects_continue or read.content_length is None or read.version != "1.1":
        return None
    if b"%" in read.path:
        return None
    headers = dict(read.headers)
    if b"expect" in headers or b"upgrade" in headers:
        return None
    if sum(name == b"authorization" for name, _ in read.headers) > 1:
        return None
    request_id = sent_request_id(read.headers)
    if request_id != headers.get(REQUEST_ID):
        return None  # an unfit id is replaced by a new one for each request, so it is not cached
    return Head(read.method, read.path, read.query, headers, read.content_length, request_id)
