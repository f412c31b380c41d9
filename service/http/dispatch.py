"""The outermost application: hot routes, API keys, counting, and the last to catch an error."""

import time
from collections.abc import Awaitable, Callable, Mapping
from functools import lru_cache

from fastapi import FastAPI

from service.errors import QueueFull, Unauthorized
from service.http.api_keys import ApiKeys
from service.http.disconnects import ClientDisconnected
from service.http.error_responses import REJECTIONS, error_answer, plain_error
from service.http.fast.endpoint import Direct
from service.http.responses import Answer
from service.http.types import MODEL, Message, Receive, Scope, Send
from service.observability.logs import log_access
from service.observability.metrics import Metrics
from service.observability.request_ids import REQUEST_ID, new_request_id, sent_request_id

OPEN = ("/", "/docs", "/openapi.json", "/metrics")
OPEN_BELOW = ("/v2/health/", "/docs/")
"""What needs no API key: probes, scrapes and documentation."""

ID = "inkserve.request_id"
"""The scope's key for the id of a request that FastAPI serves."""

CLIENT_CLOSED_REQUEST = 499
"""Not sent to anybody: the status, after nginx, under which a request is counted whose client left."""

Endpoint = Callable[[Scope, Receive], Awaitable[Answer]]


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
        if self._keys is None or is_open(scope["path"]):
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

    def refused(self, model: str, why: str) -> Answer:
        """The answer to a request for which the queue has no room, which is counted as rejected."""
        self._metrics.count_rejected(model, "queue_full")
        return _no_room(model, why)

    def count(self, route: str, answer: Answer, started: float) -> None:
        """Count a request that was answered without coming here; see `service.http.fast.endpoint`."""
        self._metrics.requests.count(route, answer.model, answer.status, time.perf_counter() - started)

    def _count(
        self, scope: Scope, route: str, model: str, status: int, started: float, request_id: bytes | None
    ) -> None:
        seconds = time.perf_counter() - started
        self._metrics.requests.count(route, model, status, seconds)
        if self._access_log and request_id is not None:
            log_access(scope, model, status, seconds, request_id)


def is_open(path: str) -> bool:
    """Whether requests to this path need no API key."""
    return path in OPEN or path.startswith(OPEN_BELOW)


@lru_cache(64)
def _no_room(model: str, why: str) -> Answer:
    return error_answer(QueueFull(why))._replace(model=model)


async def _refuse(scope: Scope, _: Receive) -> Answer:
    sent = "not one that is known" if any(n == b"authorization" for n, _ in scope["headers"]) else "missing"
    raise Unauthorized(f"API key is {sent}, expected Authorization: Bearer <key>")


def _method_not_allowed(method: str, endpoints: Mapping[str, Endpoint]) -> Answer:
    allowed = ", ".join(endpoints)
    return plain_error(405, f"method is {method}, expected {allowed}", {"allow": allowed})
