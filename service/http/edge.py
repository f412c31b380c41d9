"""What stands between the clients and this service: a path prefix, proxies, pages of other origins.

The same for the fast path and for ASGI.
"""

from collections.abc import Iterable

from service.http.cors import ORIGIN, Cors
from service.http.proxies import FORWARDED_FOR, Proxies, forwarded_for
from service.http.tls import EXCEPT_PROBES
from service.http.types import Headers
from service.settings import Settings

DOCS = "/docs/"

_FORWARDED_FOR_LINE = b"\r\n%b:" % FORWARDED_FOR


class Edge:
    """What the settings say of it.

    root_path: the prefix, without a slash at its end; empty if there is none.
    cors: None if no other origin may call.
    needs_certificate: whether only probes may come without a client certificate.
    """

    def __init__(
        self,
        root_path: str = "",
        proxies: Proxies | None = None,
        cors: Cors | None = None,
        needs_certificate: bool = False,
    ) -> None:
        self.root_path = root_path
        self.proxies = proxies or Proxies()
        self.cors = cors
        self.needs_certificate = needs_certificate

    @classmethod
    def of(cls, settings: Settings) -> "Edge":
        """Return the edge that the settings describe."""
        cors = Cors(settings.cors_origins) if settings.cors_origins else None
        needs_certificate = settings.ssl_client_auth == EXCEPT_PROBES
        return cls(settings.root_path, Proxies(settings.trusted_proxies), cors, needs_certificate)

    def route_path(self, path: str) -> str:
        """Return the path of the route: without the prefix, which not every proxy removes, and a last slash.

        /docs/ stays, because the page's relative addresses need another answer there.
        """
        root = self.root_path
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            path = path[len(root) :]
        return (path[:-1] if path.endswith("/") and path != DOCS else path) or "/"

    def needs_asgi(self, head: bytes, headers: Headers) -> bool:
        """Whether a request takes the ASGI path: from a page of another origin, or with two lists of hops."""
        if self.cors is not None and ORIGIN in headers:
            return True
        return self.proxies.any_trusted and head.lower().count(_FORWARDED_FOR_LINE) > 1

    def client(self, scope_client: tuple[str, int] | None, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the client's address; empty if it is not known."""
        if not scope_client:
            return ""
        return self.proxies.client(scope_client[0], forwarded_for(headers))

    def scheme(self, peer: tuple[str, int] | None, own: str, headers: Iterable[tuple[bytes, bytes]]) -> str:
        """Return the scheme of the client's own request. own: of the connection."""
        return (self.proxies.scheme(peer[0], headers) if peer else None) or own

    def fast_client(self, peer: tuple[str, int] | None, headers: Headers) -> str:
        """Return the client's address, of a request that has one X-Forwarded-For at most."""
        return self.proxies.client(peer[0], headers.get(FORWARDED_FOR)) if peer else ""
