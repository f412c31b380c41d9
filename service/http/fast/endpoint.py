"""The fast path: which request heads it knows, and how each is answered.

ASGI's scope, task and four messages cost more than everything else about a small request. A request that is
not plain (chunked, pipelined, HTTP/1.0, a path or format that no endpoint here accepts) takes the ASGI path.
Knows nothing of models or sockets.
"""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol, TypeVar

from service.batching.request import Done, InferenceResult
from service.batching.retries import Refusal
from service.errors import InkserveError, QueueFull
from service.http.api_keys import ApiKeys, admit
from service.http.edge import Edge
from service.http.fast.head import Head, parse_head
from service.http.lifecycle import Lifecycle
from service.http.paths import Family, find
from service.http.responses import Response
from service.observability.load_reports import ReportFormat
from service.observability.request_ids import REQUEST_ID, is_sane
from service.serving.predictor import Cancel

Body = bytes | memoryview
T = TypeVar("T")

KNOWN_HEADS = 1024
"""Clients send the same head again and again; parsing it costs 10 us, looking it up 0.2 us."""

MAX_HEAD_BYTES = 4096
"""A longer head takes the ASGI path, so that the cache stays small."""

_PER_REQUEST = re.compile(
    rb"\r\n(x-request-id|traceparent|tracestate|x-forwarded-for|x-real-ip|forwarded)"
    rb": ([!-~](?:[ -~]*[!-~])?)(?=\r\n[^ \t])",
    re.IGNORECASE,
)
"""Headers that proxies and tracing clients set anew for each request or client. Heads that differ only in
these count as one: removing them and looking up the remainder takes 3 us, and nothing is parsed again."""


class BodyPlan(Protocol):
    """How an endpoint answers a request with one head and one body.

    timeout: seconds from the request's first byte to its deadline.
    """

    timeout: float

    def submit(
        self, body: Body, traceparent: str | None, done: Done, received_at: float, *, admitted: bool
    ) -> Cancel:
        """Submit the body's rows; see `Predictor.submit`. Raises the errors of the domain.

        received_at: when the request's first byte came, on the clock of `time.monotonic`.
        """
        ...

    def respond(self, result: InferenceResult) -> Response:
        """Return the response for a result."""
        ...


class Plan(Protocol):
    """How an endpoint answers all requests with one head.

    model: the name of their model. timeout: as in `BodyPlan`, of requests whose body does not say.
    """

    model: str
    timeout: float

    def is_valid(self) -> bool:
        """Whether the plan can still be used; if not, a new one is made."""
        ...

    def for_body(self, body: Body) -> BodyPlan | None:
        """Return the plan for a request with this body, or None for the ASGI path."""
        ...

    def memory(self) -> memoryview | None:
        """Return memory that a body should be received into, or None if any other is as good."""
        ...

    def check_admission(self) -> Refusal | None:
        """Return the reason to reject such a request before its body is read, or None."""
        ...

    def reject(self, refusal: Refusal) -> QueueFull:
        """Note that such a request is rejected by `check_admission`; returns its error."""
        ...


class FastEndpoint(Protocol):
    """An endpoint that answers some of its requests here."""

    def plan(self, head: Head) -> Plan | None:
        """Return the plan for requests with this head, or None for the ASGI path.

        An error of the domain also means the ASGI path.
        """
        ...


class KnownHead:
    """A request head and its plan.

    route: what such requests are counted under.
    plan: None if such requests take the ASGI path now.
    api_key_name: of the API key in the head, if keys are in use; see `Admission`.
    report: the format of the load report that the response carries, None for none.
    """

    __slots__ = (
        "api_key_name",
        "content_length",
        "endpoint",
        "head",
        "method",
        "path",
        "plan",
        "report",
        "request_id",
        "route",
    )

    def __init__(self, head: Head, route: str, endpoint: FastEndpoint) -> None:
        self.head = head
        self.route = route
        self.endpoint = endpoint
        self.method = head.method
        self.path = head.path.decode("ascii")
        self.content_length = head.content_length
        self.request_id = head.request_id
        self.plan: Plan | None = None
        self.api_key_name: str | None = None
        self.report: ReportFormat | None = None

    def with_headers(self, own: Mapping[bytes, bytes]) -> "KnownHead | None":
        """Return the head of a request that has these headers too; None if it takes the ASGI path."""
        request_id = own.get(REQUEST_ID, self.request_id)
        if request_id is not None and not is_sane(request_id):
            return None
        headers = {**self.head.headers, **own}
        known = KnownHead(
            self.head._replace(headers=headers, request_id=request_id), self.route, self.endpoint
        )
        known.plan, known.api_key_name, known.report = self.plan, self.api_key_name, self.report
        return known


class FastPath:
    """The endpoints by their paths, and the heads that lead to them.

    families: the endpoints of paths with parameters.
    known: heads by their bytes, up to and including the empty line; None for heads that always take the ASGI
        path. If the plan found here is valid, `learn` need not be called.
    keys: a request must send one of them; without one it takes the ASGI path, which rejects it.
    edge: the path prefix, trusted proxies and other origins; nothing of these by default.
    """

    def __init__(
        self,
        endpoints: Mapping[bytes, FastEndpoint],
        lifecycle: Lifecycle,
        keys: ApiKeys | None = None,
        edge: Edge | None = None,
        families: Mapping[Family, FastEndpoint] = MappingProxyType({}),
    ) -> None:
        self.lifecycle = lifecycle
        self.edge = edge or Edge()
        self.known: dict[bytes, KnownHead | None] = {}
        self._endpoints = endpoints
        self._families = families
        self._keys = keys
        self._own: dict[bytes, KnownHead] = {}
        if keys is not None:
            keys.on_change(self.known.clear)
            keys.on_change(self._own.clear)

    def learn(self, head: bytes) -> KnownHead | None:
        """Return this head with a valid plan, or None for the ASGI path."""
        if len(head) > MAX_HEAD_BYTES:
            return None
        known = self._own.get(head)
        if known is not None and known.plan is not None and known.plan.is_valid():
            return known
        own = {name.lower(): value for name, value in _PER_REQUEST.findall(head)}
        if not own:
            return self._look_up(head)
        shared, found = _PER_REQUEST.subn(b"", head)
        known = self._look_up(shared) if found == len(own) else None
        if known is None or not own.keys().isdisjoint(known.head.headers):
            return self._look_up(head)  # a header is there twice, or the head is unusual anyway
        known = known.with_headers(own)
        if known is not None:
            _cache(self._own, head, known)
        return known

    def _look_up(self, head: bytes) -> KnownHead | None:
        """Do what `learn` does, with the whole head as the cache's key."""
        if head not in self.known:
            _cache(self.known, head, self._read(head))
        known = self.known[head]
        if known is None:
            return None
        if known.plan is None or not known.plan.is_valid():
            known.plan = self._plan(known)
        return None if known.plan is None else known

    def _read(self, head: bytes) -> KnownHead | None:
        parsed = parse_head(head)
        if parsed is None or self.edge.needs_asgi(head, parsed.headers):
            return None
        path = self.edge.route_path(parsed.path.decode("latin-1"))
        parsed = parsed._replace(path=path.encode("latin-1"))
        endpoint = self._endpoints.get(parsed.path)
        if endpoint is not None:
            known = KnownHead(parsed, path, endpoint)
        elif (found := find(self._families, path)) is not None:
            route, endpoint, parameters = found
            known = KnownHead(parsed._replace(parameters=parameters), route, endpoint)
        else:
            return None
        if self.lifecycle.load_reports is not None:
            known.report = self.lifecycle.load_reports.format_for(parsed.headers)
        return known

    def _plan(self, known: KnownHead) -> Plan | None:
        known.api_key_name, rejected = admit(self._keys, known.path, known.head.headers.items())
        if rejected is not None:  # the ASGI path reports it
            return None
        try:
            return known.endpoint.plan(known.head)
        except InkserveError:  # the ASGI path reports it
            return None


def _cache(heads: dict[bytes, T], head: bytes, known: T) -> None:
    """Cache a head; if the cache is full, drop the oldest one."""
    if len(heads) >= KNOWN_HEADS:
        del heads[next(iter(heads))]
    heads[head] = known
