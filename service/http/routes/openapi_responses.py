"""The responses of the inference routes in the OpenAPI description."""

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from service.errors import (
    DeadlineExceeded,
    EngineError,
    InkserveError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    NotAcceptable,
    PayloadTooLarge,
    QueueFull,
    ShuttingDown,
    UnsupportedCoding,
    UnsupportedMedia,
)
from service.http import headers
from service.http.headers import Header
from service.http.routes.openapi_objects import (
    BINARY,
    Json,
    by_text,
    describe_errors,
    header_entry,
    json_body,
)
from service.http.types import JSON

INFERENCE_ERRORS = (
    *(InvalidInput, ModelNotFound, NotAcceptable, PayloadTooLarge),
    *(UnsupportedMedia, UnsupportedCoding),
    *(QueueFull, ModelNotReady, ShuttingDown, DeadlineExceeded, EngineError),
)
"""The errors of a request with a body."""

SEARCH_ERRORS = tuple(
    error for error in INFERENCE_ERRORS if error not in (PayloadTooLarge, UnsupportedMedia, UnsupportedCoding)
)
"""The errors of a request without a body."""


def inference_responses(
    offered: Sequence[str],
    body: type[BaseModel],
    more: Sequence[Header],
    *,
    errors: Sequence[type[InkserveError]] = INFERENCE_ERRORS,
    raw: bool = True,
) -> dict[str, Json]:
    """Return an operation's responses. more: headers of some. raw: whether one may hold raw rows."""
    answer: Json = {
        "description": "The result.",
        "headers": dict([header_entry(headers.SERVER_TIMING, required=True)]),
        "content": {kind: json_body(body) if kind == JSON else BINARY for kind in offered},
    }
    shape = (headers.SHAPE,) if raw else ()
    for header in (headers.MODEL, headers.VERSION, *shape, *more, headers.REQUEST_ID, headers.LOAD):
        answer["headers"].update([header_entry(header, required=False)])
    return {"200": answer} | by_text(describe_errors(*errors))


def cached_responses(responses: Json) -> Json:
    """Return an operation's responses with what caches need, and with 304."""
    cached = [header_entry(each, required=False) for each in (headers.ETAG, headers.VARY)]
    always = header_entry(headers.CACHE_CONTROL, required=True)
    answer = responses["200"]
    described: Json = {
        "description": "The client has the response already, as If-None-Match says.",
        "headers": dict(
            [
                *(header_entry(headers.ETAG, required=True), always, cached[1]),
                *(header_entry(each, required=False) for each in (headers.REQUEST_ID, headers.LOAD)),
            ]
        ),
    }
    return responses | {
        "200": answer | {"headers": answer["headers"] | dict([*cached, always])},
        "304": described,
    }


def named_example(name: str, value: Mapping[str, object]) -> Json:
    """Return the part of a JSON body's description that has an example."""
    return {"examples": {name: {"value": value}}}
