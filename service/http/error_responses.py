"""Maps errors to responses: one table of statuses, and one format of bodies."""

import logging
import math
import random
from collections.abc import Mapping
from functools import cache, lru_cache
from typing import NamedTuple

from service.errors import (
    BuffersFull,
    DeadlineExceeded,
    DeadlineUnreachable,
    Forbidden,
    InkserveError,
    ModelNotFound,
    ModelNotReady,
    NotAcceptable,
    PayloadTooLarge,
    QueueFull,
    RequestError,
    RequestTimeout,
    ShuttingDown,
    Unauthorized,
    Unavailable,
    UnsupportedCoding,
    UnsupportedMedia,
)
from service.http.disconnects import ClientDisconnected
from service.http.headers import (
    ACCEPT_ENCODING,
    ALLOW,
    REASON,
    RETRY_AFTER,
    WWW_AUTHENTICATE,
    Header,
)
from service.http.responses import Response, to_json
from service.observability.logs import FIELDS, request_fields
from service.observability.metrics import Rejection

logger = logging.getLogger(__name__)


class ErrorRow(NamedTuple):
    """The response to errors of one class.

    reason: what the status means, for the OpenAPI description.
    headers: sent with every response of this status; the value is None if it depends on the request.
    """

    status: int
    reason: str
    headers: tuple[tuple[Header, str | None], ...] = ()


_RETRY = ((RETRY_AFTER, "1"), (REASON, None))

ERRORS: dict[type[InkserveError], ErrorRow] = {
    ModelNotFound: ErrorRow(404, "The model or its version is unknown."),
    Unauthorized: ErrorRow(401, "The API key is missing or unknown.", ((WWW_AUTHENTICATE, "Bearer"),)),
    Forbidden: ErrorRow(403, "The API key lacks the scope of the path, or a client certificate is missing."),
    NotAcceptable: ErrorRow(406, "The Accept header allows no media type offered here."),
    PayloadTooLarge: ErrorRow(413, "The request has too many bytes, pixels or rows."),
    RequestTimeout: ErrorRow(408, "The body did not come in time; the connection is closed."),
    UnsupportedCoding: ErrorRow(
        415,
        "The body's Content-Encoding is not accepted here.",
        ((ACCEPT_ENCODING, "gzip, deflate, identity"),),
    ),
    UnsupportedMedia: ErrorRow(415, "The body's Content-Type is not accepted here."),
    RequestError: ErrorRow(400, "The request is not as expected; the error says what was seen."),
    DeadlineExceeded: ErrorRow(504, "The deadline passed before the request was run.", ((REASON, None),)),
    QueueFull: ErrorRow(
        429,
        "There is too much work: the model's queue is full, takes longer than the request's deadline, or the "
        "connections hold too many bytes.",
        ((RETRY_AFTER, None), (REASON, None)),
    ),
    ModelNotReady: ErrorRow(503, "The model is loading, draining or unavailable.", _RETRY),
    Unavailable: ErrorRow(503, "The service accepts no new requests.", _RETRY),
    InkserveError: ErrorRow(500, "The device failed, or inkserve has a bug; the log has the cause."),
}
"""An error gets the row of the first class that it is an instance of."""

METHOD_NOT_ALLOWED = ErrorRow(405, "The path does not have the request's method.", ((ALLOW, None),))
"""Has no error class, because the routers detect it."""

REJECTIONS: dict[type[Exception], Rejection] = {
    QueueFull: "queue_full",
    DeadlineUnreachable: "deadline_unreachable",
    BuffersFull: "buffers_full",
    DeadlineExceeded: "deadline",
    ModelNotReady: "not_ready",
    ShuttingDown: "shutting_down",
    Unavailable: "unavailable",
    ClientDisconnected: "client_left",
}


def error_response(error: Exception, request_id: bytes = b"", traceparent: bytes | None = None) -> Response:
    """Return the response to a request that failed.

    Server errors are logged; details of unexpected ones are not sent.
    """
    fields = {FIELDS: request_fields(request_id, traceparent)}
    if not isinstance(error, InkserveError):
        logger.error("a request failed", exc_info=error, extra=fields)
        return plain_error(500, "internal error")
    if isinstance(error, QueueFull):
        return too_much_work(REJECTIONS[type(error)], str(error), whole_seconds(error.retry_seconds))
    status = _row_of(type(error)).status  # type: ignore[arg-type]  # mypy considers a class unhashable
    if status == 500:
        logger.error("a request failed: %s", error, extra=fields)
    headers: dict[str, str] = {}
    if (reason := REJECTIONS.get(type(error))) is not None:
        headers[REASON.name] = reason
    if isinstance(error, UnsupportedCoding):
        # Other responses with 415 must not have its header (RFC 9110, section 12.5.3).
        headers |= {header.name: value or "" for header, value in ERRORS[UnsupportedCoding].headers}
    return plain_error(status, str(error), headers)


@lru_cache(256)
def too_much_work(reason: Rejection, message: str, retry_seconds: int) -> Response:
    """Return the response to a request that is shed."""
    headers = {RETRY_AFTER.name: str(retry_seconds), REASON.name: reason}
    return plain_error(429, message, headers)


def whole_seconds(seconds: float, chance: float | None = None) -> int:
    """Round a wait to whole seconds, at least 1: up or down by chance, so that the average stays.

    Otherwise clients that are told 1.1 s and 1.9 s would return together. chance: 0..1, drawn if None.
    """
    return max(1, math.floor(seconds + (random.random() if chance is None else chance)))


def row_of(kind: type[InkserveError]) -> ErrorRow:
    """Return the row for errors of this class."""
    return next(row for base, row in ERRORS.items() if issubclass(kind, base))


_row_of = cache(row_of)


_FIXED = {
    row.status: tuple((header.wire, value.encode("ascii")) for header, value in row.headers if value)
    for row in ERRORS.values()
}
"""The headers of each status whose values are always the same."""


def plain_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response whose JSON body is `{"error": message}`."""
    pairs = [
        (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()
    ]
    pairs += _FIXED.get(status, ())
    return Response(to_json({"error": message}), status=status, headers=tuple(pairs))
