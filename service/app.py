"""The HTTP application: its routes put together, and the one table from errors to answers."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import cache

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
from service.auth import ApiKeys
from service.direct import Direct
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
from service.logs import FIELDS, REQUEST_ID, log_access, new_request_id, request_fields, sent_request_id
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

OPEN = ("/", "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json", "/metrics")
OPEN_BELOW = "/v2/health/"
"""What needs no API key: probes, scrapes and documentation."""

ID = "inkserve.request_id"
"""The scope's key for the id of a request that FastAPI serves."""

CLIENT_CLOSED_REQUEST = 499
"""Not sent to anybody: the status, after nginx, under which a request is counted whose client left."""

Endpoint = Callable[[Scope, Receive], Awaitable[Answer]]
Gather = Callable[[], Awaitable[CollectorRegistry]]


def create_app(
    predictor: Predictor,
    settings: Settings,
    metrics: Metrics,
    gather: Gather | None = None,
    keys: ApiKeys | None = None,
) -> "Front":
    """The ASGI application over a predictor.

    metrics: where this process counts its requests.
    gather: the metrics of the whole service, where it has more processes than this one.
    keys: one of which each request must bring, but for those to `OPEN`.
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
    app.add_exception_handler(Exception, _on_bug)
    describe_hot_routes(app, with_keys=keys is not None)
    watch = DisconnectWatch()
    classify, generate = Classify(predictor, settings, watch), Generate(predictor, settings, watch)
    hot: dict[str, dict[str, Endpoint]] = {
        "/classify": {"POST": classify},
        "/generate": {"GET": generate, "POST": generate},
    }
    front = Front(app, hot, metrics, settings.access_log, keys)
    if not settings.access_log:
        front.direct = Direct({b"/classify": classify}, front, keys)
    return front


def error_answer(error: Exception, request_id: bytes = b"") -> Answer:
    """The answer to a request that failed. What is our fault is logged; bugs are told to nobody."""
    fields = {FIELDS: request_fields(request_id)}
    if not isinstance(error, InkserveError):
        logger.error("a request failed", exc_info=error, extra=fields)
        return _error(500, "internal error")
    status = _status_of(type(error))  # type: ignore[arg-type]  # mypy takes a class for unhashable
    if status == 500:
        logger.error("a request failed: %s", error, extra=fields)
    return _error(status, str(error))


@cache
def _status_of(kind: type[InkserveError]) -> int:
    return next(status for base, status in STATUS.items() if issubclass(kind, base))


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Answer:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (headers or {}).items()]
    if status == 503:
        pairs.append((b"retry-after", b"1"))
    if status == 401:
        pairs.append((b"www-authenticate", b"Bearer"))
    return Answer(to_json({"error": message}), status=status, headers=tuple(pairs))


class Front:
    """The outermost application: hot routes straight to their endpoints, all else to FastAPI.

    Counts every request and is the last to catch an error.
    direct: what the HTTP protocol may answer without coming here, if it may.
    """

    def __init__(
        self,
        app: FastAPI,
        hot: Mapping[str, Mapping[str, Endpoint]],
        metrics: Metrics,
        access_log: bool = False,
        keys: ApiKeys | None = None,
    ) -> None:
        self.app = app
        self._keys = keys
        self.direct: Direct | None = None
        self._hot = hot
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        endpoints = self._hot.get(scope["path"])
        if not self._permits(scope):
            await self._serve_hot({scope["method"]: _refuse}, scope, receive, send)
        elif endpoints is None:
            await self._cold(scope, receive, send)
        else:
            await self._serve_hot(endpoints, scope, receive, send)

    def _permits(self, scope: Scope) -> bool:
        if self._keys is None or scope["path"] in OPEN or scope["path"].startswith(OPEN_BELOW):
            return True
        return self._keys.permits(scope["headers"])

    async def _serve_hot(
        self, endpoints: Mapping[str, Endpoint], scope: Scope, receive: Receive, send: Send
    ) -> None:
        started = time.perf_counter()
        request_id = sent_request_id(scope["headers"])
        endpoint = endpoints.get(scope["method"])
        try:
            if endpoint is None:
                answer = _method_not_allowed(scope["method"], endpoints)
            else:
                answer = await endpoint(scope, receive)
        except Exception as error:  # the request's edge
            request_id = request_id or new_request_id()
            answer = self.failure(error, scope.get(MODEL, ""), request_id)
        if request_id is None and (self._access_log or answer.status >= 400):
            request_id = new_request_id()
        self._count(scope, self.route_of(scope), answer.model, answer.status, started, request_id)
        if answer.status != CLIENT_CLOSED_REQUEST:
            await answer.send(send, request_id)

    async def _cold(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        status = 500
        request_id = sent_request_id(scope["headers"]) or new_request_id()
        scope[ID] = request_id

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (REQUEST_ID, request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:  # the request's edge; it is answered already, by `_on_bug`
            error_answer(error, request_id)
        finally:
            self._count(scope, self.route_of(scope), "", status, started, request_id)

    def route_of(self, scope: Scope) -> str:
        """The route of a request that was served; "other" for all paths that there are not."""
        if scope["path"] in self._hot:
            return str(scope["path"])
        return getattr(scope.get("route"), "path", "other")

    def failure(self, error: Exception, model: str, request_id: bytes) -> Answer:
        """The answer to a request that failed, which is counted as rejected if it was."""
        reason = REJECTIONS.get(type(error))
        if reason is not None:
            self._metrics.count_rejected(model, reason)
        if isinstance(error, ClientDisconnected):
            return Answer(b"", status=CLIENT_CLOSED_REQUEST, model=model)
        return error_answer(error, request_id)._replace(model=model)

    def count(self, route: str, answer: Answer, started: float) -> None:
        """Count a request that was answered without coming here; see `service.direct`."""
        self._metrics.requests.count(route, answer.model, answer.status, time.perf_counter() - started)

    def _count(
        self, scope: Scope, route: str, model: str, status: int, started: float, request_id: bytes | None
    ) -> None:
        seconds = time.perf_counter() - started
        self._metrics.requests.count(route, model, status, seconds)
        if self._access_log and request_id is not None:
            log_access(scope, model, status, seconds, request_id)


async def _refuse(scope: Scope, _: Receive) -> Answer:
    sent = "not one that is known" if any(n == b"authorization" for n, _ in scope["headers"]) else "missing"
    raise Unauthorized(f"API key is {sent}, expected Authorization: Bearer <key>")


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


async def _on_error(request: Request, error: Exception) -> Response:
    return _as_response(error_answer(error, request.scope[ID]))


async def _on_bug(_: Request, __: Exception) -> Response:
    return _as_response(_error(500, "internal error"))


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
