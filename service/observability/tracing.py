"""Traces through OpenTelemetry. Imported only if tracing is on; knows nothing of HTTP messages or of models.

A request is a span with two children, `queue` and `compute`; a batch is a span with a link to each of its
requests. Names and attributes follow OpenTelemetry's semantic conventions for HTTP servers, except what
tells of a client: its address, its program and the query stay out. The SDK's own variables, OTEL_*, set the
endpoint, the sampler and so on.
"""

import re
import sys
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import get_global_textmap
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision, Sampler, SamplingResult
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    Tracer,
    TraceState,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from opentelemetry.util.types import Attributes

from service.observability.access_log import quoted
from service.observability.metrics import package_version

TRACEPARENT = b"traceparent"

METHODS = frozenset(("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
"""The methods of RFC 9110, and PATCH, as the conventions list them: any other is `_OTHER`."""
DEFAULT_PORTS = {"http": 80, "https": 443}
CACHED_HOSTS = 256
_HOST = re.compile(rb"([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::([0-9]{1,5}))?")

_VERSION_00 = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_W3C = TraceContextTextMapPropagator()
_ROOT = Context()


class Tracing:
    """The spans of one process.

    exporter: `otlp` sends them to a collector over HTTP, `console` writes them to stderr.
    """

    def __init__(self, exporter: str) -> None:
        named = Resource({"service.name": "inkserve", "service.version": package_version()})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        if exporter == "otlp":
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            self._provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        self._sampler = self._provider.sampler
        self._ids = self._provider.id_generator
        self._decided = _Decided(self._sampler, self._ids)
        self._provider.sampler = self._decided
        self._provider.id_generator = self._decided  # type: ignore[assignment]  # the SDK declares its default
        self._tracer = self._provider.get_tracer("inkserve", package_version())
        self._propagator = get_global_textmap()
        self._fields = tuple(field.lower().encode("ascii") for field in self._propagator.fields)

    def start_request(
        self, method: str, path: str, scheme: str, headers: Mapping[bytes, bytes]
    ) -> "RequestSpan":
        """Start a request's span, which continues the trace that its headers name.

        scheme: of the client's own request, `http` or `https`. headers: in lower case.
        """
        context, trace_id = _ROOT, 0
        sent = [field for field in self._fields if field in headers]
        if sent == [TRACEPARENT]:
            context, trace_id = read_traceparent(headers[TRACEPARENT])
        elif sent:
            context, trace_id = self._extract({field: headers[field] for field in sent})
        trace_id = trace_id or self._ids.generate_trace_id()
        name = method if method in METHODS else "HTTP"
        attributes = _attributes(method, path, scheme, headers.get(b"host", b""))
        sampled = self._sampler.should_sample(context, trace_id, name, SpanKind.SERVER, attributes, ())
        if sampled.decision is Decision.DROP:
            return RequestSpan(name, trace_id, self._ids.generate_span_id())
        self._decided.next = sampled, trace_id
        span = self._tracer.start_span(name, context, SpanKind.SERVER, attributes)
        made = span.get_span_context()
        return RequestSpan(name, made.trace_id, made.span_id, span, self._tracer)

    def _extract(self, sent: Mapping[bytes, bytes]) -> tuple[Context, int]:
        """Return the context in the propagator's fields, and its trace id, 0 if there is none."""
        text = {name.decode("ascii"): value.decode("latin-1") for name, value in sent.items()}
        return _with_trace_id(self._propagator.extract(text, _ROOT))

    def trace_batch(
        self,
        model: str,
        *,
        rows: int,
        reason: str,
        started: float,
        compute_seconds: float,
        failed: bool,
        traceparents: Sequence[str],
    ) -> None:
        """Record a batch that has just run, if any of its requests is sampled.

        started: on the clock of `time.monotonic`. traceparents: those of its traced requests.
        """
        links = [link for link in map(_link, traceparents) if link is not None]
        if not links:
            return
        ended = time.time_ns()
        started_ns = ended - int((time.monotonic() - started) * 1e9)
        # Takes its first request's sampling decision; as a root span it would be sampled independently.
        span = self._tracer.start_span(
            "batch",
            set_span_in_context(links[0]),
            start_time=started_ns,
            links=[Link(link.get_span_context()) for link in links],
            attributes={"inkserve.model": model, "inkserve.rows": rows, "inkserve.reason": reason},
        )
        if failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(started_ns + int(compute_seconds * 1e9))

    def close(self) -> None:
        """Send the remaining spans; blocks."""
        self._provider.shutdown()


def read_traceparent(value: bytes) -> tuple[Context, int]:
    """Return the context in a W3C Trace Context header, and its trace id, 0 if there is none.

    The result is the SDK's propagator's, in 2 us instead of 5. Almost every traced request has only this
    header.
    """
    match = _VERSION_00.fullmatch(value)
    if match is None:
        return _with_trace_id(_W3C.extract({"traceparent": value.decode("latin-1")}, _ROOT))
    trace_id, span_id, flags = (int(part, 16) for part in match.groups())
    if not trace_id or not span_id:
        return _ROOT, 0
    parent = SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags))
    return set_span_in_context(NonRecordingSpan(parent), _ROOT), trace_id


def _attributes(method: str, path: str, scheme: str, host: bytes) -> dict[str, str | int]:
    """Return what is known of a request when it comes, which a sampler may decide by."""
    attributes: dict[str, str | int] = {
        "http.request.method": method,
        "url.path": quoted(path),
        "url.scheme": scheme,
        **read_server(host, scheme),
    }
    if method not in METHODS:
        attributes |= {"http.request.method": "_OTHER", "http.request.method_original": method}
    return attributes


@lru_cache(CACHED_HOSTS)
def read_server(host: bytes, scheme: str) -> Mapping[str, str | int]:
    """Return the attributes in a Host header; none if it is malformed."""
    found = _HOST.fullmatch(host)
    if found is None:
        return {}
    port = int(found[2]) if found[2] else DEFAULT_PORTS[scheme]
    return {"server.address": found[1].strip(b"[]").decode("ascii"), "server.port": port}


class RequestSpan:
    """A request's span. name: its method; span, tracer: None if the request is not sampled."""

    __slots__ = ("_error", "_name", "_span", "_submitted", "_tracer", "span_id", "trace_id")

    def __init__(
        self,
        name: str,
        trace_id: int,
        span_id: int,
        span: Span | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self.trace_id = trace_id
        self.span_id = span_id
        self._name = name
        self._error = ""
        self._span = span
        self._tracer = tracer
        self._submitted = 0

    def submitted(self) -> str | None:
        """Note that the rows are submitted now; returns the trace context to send with them, if sampled."""
        if self._span is None:
            return None
        self._submitted = time.time_ns()
        return self.header().decode("ascii")

    def header(self) -> bytes:
        """Return the span in the format of W3C Trace Context."""
        flags = 0 if self._span is None else self._span.get_span_context().trace_flags
        return b"00-%032x-%016x-%02x" % (self.trace_id, self.span_id, flags)

    def exemplar(self) -> dict[str, str] | None:
        """Return the labels by which a metric names the trace, None if nobody will find it."""
        if self._span is None or not self._span.get_span_context().trace_flags.sampled:
            return None
        return {"trace_id": f"{self.trace_id:032x}", "span_id": f"{self.span_id:016x}"}

    def note_inference(self, queue_seconds: float, compute_seconds: float, batch_rows: int) -> None:
        """Add the spans `queue` and `compute`; for a request split over batches, `compute` is a sum."""
        if self._span is None or self._tracer is None:
            return
        parent = set_span_in_context(self._span)
        started = self._submitted + int(queue_seconds * 1e9)
        self._tracer.start_span("queue", parent, start_time=self._submitted).end(started)
        rows = {"inkserve.batch_rows": batch_rows}
        computing = self._tracer.start_span("compute", parent, start_time=started, attributes=rows)
        computing.end(started + int(compute_seconds * 1e9))

    def note_error(self, error: Exception) -> None:
        """Note why the request fails, in case its response has a 5xx."""
        self._error = type(error).__name__

    def end(self, route: str | None, status: int) -> None:
        """End the span of a request that has its response. route: one of a closed set, None if unknown."""
        span = self._span
        if span is None:
            return
        span.set_attribute("http.response.status_code", status)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
            span.set_attribute("error.type", self._error or str(status))
        if route is not None:
            span.update_name(f"{self._name} {route}")
            span.set_attribute("http.route", route)
        span.end()


class _Decided(Sampler, IdGenerator):
    """Gives the next root span a trace id and a sampling decision that were made before.

    The SDK takes 5 us to make a span that is not sampled; asking its sampler first takes 1 us. A sampler that
    counts or draws must be asked only once per trace, because it could decide differently the second time.
    """

    def __init__(self, sampler: Sampler, ids: IdGenerator) -> None:
        self.next: tuple[SamplingResult, int] | None = None
        self._sampler = sampler
        self._ids = ids

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        """See OpenTelemetry."""
        if self.next is not None and self.next[1] == trace_id:
            result, self.next = self.next[0], None
            return result
        return self._sampler.should_sample(
            parent_context, trace_id, name, kind, attributes, links, trace_state
        )

    def get_description(self) -> str:
        """See OpenTelemetry."""
        return self._sampler.get_description()

    def generate_span_id(self) -> int:
        """See OpenTelemetry."""
        return self._ids.generate_span_id()

    def generate_trace_id(self) -> int:
        """See OpenTelemetry."""
        return self._ids.generate_trace_id() if self.next is None else self.next[1]


def _with_trace_id(context: Context) -> tuple[Context, int]:
    return context, get_current_span(context).get_span_context().trace_id


def _link(traceparent: str) -> Span | None:
    context, _ = read_traceparent(traceparent.encode("latin-1"))
    span = get_current_span(context)
    return span if span.get_span_context().trace_flags.sampled else None
