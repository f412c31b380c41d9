"""The outermost ASGI application: checks API keys, picks the endpoint, and catches the last errors."""

import time
from collections.abc import Awaitable, Callable, Mapping

from fastapi import FastAPI

from service.errors import Unauthorized
from service.http.api_keys import ApiKeys, permits
from service.http.disconnects import ClientDisconnected
from service.http.error_responses import error_response, plain_error
from service.http.fast.endpoint import FastPath
from service.http.lifecycle import Call, Lifecycle
from service.http.responses import Response
from service.http.types import RECEIVED_AT, Message, Receive, Scope, Send
from service.observability.request_ids import new_request_id, sent_request_id

CALL = "inkserve.call"
"""The scope's key for the `Call` of a request that FastAPI serves."""

AsgiEndpoint = Callable[[Scope, Receive, Call], Awaitable[Response]]


class Dispatch:
    """The outermost application: inference routes go to their endpoints, all others to FastAPI.

    endpoints: by path and method.
    keys: a request must send one of them, unless its path is open; None if no key is required.
    fast_path: answers its requests inside the HTTP protocol; they never come here.
    lifecycle: counts and logs every request.
    """

    def __init__(
        self,
        app: FastAPI,
        endpoints: Mapping[str, Mapping[str, AsgiEndpoint]],
        lifecycle: Lifecycle,
        keys: ApiKeys | None = None,
        fast_path: FastPath | None = None,
    ) -> None:
        self.app = app
        self.fast_path = fast_path
        self._endpoints = endpoints
        self.lifecycle = lifecycle
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = self._start(scope)
        endpoints = self._endpoints.get(scope["path"])
        if not permits(self._keys, scope["path"], scope["headers"]):
            await self._serve({scope["method"]: _reject_key}, call, scope, receive, send)
        elif endpoints is None:
            await self._pass_on(call, scope, receive, send)
        else:
            await self._serve(endpoints, call, scope, receive, send)

    def _start(self, scope: Scope) -> Call:
        path, client = scope["path"], scope.get("client")
        return Call(
            self.lifecycle,
            scope["method"],
            path,
            path if path in self._endpoints else "other",
            client[0] if client else "",
            dict(scope["headers"]),
            sent_request_id(scope["headers"]),
            received_at=scope.get(RECEIVED_AT) or time.monotonic(),
        )

    async def _serve(
        self, endpoints: Mapping[str, AsgiEndpoint], call: Call, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request to one of our own endpoints."""
        endpoint = endpoints.get(call.method)
        try:
            if endpoint is None:
                response = _method_not_allowed(call.method, endpoints)
            else:
                response = await endpoint(scope, receive, call)
        except ClientDisconnected:
            call.client_disconnected()
            return
        except Exception as error:  # the request's edge
            response = call.failed(error)
        else:
            call.answered(response)
        await response.send(send, call.headers())

    async def _pass_on(self, call: Call, scope: Scope, receive: Receive, send: Send) -> None:
        """Let FastAPI answer a request, and follow what it sends."""
        scope[CALL] = call
        call.request_id = call.request_id or new_request_id()
        status = 500

        async def send_and_note(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *call.headers()]
            await send(message)

        try:
            await self.app(scope, receive, send_and_note)
        except Exception as error:  # the request's edge; `_on_bug` in app.py has answered it
            error_response(error, call.request_id, call.traceparent)
        finally:
            call.route = getattr(scope.get("route"), "path", "other")
            call.ended(status)


async def _reject_key(scope: Scope, _: Receive, __: Call) -> Response:
    sent = "unknown" if any(n == b"authorization" for n, _ in scope["headers"]) else "missing"
    raise Unauthorized(f"API key is {sent}, expected Authorization: Bearer <key>")


def _method_not_allowed(method: str, endpoints: Mapping[str, AsgiEndpoint]) -> Response:
    allowed = ", ".join(endpoints)
    return plain_error(405, f"method is {method}, expected {allowed}", {"allow": allowed})
