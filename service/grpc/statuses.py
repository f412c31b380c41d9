"""Maps errors to gRPC status codes: one table, beside HTTP's in `service.http.error_responses`."""

import grpc

from service.errors import (
    DeadlineExceeded,
    Forbidden,
    InkserveError,
    ModelNotFound,
    QueueFull,
    RequestError,
    RequestTimeout,
    Unauthorized,
    Unavailable,
)

STATUSES: dict[type[InkserveError], grpc.StatusCode] = {
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Unauthorized: grpc.StatusCode.UNAUTHENTICATED,
    Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    RequestTimeout: grpc.StatusCode.DEADLINE_EXCEEDED,
    RequestError: grpc.StatusCode.INVALID_ARGUMENT,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    QueueFull: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    InkserveError: grpc.StatusCode.INTERNAL,
}
"""An error gets the code of the first class that it is an instance of."""

MAX_DETAILS_CHARS = 1000
"""Details are a header, and a client accepts only 8 KiB of these unless told otherwise."""


def status_of(error: Exception) -> tuple[grpc.StatusCode, str]:
    """Return the code and the details of a request that failed; no details of unexpected errors."""
    for kind, code in STATUSES.items():
        if isinstance(error, kind):
            return code, str(error)[:MAX_DETAILS_CHARS]
    return grpc.StatusCode.INTERNAL, "internal error"
