"""The OpenAPI description, made from the objects that serve requests.

These are the models of bodies and queries, the media types that are negotiated, the headers and the table of
errors. FastAPI describes its own routes; those that run models do without it and are described here.
"""

from collections.abc import Callable, Iterator
from threading import Lock

import orjson
from fastapi import APIRouter, FastAPI, Request, Response
from pydantic.json_schema import models_json_schema

from service.errors import Forbidden, ModelNotReady, Unauthorized
from service.http import headers
from service.http.error_responses import METHOD_NOT_ALLOWED
from service.http.routes import examples
from service.http.routes.openapi_bodies import classify_schema, decode_schema, generate_schema
from service.http.routes.openapi_inference import inference_paths
from service.http.routes.openapi_objects import (
    REF,
    Json,
    by_text,
    describe_errors,
    describe_rows,
    header_entry,
    header_parameter,
)
from service.http.routes.schemas import (
    CaptionResponse,
    ClassifyRequest,
    ClassifyResponse,
    DecodeRequest,
    DecodeResponse,
    EncodeResponse,
    ErrorResponse,
    ExplainResponse,
    GenerateRequest,
    GenerateResponse,
    InterpolateResponse,
    ReconstructResponse,
    SearchResponse,
)
from service.http.routes.v2_schemas import InferenceRequest, InferenceResponse
from service.http.types import JSON
from service.models.catalogue import Catalogue
from service.serving.predictor import Predictor
from service.settings import Settings

NO_MODELS = Catalogue([])

BODIES = (
    *(ClassifyRequest, ClassifyResponse, GenerateRequest, GenerateResponse),
    *(SearchResponse, CaptionResponse, EncodeResponse, DecodeRequest, DecodeResponse),
    *(ReconstructResponse, InterpolateResponse, ExplainResponse, ErrorResponse),
    *(InferenceRequest, InferenceResponse),
)


class Description:
    """The OpenAPI document of an application: made when it is first asked for, and again after a reload.

    needs_key: whether requests to a path need an API key; None if no keys are in use.
    """

    def __init__(
        self,
        app: FastAPI,
        predictor: Predictor,
        settings: Settings,
        needs_key: Callable[[str], bool] | None,
    ) -> None:
        self._app = app
        self._describe_the_rest = app.openapi
        self._predictor = predictor
        self._settings = settings
        self._needs_key = needs_key
        self._catalogue: Catalogue | None = None
        self._lock = Lock()

    def document(self) -> Json:
        """Return the document for the models that are served now. Takes 70 ms the first time; thread-safe."""
        models = self._models()
        with self._lock:
            if self._catalogue is not models:
                self._app.openapi_schema = None
                self._complete(self._describe_the_rest(), models)
                self._catalogue = models
            return self._app.openapi_schema or {}

    def routes(self) -> APIRouter:
        """Return the route of the document. It runs on a thread, because it would hold up the event loop."""
        router = APIRouter(include_in_schema=False)

        @router.get("/openapi.json")
        def openapi(request: Request) -> Response:
            root_path: str = request.scope.get("root_path", "").rstrip("/")
            servers: Json = {"servers": [{"url": root_path}]} if root_path else {}
            return Response(orjson.dumps(self.document() | servers), media_type=JSON)

        return router

    def _models(self) -> Catalogue:
        try:
            return self._predictor.models()
        except ModelNotReady:  # an HTTP worker that is not connected to the engine yet
            return NO_MODELS

    def _complete(self, document: Json, models: Catalogue) -> None:
        """Add to FastAPI's document what FastAPI cannot see."""
        document["paths"] = inference_paths(models, self._settings) | document["paths"]
        components = document.setdefault("components", {})
        schemas = components.setdefault("schemas", {})
        for never_sent in ("HTTPValidationError", "ValidationError"):
            schemas.pop(never_sent, None)
        schemas.update(_schemas())
        schemas["ClassifyRequest"] = classify_schema(models)
        schemas["GenerateRequest"] = generate_schema(models, self._settings)
        schemas["DecodeRequest"] = decode_schema(models, self._settings)
        if self._needs_key is not None:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        for path, operation in _operations(document):
            self._complete_operation(path, operation)
        shown = examples.model(models)
        if shown is not None:
            _fill_in(document, "name", shown.name)
            _fill_in(document, "version", shown.version)

    def _complete_operation(self, path: str, operation: Json) -> None:
        """Add what all operations have in common."""
        responses = operation["responses"]
        responses.pop("422", None)  # FastAPI's own: `service.http.app` answers 400 instead
        responses |= by_text(describe_rows([METHOD_NOT_ALLOWED]))
        if self._needs_key is not None and self._needs_key(path):
            responses |= by_text(describe_errors(Unauthorized, Forbidden))
        elif self._needs_key is not None:
            operation["security"] = []
        traced = self._settings.tracing != "off"
        sent = [headers.REQUEST_ID] + [headers.TRACEPARENT] * traced
        operation["parameters"] = operation.get("parameters", []) + [header_parameter(each) for each in sent]
        for response in responses.values():
            response.setdefault("headers", {}).setdefault(*header_entry(headers.REQUEST_ID, required=True))
            if traced:
                response["headers"].setdefault(*header_entry(headers.TRACERESPONSE, required=True))
        operation["responses"] = dict(sorted(responses.items()))


def _operations(document: Json) -> Iterator[tuple[str, Json]]:
    return ((path, operation) for path, item in document["paths"].items() for operation in item.values())


def _schemas() -> Json:
    _, document = models_json_schema([(body, "validation") for body in BODIES], ref_template=REF)
    schemas: Json = document["$defs"]
    return schemas


def _fill_in(document: Json, name: str, value: str | int) -> None:
    """Give a parameter of paths an example."""
    for _, operation in _operations(document):
        for parameter in operation["parameters"]:
            if (parameter["name"], parameter["in"]) == (name, "path"):
                parameter["example"] = value
