"""The gRPC codes of errors."""

import grpc
import pytest

from service.errors import InkserveError, InvalidInput
from service.grpc.statuses import MAX_DETAILS_CHARS, status_of
from service.http.error_responses import error_response

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    406: grpc.StatusCode.INVALID_ARGUMENT,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def all_errors(kind: type[InkserveError] = InkserveError) -> list[type[InkserveError]]:
    return [kind, *(each for child in kind.__subclasses__() for each in all_errors(child))]


@pytest.mark.parametrize("kind", all_errors())
def test_every_error_has_the_code_of_its_http_status(kind: type[InkserveError]) -> None:
    assert status_of(kind("why")) == (CODES[error_response(kind("why")).status], "why")


def test_details_of_unexpected_errors_are_not_sent() -> None:
    assert status_of(RuntimeError("a secret")) == (grpc.StatusCode.INTERNAL, "internal error")


def test_details_are_cut_to_what_clients_accept() -> None:
    assert len(status_of(InvalidInput("x" * 10_000))[1]) == MAX_DETAILS_CHARS
