"""The command `python -m service ping SOCKET`: whether the engine behind a Unix socket responds.

For a container's exec probes, which run it every few seconds: it loads little of the standard library and
nothing else. `engine_server` is the other end.
"""

import socket
import struct
import sys
from collections.abc import Sequence

TIMEOUT_SECONDS = 60.0
"""Only a backstop: the probe has its own timeout, but a ping must not hang for ever."""

_PREFIX = struct.Struct("<III")
"""As `service.split.frames.PREFIX`."""

_PING, _REPLY = 5, 7
"""As `service.split.messages.Kind`."""

_HEADER = b"[0]"

USAGE = """usage: python -m service ping SOCKET

Exits with 0 if the engine behind the Unix socket SOCKET responds, otherwise with 1 and a line on stderr."""


def ping(path: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Return once the engine's event loop has replied. Raises OSError if nothing does.

    The engine first sends what it serves, so other frames come before the reply.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
        link.settimeout(timeout_seconds)
        link.connect(path)
        link.sendall(_PREFIX.pack(_PING, len(_HEADER), 0) + _HEADER)
        kind = None
        while kind != _REPLY:
            kind, header_bytes, body_bytes = _PREFIX.unpack(_read(link, _PREFIX.size))
            _read(link, header_bytes + body_bytes)


def _read(link: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = link.recv(size - len(data))
        if not piece:
            raise ConnectionError("the engine closed the connection")
        data += piece
    return bytes(data)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 0, 1 with a line on stderr if there is no reply, or 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if len(arguments) != 1 or arguments[0].startswith("-"):
        asked = list(arguments) in (["-h"], ["--help"])
        print(USAGE, file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    (path,) = arguments
    try:
        ping(path)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
