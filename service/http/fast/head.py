"""Request heads, parsed without ASGI."""

from typing import NamedTuple

import httptools

from service.http.types import Headers
from service.observability.request_ids import REQUEST_ID, sent_request_id


class Head(NamedTuple):
    """A request's head, with nothing unusual in it. headers: names in lower case, the last of each."""

    method: str
    path: bytes
    query: bytes
    headers: Headers
    content_length: int
    request_id: bytes | None


class _Reader:
    """Collects the URL and the headers that a parser finds."""

    def __init__(self) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))


def parse_head(head: bytes) -> Head | None:
    """Parse a head, up to and including its empty line; None if anything about it is unusual."""
    reader = _Reader()
    parser = httptools.HttpRequestParser(reader)
    try:
        parser.feed_data(head)
        url = httptools.parse_url(reader.url)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    names = [name for name, _ in reader.headers]
    if parser.get_http_version() != "1.1" or not parser.should_keep_alive() or parser.should_upgrade():
        return None
    if b"transfer-encoding" in names or b"expect" in names:
        return None
    if names.count(b"content-length") > 1 or names.count(b"authorization") > 1:
        return None
    if not url.path or b"%" in url.path:
        return None
    headers = dict(reader.headers)
    request_id = sent_request_id(reader.headers)
    if request_id != headers.get(REQUEST_ID):
        return None  # an unfit id is replaced by a new one for each request, so it is not cached
    content_length = int(headers.get(b"content-length", b"0"))  # the parser accepts nothing but digits
    method = parser.get_method().decode("ascii")
    return Head(method, url.path, url.query or b"", headers, content_length, request_id)
