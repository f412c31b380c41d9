"""Addresses that the service listens on: as a setting names them, as sockets, and as URLs in the log."""

import errno
import ipaddress
import socket
from typing import Any

from service.errors import InkserveError

WILDCARDS = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""Addresses that stand for every one of the machine, and one of those that a client here can use."""

MISSING = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of an address that this machine lacks, such as ::1 for `localhost` without IPv6."""


def parse_host(text: str) -> str:
    """Return the address or name in a setting, without the brackets of `[::1]`. Raises ValueError."""
    host = text.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError("expected an IPv6 address in the brackets")
    if not host or host == "*":
        raise ValueError("expected an address or a name; 0.0.0.0 is every IPv4 address, :: every address")
    if any(character in host for character in "/@[] ") or (":" in host and not _is_ipv6(host)):
        raise ValueError("expected an address or a name, without a scheme and a port")
    return host


def open_listeners(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Return a bound socket for each address that a host has; they do not listen yet. Raises InkserveError.

    They share one port, also if it is 0 and the system chooses. The socket for `::` takes IPv4 too, whatever
    the system's default: uvicorn turns that off, and a plain socket follows net.ipv6.bindv6only.
    shared: with other sockets that say so too (SO_REUSEPORT), of any process of this user.
    """
    listeners: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        addresses = dict.fromkeys((family, address) for family, _, _, _, address in found)
        for family, address in addresses:
            if listeners and not port:
                address = (address[0], listeners[0].getsockname()[1], *address[2:])
            try:
                listeners.append(_bound(family, address, shared))
            except OSError as error:
                if len(addresses) == 1 or error.errno not in MISSING:
                    raise
        if not listeners:
            raise OSError(errno.EADDRNOTAVAIL, "this machine has none of its addresses")
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise InkserveError(f"{bracketed(host)}:{port} cannot be listened on: {error}") from error
    return listeners


def address_of(listener: socket.socket) -> str:
    """Return an address at which a client on this machine reaches a listener."""
    host, port = listener.getsockname()[:2]
    return f"{bracketed(WILDCARDS.get(host, host))}:{port}"


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return a URL under which a client on this machine reaches a listener."""
    return f"{scheme}://{address_of(listener)}"


def ready_line(listener: socket.socket, root_path: str, scheme: str, *, playground: bool) -> str:
    """Return what to log once the service listens: where to find it, and whether others can."""
    every = " on every address" if listener.getsockname()[0] in WILDCARDS else ""
    pages = f"playground at {root_path}/, " if playground else ""
    return f"ready at {url_of(listener, scheme)}{every}, {pages}documentation at {root_path}/docs"


def bracketed(host: str) -> str:
    """Return a host as a URL has it: an IPv6 address in brackets."""
    return f"[{host}]" if ":" in host else host


def _is_ipv6(host: str) -> bool:
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        return False
    return True


def _bound(family: int, address: tuple[Any, ...], shared: bool) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, address[0] != "::")
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener
