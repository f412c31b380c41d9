"""Which client sent a request that came through proxies. Knows addresses and two headers, no sockets."""

from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from service.settings import parse_list

FORWARDED_FOR = b"x-forwarded-for"
FORWARDED_PROTO = b"x-forwarded-proto"

CACHED_ADDRESSES = 4096
MAX_CACHED_BYTES = 256


class Proxies:
    """The addresses of proxies whose headers are believed.

    X-Forwarded-For is read and `Forwarded` is not: a proxy that writes one of them passes the other on as the
    client sent it, which proves nothing.
    """

    def __init__(self, trusted: str | None = None) -> None:
        parts = parse_list(trusted)
        self._everybody = "*" in parts
        self._networks: Sequence[IPv4Network | IPv6Network] = [ip_network(p) for p in parts if p != "*"]
        self.any_trusted = bool(parts)
        self._believed = lru_cache(CACHED_ADDRESSES)(self._believe)

    def client(self, peer: str, forwarded_for: bytes | None) -> str:
        """Return the client's address.

        peer: the address at the other end of the connection. forwarded_for: the values of X-Forwarded-For,
            separated by commas; None if there is none. It is ignored unless the peer is trusted.
        """
        if forwarded_for is None or not self.any_trusted:
            return plain_address(peer)
        if len(forwarded_for) > MAX_CACHED_BYTES:
            return self._believe(peer, forwarded_for)
        return self._believed(peer, forwarded_for)

    def trusts(self, text: str) -> bool:
        """Whether an address is a trusted proxy's."""
        if self._everybody:
            return True
        address = _read_address(text)
        return address is not None and any(address in network for network in self._networks)

    def scheme(self, peer: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Return the scheme of the client's own request, `http` or `https`, if a trusted proxy says so."""
        sent = [value.strip() for name, value in headers if name == FORWARDED_PROTO]
        if len(sent) != 1 or sent[0] not in (b"http", b"https") or not self.trusts(peer):
            return None
        return sent[0].decode("ascii")

    def _believe(self, peer: str, forwarded_for: bytes) -> str:
        """Walk from the nearest hop to the first that is not trusted, which may have invented the rest."""
        client = plain_address(peer)
        for hop in reversed(forwarded_for.decode("latin-1").split(",")):
            if not self.trusts(client):
                return client
            address = _read_address(hop)
            if address is None:
                return client
            client = str(address)
        return client


def forwarded_for(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return all values of X-Forwarded-For, in the order in which the proxies added them, or None."""
    values = [value for name, value in headers if name == FORWARDED_FOR]
    return b",".join(values) if values else None


@lru_cache(CACHED_ADDRESSES)
def plain_address(text: str) -> str:
    """Return an IPv4 address as such: a listener for IPv4 and IPv6 sees it as ::ffff:a.b.c.d."""
    address = _read_address(text) if text.startswith("::ffff:") else None
    return text if address is None else str(address)


def _read_address(text: str) -> IPv4Address | IPv6Address | None:
    """Read an address, with a port or without: `10.0.0.1`, `10.0.0.1:443`, `::1`, `[::1]`, `[::1]:443`."""
    text = text.strip().strip('"')
    if text.startswith("["):
        text, closed, port = text[1:].partition("]")
        if not closed or not _is_port(port):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not port.isdecimal():
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def _is_port(text: str) -> bool:
    return not text or (text.startswith(":") and text[1:].isdecimal())
