"""The life cycle of every request: started, then answered, failed, rejected or abandoned; counted and logged.

The same for the fast path and for ASGI. Knows nothing of sockets, ASGI messages or models.
"""

import time
from typing import TYPE_CHECKING

from service.batching.request import InferenceResult
from service.errors import QueueFull
from service.http.disconnects import ClientDisconnected
from service.http.error_responses import REJECTIONS, error_response, too_much_work, whole_seconds
from service.http.headers import TRACERESPONSE
from service.http.responses import Response
from service.http.types import Headers
from service.observability.access_log import Access, AccessLog
from service.observability.histograms import FOLD_AT, Tally
from service.observability.load_reports import REPORT, LoadReports, ReportFormat
from service.observability.metrics import Metrics
from service.observability.request_ids import REQUEST_ID, new_request_id

if TYPE_CHECKING:
    from service.observability.tracing import RequestSpan, Tracing

CLIENT_CLOSED_REQUEST = 499
"""Never sent: counts requests whose client disconnected, as in nginx."""

OTHER_ROUTE = "other"
"""The route that requests for anything but our own endpoints are counted under."""

MALFORMED = "malformed"
"""The route that requests without a readable head are counted under."""

TRACE_RESPONSE = TRACERESPONSE.wire


class Lifecycle:
    """The metrics, log and traces that every request goes into, wherever it is answered.

    metrics: this process's own. access_log, tracing, load_reports: None if they are off.
    """

    def __init__(
        self,
        metrics: Metrics,
        access_log: AccessLog | None = None,
        tracing: "Tracing | None" = None,
        load_reports: LoadReports | None = None,
    ) -> None:
        self.metrics = metrics
        self.load_reports = load_reports
        self.access_log = access_log
        self.tracing = tracing
        self.tallies: dict[tuple[str, str, int], Tally] = {}

    def count_malformed(self, status: int) -> None:
        """Count a request that was no HTTP, or whose head came too slowly."""
        self.tally(MALFORMED, "", status).pending.append(0.0)

    def tally(self, route: str, model: str, status: int) -> Tally:
        """Return the tally of such responses."""
        key = route, model, status
        tally = self.tallies.get(key)
        if tally is None:
            tally = self.tallies[key] = self.metrics.requests.of(*key)
        return tally


class Call:
    """One request, from its arrival to its response.

    route: one of a closed set; `other` for unknown paths.
    model: the name of its model; empty until that is known.
    received_at: when its first byte came, on the clock of `time.monotonic`; its deadline counts from there.
    request_id: as the client sent it; otherwise one of ours, if a log line or the client needs it.
    api_key_name: of the API key that the client sent; see `service.http.api_keys.Admission`. The fast path
        sets it only for the access log, which alone reads it.
    report: the format of the load report that the response carries, None for none.
    scheme: of the client's own request; only its span asks.
    """

    api_key_name: str | None
    report: ReportFormat | None

    __slots__ = (
        "_lifecycle",
        "api_key_name",
        "client",
        "method",
        "model",
        "path",
        "received_at",
        "report",
        "request_id",
        "route",
        "span",
        "started",
    )

    def __init__(
        self,
        lifecycle: Lifecycle,
        method: str,
        path: str,
        route: str,
        client: str,
        headers: Headers,
        request_id: bytes | None,
        model: str = "",
        received_at: float = 0.0,
        scheme: str = "",
    ) -> None:
        self.received_at = received_at
        self.started = time.perf_counter()
        self._lifecycle = lifecycle
        self.method = method
        self.path = path
        self.route = route
        self.client = client
        self.request_id = request_id
        self.model = model
        tracing = lifecycle.tracing
        self.span: RequestSpan | None = None
        if tracing is not None:
            self.span = tracing.start_request(method, path, scheme, headers)

    @property
    def traceparent(self) -> bytes | None:
        """The trace context of the request's span, if tracing is on."""
        return None if self.span is None else self.span.header()

    def submitted(self) -> str | None:
        """Note that the rows are submitted now; returns the trace context to send with them, if sampled."""
        return None if self.span is None else self.span.submitted()

    def note_inference(self, result: InferenceResult) -> None:
        """Note the model's result in the request's span."""
        if self.span is not None:
            self.span.note_inference(result.queue_seconds, result.compute_seconds, result.batch_rows)

    def answered(self, response: Response) -> Response:
        """Count and log a request that gets this response; returns the response."""
        self.ended(response.status)
        return response

    def count_agreement(self, model: str, agreeing: int, read: int) -> None:
        """Count a generator's images that a classifier read. agreeing: those that show their label."""
        self._lifecycle.metrics.count_agreement(model, agreeing, read)

    def count_coalesced(self) -> None:
        """Count a request that got what another one computed."""
        self._lifecycle.metrics.count_coalesced(self.model)

    def rejected(self, error: QueueFull) -> Response:
        """Return the response to a request that was rejected because there is too much work."""
        reason = REJECTIONS[type(error)]
        self._lifecycle.metrics.count_rejected(self.model, reason)
        return self.answered(too_much_work(reason, str(error), whole_seconds(error.retry_seconds)))

    def failed(self, error: Exception) -> Response:
        """Return the response to a failed request; counts it as rejected if the error is a rejection."""
        reason = REJECTIONS.get(type(error))
        if reason is not None:
            self._lifecycle.metrics.count_rejected(self.model, reason)
        if self.span is not None:
            self.span.note_error(error)
        self.request_id = self.request_id or new_request_id()
        return self.answered(error_response(error, self.request_id, self.traceparent))

    def client_disconnected(self) -> None:
        """Count and log a request whose client has disconnected."""
        self._lifecycle.metrics.count_rejected(self.model, REJECTIONS[ClientDisconnected])
        self.ended(CLIENT_CLOSED_REQUEST)

    def ended(self, status: int) -> None:
        """Count and log a request that has its response."""
        seconds = time.perf_counter() - self.started
        lifecycle = self._lifecycle
        tally = lifecycle.tallies.get((self.route, self.model, status))
        if tally is None:
            tally = lifecycle.tally(self.route, self.model, status)
        tally.pending.append(seconds)
        if len(tally.pending) >= FOLD_AT:
            tally.fold()
        if self.request_id is None and (status >= 400 or lifecycle.access_log is not None):
            self.request_id = new_request_id()
        if self.span is not None:
            self.span.end(None if self.route == OTHER_ROUTE else self.route, status)
            exemplar = self.span.exemplar()
            if exemplar is not None:
                tally.note_exemplar(seconds, exemplar)
        if lifecycle.access_log is not None and self.request_id is not None:
            access = Access(
                self.method,
                self.path,
                status,
                seconds,
                self.model,
                self.client,
                self.request_id,
                self.traceparent,
                self.api_key_name,
            )
            lifecycle.access_log.log(access)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return this request's own response headers. Call it once the request is answered."""
        pairs = []
        if self.request_id is not None:
            pairs.append((REQUEST_ID, self.request_id))
        if self.span is not None:
            pairs.append((TRACE_RESPONSE, self.span.header()))
        reports = self._lifecycle.load_reports
        if self.report is not None and reports is not None:
            pairs.append((REPORT, reports.values[self.report]))
        return pairs
