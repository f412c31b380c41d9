"""A request on the fast path, and the bytes of its response."""

import time
from functools import lru_cache
from typing import Protocol

from service.batching.request import Outcome
from service.errors import DeadlineExceeded
from service.http.fast.endpoint import Body, BodyPlan, FastPath, KnownHead, Plan
from service.http.lifecycle import TRACE_RESPONSE, Call
from service.http.responses import Response
from service.observability.request_ids import REQUEST_ID
from service.serving.predictor import Cancel


class Replies(Protocol):
    """Where a call's response goes.

    client: the address of the client, if it is known. scheme: `https` over TLS, else `http`.
    """

    client: tuple[str, int] | None
    scheme: str

    def reply(self, call: "FastCall", response: Response) -> None:
        """Write the response of the connection's call."""
        ...


class FastCall(Call):
    """A request on the fast path."""

    __slots__ = ("_bound", "_cancel", "_connection", "plan")

    def __init__(
        self, connection: Replies, fast_path: FastPath, known: KnownHead, plan: Plan, received_at: float
    ) -> None:
        lifecycle = fast_path.lifecycle
        logged = lifecycle.access_log is not None  # nothing else asks who the client is, and for its key
        super().__init__(
            lifecycle,
            known.method,
            known.path,
            known.route,
            fast_path.edge.fast_client(connection.client, known.head.headers) if logged else "",
            known.head.headers,
            known.request_id,
            plan.model,
            received_at,
            "" if lifecycle.tracing is None else self._find_scheme(connection, fast_path, known),
        )
        if logged:
            self.api_key_name = known.api_key_name
        self.plan = plan
        self._bound: BodyPlan | None = None
        self.report = known.report
        self._connection = connection
        # Refers back to this call: cleared when done, or the reference cycle would keep the body until the
        # next collection.
        self._cancel: Cancel | None = None

    @staticmethod
    def _find_scheme(connection: Replies, fast_path: FastPath, known: KnownHead) -> str:
        return fast_path.edge.scheme(connection.client, connection.scheme, known.head.headers.items())

    @property
    def deadline(self) -> float:
        """When the response is due, if the body does not say."""
        return self.received_at + self.plan.timeout

    def submit(self, plan: BodyPlan, body: Body, *, admitted: bool) -> None:
        """Submit the body's rows; the reply may come at once. admitted: the body came with the head."""
        self._bound = plan
        try:
            if not admitted and time.monotonic() >= self.received_at + plan.timeout:
                raise DeadlineExceeded(f"the body came after the deadline of {plan.timeout:g} s")
            traceparent = None if self.span is None else self.submitted()
            self._cancel = plan.submit(body, traceparent, self._done, self.received_at, admitted=admitted)
        except Exception as error:  # the request's edge
            self._connection.reply(self, self.failed(error))

    def abandon(self) -> None:
        """Cancel the request, because its client has disconnected."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        self.client_disconnected()

    def own_lines(self) -> bytes:
        """Return this request's own response headers, as whole lines."""
        lines = b"" if self.request_id is None else b"%b: %b\r\n" % (REQUEST_ID, self.request_id)
        if self.span is not None:
            lines += b"%b: %b\r\n" % (TRACE_RESPONSE, self.span.header())
        reports = self._lifecycle.load_reports
        if self.report is not None and reports is not None:
            lines += reports.lines[self.report]
        return lines

    def _done(self, outcome: Outcome) -> None:
        self._cancel = None
        self._connection.reply(self, self._response(outcome))

    def _response(self, outcome: Outcome) -> Response:
        if isinstance(outcome, Exception):
            return self.failed(outcome)
        assert self._bound is not None
        try:
            if self.span is not None:
                self.note_inference(outcome)
            response = self._bound.respond(outcome)
        except Exception as error:  # the request's edge
            return self.failed(error)
        self.ended(response.status)
        return response


def encode(response: Response, status_line: bytes, default_lines: bytes, own_lines: bytes) -> bytes:
    """Return a response's bytes on the wire. default_lines, own_lines: further headers, as whole lines."""
    timing = b"server-timing: %b\r\n" % response.timing if response.timing else b""
    return b"%b%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        status_line,
        default_lines,
        _header_lines(response.content_type, response.headers),
        timing,
        own_lines,
        len(response.body),
        response.body,
    )


@lru_cache(256)
def _header_lines(content_type: str, headers: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """Encode the header lines that most responses of one kind share."""
    pairs = ((b"content-type", content_type.encode("latin-1")), *headers)
    return b"".join(b"%b: %b\r\n" % pair for pair in pairs)
