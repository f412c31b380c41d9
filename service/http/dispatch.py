"""The outermost ASGI application: checks API keys, picks the endpoint, and catches the last errors."""

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from types import MappingProxyType

from fastapi import FastAPI

from service.errors import Forbidden, InkserveError
from service.http.api_keys import PROBES_BELOW, ApiKeys, admit
from service.http.cors import METHODS
from service.http.disconnects import ClientDisconnected
from service.http.edge import Edge
from service.http.error_responses import error_response, plain_error
from service.http.fast.endpoint import FastPath
from service.http.headers import ALLOW
from service.http.lifecycle import OTHER_ROUTE, Call, Lifecycle
from service.http.paths import Family, find
from service.http.responses import Response
from service.http.types import CALL, CLIENT_CERTIFICATE, RECEIVED_AT, Message, Receive, Scope, Send
from service.observability.request_ids import new_request_id, sent_request_id

UNCERTIFIED = f"client certificate is missing, expected one: only {PROBES_BELOW} needs none"

AsgiEndpoint = Callable[[Scope, Receive, Call], Awaitable[Response]]

Methods = Mapping[str, AsgiEndpoint]
"""A path's endpoints by method."""


class Dispatch:
    """The outermost application: inference routes go to their endpoints, all others to FastAPI.

    endpoints: by path and method. families: those of paths with parameters, which `path_params` of the scope
        holds for them.
    keys: a request must send one of them, unless its path is open; None if no key is required.
    fast_path: answers its requests inside the HTTP protocol; they never come here.
    lifecycle: counts and logs every request.
    edge: the path prefix, trusted proxies and other origins; nothing of these by default.
    """

    def __init__(
        self,
        app: FastAPI,
        endpoints: Mapping[str, Methods],
        lifecycle: Lifecycle,
        keys: ApiKeys | None = None,
        fast_path: FastPath | None = None,
        edge: Edge | None = None,
        families: Mapping[Family, Methods] = MappingProxyType({}),
    ) -> None:
        self.app = app
        self.fast_path = fast_path
        self._endpoints = endpoints
        self._families = families
        self.lifecycle = lifecycle
        self._keys = keys
        self._edge = edge or Edge()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = self._edge.route_path(scope["path"])
        route, endpoints = self._find(path, scope)
        call = scope[CALL] = self._start(scope, path, route)
        cors, method = self._edge.cors, call.method
        call.api_key_name, rejected = admit(self._keys, path, scope["headers"])
        if self._edge.needs_certificate and not _is_certified(scope, path):
            await self._serve({method: _rejecting(Forbidden(UNCERTIFIED))}, call, scope, receive, send)
            return
        preflight = None if cors is None else cors.preflight(scope)
        if cors is not None and preflight is None:
            send = cors.adding(scope, send)
        if method == "HEAD":
            send = _without_body(send)
        if preflight is not None:
            await self._serve({method: _always(preflight)}, call, scope, receive, send)
        elif method == "OPTIONS" and path == "*":
            await self._serve({method: _always(allowing(METHODS, method))}, call, scope, receive, send)
        elif rejected is not None and method != "OPTIONS":
            await self._serve({method: _rejecting(rejected)}, call, scope, receive, send)
        elif endpoints is None:
            await self._pass_on(call, self._seen_by_fastapi(scope, path), receive, send)
        else:
            await self._serve(endpoints, call, scope, receive, send)

    def _find(self, path: str, scope: Scope) -> tuple[str, Methods | None]:
        """Return the route of a path and its endpoints; notes its parameters in the scope."""
        endpoints = self._endpoints.get(path)
        if endpoints is not None:
            return path, endpoints
        found = find(self._families, path)
        if found is not None:
            route, endpoints, scope["path_params"] = found
            return route, endpoints
        return OTHER_ROUTE, None

    def _start(self, scope: Scope, path: str, route: str) -> Call:
        headers = scope["headers"]
        call = Call(
            self.lifecycle,
            scope["method"],
            path,
            route,
            self._edge.client(scope.get("client"), headers),
            dict(headers),
            sent_request_id(headers),
            received_at=scope.get(RECEIVED_AT) or time.monotonic(),
            scheme="" if self.lifecycle.tracing is None else self._scheme(scope),
        )
        reports = self.lifecycle.load_reports
        call.report = None if reports is None else reports.format_for(dict(headers))
        return call

    def _scheme(self, scope: Scope) -> str:
        return self._edge.scheme(scope.get("client"), scope.get("scheme", "http"), scope["headers"])

    def _seen_by_fastapi(self, scope: Scope, path: str) -> Scope:
        """Return the scope as FastAPI needs it: with the path prefix, and GET in place of HEAD."""
        root = self._edge.root_path
        seen = {**scope, "root_path": root, "path": root + path}
        if scope["method"] == "HEAD":
            seen["method"] = "GET"
        client = scope.get("client")
        if client is not None:
            seen["client"] = (self._edge.client(client, scope["headers"]), client[1])
            seen["scheme"] = self._scheme(scope)
        return seen

    async def _serve(
        self, endpoints: Methods, call: Call, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request to one of our own endpoints."""
        endpoint = endpoints.get(call.method) or (endpoints.get("GET") if call.method == "HEAD" else None)
        try:
            if endpoint is None:
                response = allowing(endpoints, call.method)
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
            call.route = getattr(scope.get("route"), "path", OTHER_ROUTE)
            call.ended(status)


def _is_certified(scope: Scope, path: str) -> bool:
    """Whether the client has sent a certificate, or needs none for this path."""
    return bool(scope.get(CLIENT_CERTIFICATE)) or path.startswith(PROBES_BELOW)


def _rejecting(error: InkserveError) -> AsgiEndpoint:
    async def reject(scope: Scope, receive: Receive, call: Call) -> Response:
        del scope, receive, call
        raise error

    return reject


def allowing(methods: Collection[str], asked: str) -> Response:
    """Return the response to a method that a path does not have: for OPTIONS its methods, else an error.

    methods: those of its endpoints. HEAD comes with GET, OPTIONS with every path.
    """
    every = {*methods, "OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    listed = ", ".join(sorted(every))
    if asked == "OPTIONS":
        return Response(b"", status=204, headers=((ALLOW.wire, listed.encode("ascii")),))
    return plain_error(405, f"method is {asked[:40]}, expected {listed}", {"allow": listed})


def _always(response: Response) -> AsgiEndpoint:
    async def endpoint(_: Scope, __: Receive, ___: Call) -> Response:
        return response

    return endpoint


def _without_body(send: Send) -> Send:
    """Return a `send` for responses to HEAD: the headers are those of GET, and no body follows."""

    async def send_head(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return send_head
