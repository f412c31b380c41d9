"""CORS: which pages of other origins may call this service, by the methods of Starlette's middleware."""

from functools import partial

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware

from service.http import headers
from service.http.error_responses import plain_error
from service.http.responses import Response
from service.http.types import Receive, Scope, Send
from service.settings import parse_list

METHODS = ("GET", "HEAD", "OPTIONS", "POST")
MAX_AGE_SECONDS = 7200
"""How long a browser may remember a preflight's response; Chromium's own limit."""

ORIGIN = b"origin"
_REQUESTED_METHOD = b"access-control-request-method"


class Cors:
    """The origins that may call, and the headers that tell a browser so.

    A page may send every header and read every one of ours. Cookies are left out: this service has none, and
    the page itself must hold the API key that it sends.
    """

    def __init__(self, origins: str) -> None:
        self._middleware = CORSMiddleware(
            _never_called,
            allow_origins=parse_list(origins),
            allow_methods=METHODS,
            allow_headers=["*"],
            expose_headers=[each.name for each in vars(headers).values() if isinstance(each, headers.Header)],
            max_age=MAX_AGE_SECONDS,
        )

    def preflight(self, scope: Scope) -> Response | None:
        """Return the response to a preflight, or None if the request is none.

        It is 400 for an origin or a method that is not allowed.
        """
        names = [name for name, _ in scope["headers"]]
        if scope["method"] != "OPTIONS" or ORIGIN not in names or _REQUESTED_METHOD not in names:
            return None
        made = self._middleware.preflight_response(Headers(scope=scope))
        if made.status_code != 200:
            return plain_error(400, f"{bytes(made.body).decode()}, see the setting cors_origins")
        pairs = tuple(pair for pair in made.raw_headers if not pair[0].startswith(b"content-"))
        return Response(b"", status=204, headers=pairs)

    def adding(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that adds what a browser asks for to a response; not for preflights."""
        return partial(self._middleware.send, send=send, request_headers=Headers(scope=scope))


async def _never_called(_: Scope, __: Receive, ___: Send) -> None:
    raise AssertionError("only the middleware's methods are used")
