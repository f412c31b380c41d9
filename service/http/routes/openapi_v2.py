"""The OpenAPI description of the inference route of the Open Inference Protocol."""

from service.errors import (
    DeadlineExceeded,
    EngineError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    PayloadTooLarge,
    QueueFull,
    ShuttingDown,
    UnsupportedCoding,
)
from service.http import headers
from service.http.routes import examples
from service.http.routes.openapi_objects import (
    BINARY,
    Json,
    by_text,
    describe_errors,
    header_entry,
    header_parameter,
    json_body,
)
from service.http.routes.openapi_responses import named_example
from service.http.routes.v2_infer import PATHS
from service.http.routes.v2_schemas import InferenceRequest, InferenceResponse
from service.http.types import JSON, OCTETS
from service.models.catalogue import Catalogue
from service.models.manifest import MAX_VERSION

ERRORS = (
    *(InvalidInput, ModelNotFound, PayloadTooLarge, UnsupportedCoding),
    *(QueueFull, ModelNotReady, ShuttingDown, DeadlineExceeded, EngineError),
)

_NAME: Json = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
_VERSION: Json = {
    "name": "version",
    "in": "path",
    "required": True,
    "schema": {"type": "integer", "minimum": 1, "maximum": MAX_VERSION},
}


def infer_paths(models: Catalogue) -> Json:
    """Return the paths of the route, without and with a version."""
    latest, pinned = PATHS
    return {
        latest: {"post": _infer(models, "infer", [_NAME])},
        pinned: {"post": _infer(models, "infer_version", [_NAME, _VERSION])},
    }


def _infer(models: Catalogue, operation: str, path: list[Json]) -> Json:
    return {
        "tags": ["inference"],
        "summary": "Run a model on tensors",
        "operationId": operation,
        "description": "As the Open Inference Protocol has it, for clients of Triton, KServe and MLServer, "
        "and for models of any task. The bytes of tensors may follow the JSON, which is then as long as "
        f"`{headers.INFERENCE_HEADER.name}` says; with 0 there the body is the rows of the model's only "
        "input. `Content-Type` is not read. A body may be compressed (Content-Encoding gzip or deflate).",
        "parameters": [
            *(dict(each) for each in path),
            header_parameter(headers.INFERENCE_HEADER),
            header_parameter(headers.TIMEOUT),
            header_parameter(headers.PRIORITY),
            header_parameter(headers.LOAD_FORMAT),
        ],
        "requestBody": {
            "required": True,
            "content": {JSON: json_body(InferenceRequest) | _example(models)},
        },
        "responses": {"200": _answer()} | by_text(describe_errors(*ERRORS)),
    }


def _example(models: Catalogue) -> Json:
    shown = examples.model(models)
    return {} if shown is None else named_example("a row of zeros", examples.infer_body(shown))


def _answer() -> Json:
    answer: Json = {
        "description": "The outputs. With the bytes of one the response is application/octet-stream.",
        "headers": dict([header_entry(headers.SERVER_TIMING, required=True)]),
        "content": {JSON: json_body(InferenceResponse), OCTETS: BINARY},
    }
    for header in (headers.INFERENCE_HEADER, headers.REQUEST_ID, headers.LOAD):
        answer["headers"].update([header_entry(header, required=False)])
    return answer
