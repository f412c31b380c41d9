"""The HTTP application: its routes put together, and the one table from errors to answers."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from service.asgi import (
    MODEL,
    Answer,
    ClientDisconnected,
    DisconnectWatch,
    Message,
    Receive,
    Scope,
    Send,
    to_json,
)
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
    Unavailable,
    UnsupportedMedia,
)
from service.metrics import Metrics, Rejection, package_version
from service.predictor import Predictor
from service.routes import health, models
from service.routes.classify import Classify
from service.routes.generate import Generate
from service.routes.openapi import describe_hot_routes
from service.settings import Settings

logger = logging.getLogger(__name__)

STATUS: dict[type[InkserveError], int] = {
    ModelNotFound: 404,
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

CLIENT_CLOSED_REQUEST = 499
"""Not sent to anybody: the status, after nginx, under which a request is counted whose client left."""

Endpoint = Callable[[Scope, Receive], Awaitable[Answer]]
Gather = Callable[[], Awaitable[CollectorRegistry]]


def create_app(
    predictor: Predictor, settings: Settings, metrics: Metrics, gather: Gather | None = None
) -> "Front":
    """The ASGI application over a predictor.

    metrics: where this process counts its requests.
    gather: the metrics of the whole service, where it has more processes than this one.
    """
    app = FastAPI(
        title="inkserve",
        version=package_version(),
        description="Classifies and generates images, batching rows across requests on one device.",
    )
    app.include_router(health.routes(predictor))
    app.include_router(models.routes(predictor))
    _add_operations(app, metrics, gather)
    metrics.watch_ready(predictor.ready)
    app.add_exception_handler(InkserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    describe_hot_routes(app)
    watch = DisconnectWatch()
    classify, generate = Classify(predictor, settings, watch), Generate(predictor, settings, watch)
    hot: dict[str, dict[str, Endpoint]] = {
        "/classify": {"POST": classify},
        "/generate": {"GET": generate, "POST": generate},
    }
    return Front(app, hot, metrics)


def error_answer(error: Exception) -> Answer:
    """The answer to a request that failed; any error but our own is logged and told to nobody."""
    if not isinstance(error, InkserveError):
        logger.exception("a request failed", exc_info=error)
        return _error(500, "internal error")
    status = next(status for kind, status in STATUS.items() if isinstance(error, kind))
    return _error(status, str(error))


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if status == 503:
        pairs.append((b"retry-after", b"1"))
    return Answer(to_json({"error": message}), status=status, headers=pairs)


class Front:
    """The outermost application: hot routes straight to their endpoints, all else to FastAPI.

    Counts every request and is the last to catch an error.
    """

    def __init__(self, app: FastAPI, hot: Mapping[str, Mapping[str, Endpoint]], metrics: Metrics) -> None:
        self.app = app
        self._hot = hot
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        endpoints = self._hot.get(scope["path"])
        if endpoints is None:
            await self._cold(scope, receive, send)
        else:
            await self._serve_hot(endpoints, scope, receive, send)

    async def _serve_hot(
        self, endpoints: Mapping[str, Endpoint], scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = time.perf_counter()
        endpoint = endpoints.get(scope["method"])
        try:
            if endpoint is None:
                answer = _method_not_allowed(scope["method"], endpoints)
            else:
                answer = await endpoint(scope, receive)
        except Exception as error:  # the request's edge
            await self._fail(error, scope, send, started)
            return
        self._count(scope["path"], answer.model, answer.status, started)
        await answer.send(send)

    async def _cold(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        finally:
            route = scope.get("route")
            self._count(getattr(route, "path", "other"), "", status, started)

    async def _fail(self, error: Exception, scope: Scope, send: Send, started: float) -> None:
        route, model = scope["path"], scope.get(MODEL, "")
        reason = REJECTIONS.get(type(error))
        if reason is not None:
            self._metrics.count_rejected(model, reason)
        if isinstance(error, ClientDisconnected):
            self._count(route, model, CLIENT_CLOSED_REQUEST, started)
            return
        answer = error_answer(error)
        self._count(route, model, answer.status, started)
        await answer.send(send)

    def _count(self, route: str, model: str, status: int, started: float) -> None:
        self._metrics.count_request(route, model, status, time.perf_counter() - started)


def _method_not_allowed(method: str, endpoints: Mapping[str, Endpoint]) -> Answer:
    allowed = ", ".join(endpoints)
    return _error(405, f"method is {method}, expected {allowed}", {"allow": allowed})


def _add_operations(app: FastAPI, metrics: Metrics, gather: Gather | None) -> None:
    metrics.watch_process()

    @app.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/metrics", tags=["operations"], response_class=Response)
    async def prometheus_metrics(request: Request) -> Response:
        """Metrics, in the text format of Prometheus or of OpenMetrics."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        registry = metrics.registry if gather is None else await gather()
        return Response(encode(registry), media_type=content_type)


def _as_response(answer: Answer) -> Response:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
    return Response(answer.body, answer.status, headers, answer.content_type)


async def _on_error(_: Request, error: Exception) -> Response:
    return _as_response(error_answer(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        detail = f"there is no {request.url.path}, see /docs"
    return _as_response(_error(error.status_code, detail, error.headers))


async def _on_validation_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"][1:])
    return _as_response(_error(400, f"{name} is {str(problem['input'])[:80]!r}, expected: {problem['msg']}"))
