"""Traces through OpenTelemetry. Imported only where tracing is on; knows nothing of how models run.

A request is a span with two children, `queue` and `compute`; a batch is a span with a link to each of
its requests. Endpoint, sampler and the like are the SDK's own variables, OTEL_*.
"""

import sys
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from opentelemetry.context import get_current
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.propagate import extract
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor
from opentelemetry.trace import (
    Link,
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
    set_span_in_context,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.batching.queue import BatchRecord
from service.http.types import App, Message, Receive, Scope, Send
from service.models.catalogue import Catalogue
from service.models.tensors import Array
from service.observability.metrics import package_version
from service.observability.trace_context import current_traceparent
from service.serving.predictor import Cancel, Done, Inference, Predictor

if TYPE_CHECKING:
    from service.http.dispatch import Front

RESPONSE = b"traceresponse"
"""The answer's header, after the draft of W3C Trace Context level 2: where to find what was traced."""

_W3C = TraceContextTextMapPropagator()


class Tracing:
    """The spans of one process.

    exporter: `otlp` sends them to a collector over HTTP, `console` writes them on stderr.
    """

    def __init__(self, exporter: str) -> None:
        named = Resource({"service.name": "inkserve", "service.version": package_version()})
        self._provider = TracerProvider(resource=named.merge(OTELResourceDetector().detect()))
        if exporter == "otlp":
            self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        else:
            self._provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(out=sys.stderr)))
        self.tracer = self._provider.get_tracer("inkserve", package_version())

    def trace_batch(self, model: str, batch: BatchRecord) -> None:
        """Tell of a batch that has just run, if any request in it is traced."""
        links = [link for link in map(_link, batch.traceparents) if link is not None]
        if not links:
            return
        ended = time.time_ns()
        started = ended - int((time.monotonic() - batch.started) * 1e9)
        # Sampled as its first request is, for a sampler of roots would choose others than their requests.
        span = self.tracer.start_span(
            "batch",
            set_span_in_context(links[0]),
            start_time=started,
            links=[Link(link.get_span_context()) for link in links],
            attributes={
                "inkserve.model": model,
                "inkserve.rows": batch.rows,
                "inkserve.reason": batch.reason,
            },
        )
        if batch.failed:
            span.set_status(Status(StatusCode.ERROR))
        span.end(started + int(batch.compute_seconds * 1e9))

    def traced(self, make: "Callable[[Predictor], Front]", predictor: Predictor) -> App:
        """The application that `make` makes over a predictor, with spans around both."""
        front = make(TracedPredictor(predictor, self))
        return TracedApp(front, front.route_of, self)

    def close(self) -> None:
        """Send what is left; blocks."""
        self._provider.shutdown()


def _link(traceparent: str) -> Span | None:
    span = get_current_span(_W3C.extract({"traceparent": traceparent}))
    return span if span.get_span_context().trace_flags.sampled else None


class TracedPredictor:
    """A predictor whose calls are spans; see `service.serving.predictor.Predictor`."""

    def __init__(self, inner: Predictor, tracing: Tracing) -> None:
        self._inner = inner
        self._tracer = tracing.tracer

    def refusal(self, model: str, version: int | None, rows: int, seconds: float) -> str | None:
        """Why so many rows would not be queued now."""
        return self._inner.refusal(model, version, rows, seconds)

    def models(self) -> Catalogue:
        """The models that are being served now."""
        return self._inner.models()

    def ready(self) -> bool:
        """Whether new work is accepted."""
        return self._inner.ready()

    async def reload(self) -> list[str]:
        """Bring the served models in line with the folder."""
        return await self._inner.reload()

    def begin(
        self, model: str, version: int | None, inputs: Mapping[str, Array], deadline: float, done: Done
    ) -> Cancel:
        """Begin to run a request's rows. The spans of one that was split over batches are their sums."""
        submitted = time.time_ns()
        parent = get_current()  # `done` is called outside of the request's context

        def note(outcome: Inference | Exception) -> None:
            if not isinstance(outcome, Exception):
                started = submitted + int(outcome.queue_seconds * 1e9)
                self._tracer.start_span("queue", parent, start_time=submitted).end(started)
                rows = {"inkserve.batch_rows": outcome.batch_rows}
                computing = self._tracer.start_span("compute", parent, start_time=started, attributes=rows)
                computing.end(started + int(outcome.compute_seconds * 1e9))
            done(outcome)

        return self._inner.begin(model, version, inputs, deadline, note)


class TracedApp:
    """An ASGI application whose requests are spans, continuing the trace that they belong to.

    route_of: the route of a request that was served, one of a closed set.
    """

    def __init__(self, app: App, route_of: Callable[[Scope], str], tracing: Tracing) -> None:
        self._app = app
        self._route_of = route_of
        self._tracer = tracing.tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        method = scope["method"]
        with self._tracer.start_as_current_span(
            method, extract(headers), kind=SpanKind.SERVER, attributes={"http.request.method": method}
        ) as span:
            traceparent = _traceparent(span)
            token = current_traceparent.set(traceparent)

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _note_status(span, message["status"])
                    message["headers"] = [*message["headers"], (RESPONSE, traceparent.encode("ascii"))]
                await send(message)

            try:
                await self._app(scope, receive, send_and_note)
            finally:
                current_traceparent.reset(token)
                route = self._route_of(scope)
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)


def _note_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(Status(StatusCode.ERROR))


def _traceparent(span: Span) -> str:
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span))
    return carrier["traceparent"]
