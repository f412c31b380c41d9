"""From errors to answers: the one table, and the one form."""

import logging
from collections.abc import Mapping
from functools import cache

from service.errors import (
    DeadlineExceeded,
    InkserveError,
    ModelNotFound,
    ModelNotReady,
    NotAcceptable,
    PayloadTooLarge,
    QueueFull,
    RequestError,
    ShuttingDown,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
)
from service.http.disconnects import ClientDisconnected
from service.http.responses import Answer, to_json
from service.observability.logs import FIELDS, request_fields
from service.observability.metrics import Rejection

logger = logging.getLogger(__name__)

STATUS: dict[type[InkserveError], int] = {
    ModelNotFound: 404,
    Unauthorized: 401,
    NotAcceptable: 406,
    PayloadTooLarge: 413,
    UnsupportedMedia: 415,
    RequestError: 400,
    DeadlineExceeded: 504,
    Unavailable: 503,
    InkserveError: 500,
}
"""The first class that an error is an instance of gives its status."""

REJECTIONS: dict[type[Exception], Rejection] = {
    QueueFull: "queue_full",
    DeadlineExceeded: "deadline",
    ModelNotReady: "not_ready",
    ShuttingDown: "shutting_down",
    ClientDisconnected: "client_left",
}


def error_answer(error: Exception, request_id: bytes = b"") -> Answer:
    """The answer to a request that failed. What is our fault is logged; bugs are told to nobody."""
    fields = {FIELDS: request_fields(request_id)}
    if not isinstance(error, InkserveError):
        logger.error("a request failed", exc_info=error, extra=fields)
        return plain_error(500, "internal error")
    status = _status_of(type(error))  # type: ignore[arg-type]  # mypy takes a class for unhashable
    if status == 500:
        logger.error("a request failed: %s", error, extra=fields)
    return plain_error(status, str(error))


@cache
def _status_of(kind: type[InkserveError]) -> int:
    return next(status for base, status in STATUS.items() if issubclass(kind, base))


def plain_error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    """An error in the form that all of ours have."""
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if status == 503:
        pairs.append((b"retry-after", b"1"))
    if status == 401:
        pairs.append((b"www-authenticate", b"Bearer"))
    return Answer(to_json({"error": message}), status=status, headers=tuple(pairs))
