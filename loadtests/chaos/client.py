"""A blocking HTTP/1.1 client that says how a connection ended. Knows nothing of the service's formats."""

import socket
import struct
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import httptools

ESTABLISHED = 1
"""The state of a TCP connection that neither side has closed, as in Linux's tcp_states.h."""

BYTES_ACKED = struct.Struct("120x Q")
"""The place of tcpi_bytes_acked in Linux's struct tcp_info."""

RECEIVE_BYTES = 1 << 16


class Lost(Exception):
    """The connection ended before the response.

    reset: by RST rather than FIN. partial: in the middle of the response.
    """

    def __init__(self, *, reset: bool, partial: bool) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset
        self.partial = partial


class Hung(Exception):
    """No response within the timeout."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response. close: the server closes the connection after it."""

    status: int
    body: bytes
    close: bool


class ResponseReader:
    """Bytes to responses, by httptools; `feed` may be called with any pieces of the stream."""

    def __init__(self) -> None:
        self.answers: deque[Answer] = deque()
        self.partial = False
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    def feed(self, data: bytes) -> None:
        """Read some bytes. Raises httptools.HttpParserError."""
        self.partial = True
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """See httptools."""
        self._body = []

    def on_body(self, body: bytes) -> None:
        """See httptools."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """See httptools."""
        self.partial = False
        parser = self._parser
        self.answers.append(
            Answer(parser.get_status_code(), b"".join(self._body), not parser.should_keep_alive())
        )


class Connection:
    """A connection to a port of this machine. Raises OSError if there is none."""

    def __init__(self, port: int, timeout_seconds: float = 10.0, receive_buffer: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(timeout_seconds)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            self.socket.connect(("127.0.0.1", port))
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError:
            self.socket.close()
            raise
        self._reader = ResponseReader()

    def ask(self, request: bytes) -> Answer:
        """Send a request and return its response. Raises Lost, Hung or, if it cannot be sent, OSError."""
        self.socket.sendall(request)
        return self.receive()

    def receive(self) -> Answer:
        """Return the next response. Raises Lost or Hung."""
        while (answer := self.poll()) is None:
            pass
        return answer

    def poll(self) -> Answer | None:
        """Read once, unless a response is there already; return it if it is whole. Raises Lost or Hung."""
        reader = self._reader
        if not reader.answers:
            try:
                data = self.socket.recv(RECEIVE_BYTES)
                if not data:
                    raise Lost(reset=False, partial=reader.partial)
                reader.feed(data)
            except TimeoutError:
                raise Hung from None
            except (OSError, httptools.HttpParserError):
                raise Lost(reset=True, partial=reader.partial) from None
        return reader.answers.popleft() if reader.answers else None

    def established(self) -> bool:
        """Whether the server has not closed its side, as far as this machine's kernel knows."""
        return self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == ESTABLISHED

    def acknowledged(self) -> int:
        """How many bytes the server's kernel has taken so far; also after the connection has ended."""
        info = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, BYTES_ACKED.size)
        acked: int = BYTES_ACKED.unpack(info)[0]
        return acked

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()


def request(method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> bytes:
    """A request with its Host and, if it has a body, its length."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method == "POST":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("ascii") + body
