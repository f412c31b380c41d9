"""The command `python -m service.split.ping SOCKET`: whether the engine behind a Unix socket answers.

For a container's exec probes, which start it again and again: it loads little of the standard library and
nothing else, and so takes 19 ms where a command of `service.__main__` takes 140. The other end is
`service.split.engine_server`.
"""

import socket
import struct
import sys
from collections.abc import Sequence

TIMEOUT_SECONDS = 60.0
"""Not what decides: whoever asks has a timeout of its own, but nobody must be left behind for ever."""

_PREFIX = struct.Struct("<III")
"""As `service.split.frames.PREFIX`."""

_PING, _REPLY = 5, 7
"""As `service.split.messages.Kind`."""

_HEADER = b"[0]"


def ping(path: str, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
    """Return once the engine's event loop has answered. Raises OSError where nobody does.

    The engine first says what it serves, so other frames come before the answer.
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
    """Run the command; returns 0, or 1 with a line on what happened instead of an answer."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    try:
        ping(path)
    except OSError as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
