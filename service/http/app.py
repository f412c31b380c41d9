"""Assembles the HTTP application from its routes."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi import Response as FastApiResponse
from fastapi.exceptions import RequestValidationError
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match

from service.errors import InkserveError
from service.http.api_keys import ApiKeys, is_open
from service.http.disconnects import DisconnectWatch
from service.http.dispatch import AsgiEndpoint, Dispatch, allowing
from service.http.edge import Edge
from service.http.error_responses import error_response, plain_error
from service.http.fast.endpoint import FastPath
from service.http.lifecycle import Call, Lifecycle
from service.http.responses import Response
from service.http.routes import docs, health, models, playground, v2_infer, v2_models, v2_statistics
from service.http.routes.bodies import BodyDecoder
from service.http.routes.classify import Classify
from service.http.routes.explain import Explain
from service.http.routes.generate import Generate
from service.http.routes.interpolate import Interpolate
from service.http.routes.latents import Latents
from service.http.routes.openapi import Description
from service.http.routes.openapi_objects import describe_errors
from service.http.routes.search import Search
from service.http.types import CALL
from service.observability import protobuf_exposition
from service.observability.access_log import open_access_log
from service.observability.load_reports import LoadReports
from service.observability.metrics import Metrics, package_version
from service.observability.statistics import Gather, collect_statistics
from service.serving.predictor import Predictor
from service.settings import Settings

if TYPE_CHECKING:
    from service.observability.tracing import Tracing

METRICS_OFFERED = (
    *(choose_encoder(accept)[1].partition(";")[0] for accept in ("", "application/openmetrics-text")),
    protobuf_exposition.MEDIA_TYPE,
)
"""Media types of /metrics, the default one first."""

_TEXT = {"schema": {"type": "string"}}


def create_app(
    predictor: Predictor,
    settings: Settings,
    metrics: Metrics,
    gather: Gather | None = None,
    keys: ApiKeys | None = None,
    tracing: "Tracing | None" = None,
    load_reports: LoadReports | None = None,
) -> Dispatch:
    """Build the ASGI application over a predictor.

    metrics: this process's own; it counts requests there.
    gather: collects the metrics of the whole service, if it has several processes.
    keys: every request must send one of them, except to paths that `service.http.api_keys` leaves open.
    tracing: the spans of this process, if requests are traced.
    load_reports: what responses report of the service's load, if they do.
    """
    app = _bare_app()
    app.include_router(docs.routes())
    app.include_router(health.routes(predictor))
    app.include_router(models.routes(predictor, settings))
    # Before `/v2/models/{name}`, because `/v2/models/stats` is the statistics of all models.
    app.include_router(v2_statistics.routes(predictor, partial(collect_statistics, metrics, gather)))
    app.include_router(v2_models.routes(predictor, settings))
    _add_operations(app, metrics, gather)
    app.include_router(playground.routes(settings))
    metrics.watch_ready(predictor.ready)
    _add_error_handlers(app)
    needs_key = None if keys is None else lambda path: not is_open(path, keys)
    description = Description(app, predictor, settings, needs_key)
    app.openapi = description.document  # type: ignore[method-assign]
    app.include_router(description.routes())
    watch = DisconnectWatch()
    bodies = BodyDecoder(settings, watch, metrics.decode_seconds)
    shared = predictor, settings, watch, bodies, metrics.encode_seconds
    classify, generate, interpolate = Classify(*shared), Generate(*shared), Interpolate(*shared)
    search, latents, explain = Search(*shared), Latents(*shared), Explain(*shared)
    endpoints: dict[str, dict[str, AsgiEndpoint]] = {
        "/classify": {"POST": classify},
        "/generate": {"GET": generate, "POST": generate},
        "/search": {"GET": search.find, "POST": search.describe},
        "/encode": {"POST": latents.encode},
        "/decode": {"POST": latents.decode},
        "/reconstruct": {"POST": latents.reconstruct},
        "/interpolate": {"GET": interpolate},
        "/explain": {"POST": explain},
    }
    infer = v2_infer.Infer(*shared)
    access_log = open_access_log(settings.log_format) if settings.access_log else None
    lifecycle = Lifecycle(metrics, access_log, tracing, load_reports)
    edge = Edge.of(settings)
    fast_path = FastPath({b"/classify": classify}, lifecycle, keys, edge, {v2_infer.FAMILY: infer})
    return Dispatch(app, endpoints, lifecycle, keys, fast_path, edge, {v2_infer.FAMILY: {"POST": infer}})


def _bare_app() -> FastAPI:
    return FastAPI(
        title="inkserve",
        version=package_version(),
        description="Classifies and generates images, batching rows across requests on one device.",
        openapi_url=None,  # FastAPI's own route would make the description on the event loop
        docs_url=None,  # FastAPI's own pages load their files from another host
        redoc_url=None,
        redirect_slashes=False,  # to an address made of the Host that the client sent; see `Edge.route_path`
        generate_unique_id_function=lambda route: route.name,
    )


def _add_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(InkserveError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(Exception, _on_bug)


def _add_operations(app: FastAPI, metrics: Metrics, gather: Gather | None) -> None:
    metrics.watch_process()

    described = describe_errors(InkserveError) | {200: {"content": dict.fromkeys(METRICS_OFFERED, _TEXT)}}

    @app.get(
        "/metrics",
        tags=["operations"],
        summary="Metrics",
        response_class=FastApiResponse,
        responses=described,
    )
    async def prometheus_metrics(request: Request) -> FastApiResponse:
        """Return all metrics in Prometheus' text or protobuf format, or in that of OpenMetrics."""
        accept = request.headers.get("accept", "")
        encode, content_type = choose_encoder(accept)
        registry = metrics.registry if gather is None else await gather()
        if protobuf_exposition.is_wanted(accept):
            body, content_type = protobuf_exposition.encode(registry), protobuf_exposition.CONTENT_TYPE
        else:
            body = encode(registry)
        return FastApiResponse(body, media_type=content_type)


def _as_response(response: Response) -> FastApiResponse:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in response.headers}
    media_type = None if response.status == 204 else response.content_type
    return FastApiResponse(response.body, response.status, headers, media_type)


async def _on_error(request: Request, error: Exception) -> FastApiResponse:
    call: Call = request.scope[CALL]
    return _as_response(error_response(error, call.request_id or b"", call.traceparent))


async def _on_bug(_: Request, __: Exception) -> FastApiResponse:
    return _as_response(plain_error(500, "internal error"))


async def _on_http_error(request: Request, error: Exception) -> FastApiResponse:
    assert isinstance(error, HTTPException)
    detail = error.detail
    if error.status_code == 404:
        root_path = request.scope["root_path"]
        path = request.scope["path"].removeprefix(root_path)
        detail = f"path {path[:200]} is unknown, see {root_path}/docs"
    if error.status_code == 405:
        return _as_response(allowing(_methods(request), request.method))
    return _as_response(plain_error(error.status_code, detail, error.headers))


def _methods(request: Request) -> list[str]:
    """Return the methods that the routes of a request's path have."""
    routes: Sequence[BaseRoute] = request.app.routes
    asked = [(method, {**request.scope, "method": method}) for method in ("GET", "POST", "PUT", "DELETE")]
    return [
        method for method, scope in asked if any(route.matches(scope)[0] is Match.FULL for route in routes)
    ]


async def _on_validation_error(_: Request, error: Exception) -> FastApiResponse:
    assert isinstance(error, RequestValidationError)
    problem = error.errors()[0]
    name = ".".join(str(part) for part in problem["loc"][1:])
    return _as_response(
        plain_error(400, f"{name} is {str(problem['input'])[:80]!r}, expected: {problem['msg']}")
    )
