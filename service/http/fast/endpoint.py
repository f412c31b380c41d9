"""Hot requests answered by the HTTP protocol itself: whole request in, whole answer out, without ASGI.

A scope, a task, two messages in and two out cost more than the rest of a small request together. What is
not plain (chunked, pipelined, HTTP/1.0, any path or form that no endpoint here takes) goes the usual way.
Knows nothing of models or of sockets.
"""

import time
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Protocol

from service.errors import InkserveError
from service.http.api_keys import ApiKeys
from service.http.disconnects import ClientDisconnected
from service.http.fast.head import Head, parse_head
from service.http.responses import Answer
from service.observability.request_ids import new_request_id
from service.serving.predictor import Cancel, Done, Inference

Body = bytes | memoryview

REMEMBERED_HEADS = 1024
"""Clients send the same head again and again; reading it once more costs 10 us, finding it 0.2 us."""

MAX_HEAD_BYTES = 4096
"""A longer head goes the usual way, so that what is remembered stays small."""


class Plan(Protocol):
    """What an endpoint does for all requests with one head."""

    model: str

    def holds(self) -> bool:
        """Whether the plan is still right; another is made otherwise."""
        ...

    def takes(self, body: Body) -> bool:
        """Whether this body can be answered here."""
        ...

    def refusal(self) -> str | None:
        """Why there is no room for such a request now, if that is known before its body is read."""
        ...

    def begin(self, body: Body, done: Done) -> Cancel:
        """Begin; see `Predictor.begin`. Raises the errors of the domain."""
        ...

    def answer(self, inference: Inference) -> Answer:
        """The answer that an inference makes."""
        ...


class Endpoint(Protocol):
    """An endpoint that answers some of its requests here."""

    def plan(self, head: Head) -> Plan | None:
        """How to answer requests with this head; None, or an error of the domain, sends them to ASGI."""
        ...


class Observer(Protocol):
    """Who counts the requests and turns errors into answers; `service.http.dispatch.Front`."""

    def failure(self, error: Exception, model: str, request_id: bytes) -> Answer:
        """The answer to a request that failed, which is counted as rejected if it was."""
        ...

    def refused(self, model: str, why: str) -> Answer:
        """The answer to a request for which the queue has no room, which is counted as rejected."""
        ...

    def count(self, route: str, answer: Answer, started: float) -> None:
        """Count a request that was answered. started: on the clock of `time.perf_counter`."""
        ...


class Direct:
    """The endpoints by their paths, and who observes them.

    keys: one of which a request must bring; those without are left to ASGI, which says so.
    """

    def __init__(
        self, endpoints: Mapping[bytes, Endpoint], observer: Observer, keys: ApiKeys | None = None
    ) -> None:
        self._endpoints = endpoints
        self._keys = keys
        self.observer = observer
        self._route = lru_cache(REMEMBERED_HEADS)(self._make_route)

    def route(self, head: bytes) -> "Route | None":
        """How to answer a request with this head, up to and with its empty line; None: through ASGI."""
        if len(head) > MAX_HEAD_BYTES:
            return None
        route = self._route(head)
        return route if route is not None and route.holds() else None

    def _make_route(self, head: bytes) -> "Route | None":
        parsed = parse_head(head)
        if parsed is None:
            return None
        endpoint = self._endpoints.get(parsed.path)
        return None if endpoint is None else Route(parsed, endpoint, self.observer, self._keys)


class Route:
    """A head that is known, and the plan for it, which is made anew when it does not hold any more."""

    def __init__(
        self, head: Head, endpoint: Endpoint, observer: Observer, keys: ApiKeys | None = None
    ) -> None:
        self.path = head.path.decode("ascii")
        self.content_length = head.content_length
        self.request_id = head.request_id
        self.observer = observer
        self._head = head
        self._endpoint = endpoint
        self._keys = keys
        self._permitted_by: int | None = None
        self.plan: Plan | None = None

    def holds(self) -> bool:
        """Whether there is a plan, and the key is a good one; makes a plan if need be."""
        if self._keys is not None and self._permitted_by != self._keys.generation:
            if not self._keys.permits(self._head.headers.items()):
                return False
            self._permitted_by = self._keys.generation
        try:
            if self.plan is None or not self.plan.holds():
                self.plan = self._endpoint.plan(self._head)
        except InkserveError:
            self.plan = None  # the usual way says what is wrong
        return self.plan is not None

    def refuse(self, reply: Callable[[Answer, bytes | None], None]) -> bool:
        """Whether such a request has no room now; it is answered then, as cheaply as can be."""
        if self.plan is None or (why := self.plan.refusal()) is None:
            return False
        self.reply_refused(self.plan, why, time.perf_counter(), reply)
        return True

    def reply_refused(
        self, plan: Plan, why: str, started: float, reply: Callable[[Answer, bytes | None], None]
    ) -> None:
        """Answer a request that was refused. started: on the clock of `time.perf_counter`."""
        answer = self.observer.refused(plan.model, why)
        self.observer.count(self.path, answer, started)
        reply(answer, self.request_id or new_request_id())


class Call:
    """A request that is being answered. reply: told the answer, and the request's id, if it has one."""

    __slots__ = ("_cancel", "_reply", "_route", "_started", "plan")

    def __init__(self, route: Route, plan: Plan, reply: Callable[[Answer, bytes | None], None]) -> None:
        self._started = time.perf_counter()
        self._route = route
        self.plan = plan
        self._reply = reply
        # It leads back here. Who does not let go of it at the end leaves a circle, which keeps the body until
        # garbage is looked for.
        self._cancel: Cancel | None = None

    def begin(self, body: Body) -> None:
        """Begin; the reply may come at once."""
        try:
            self._cancel = self.plan.begin(body, self._done)
        except Exception as error:  # the request's edge
            self._fail(error)

    def refuse(self, why: str) -> None:
        """Answer that there was no room."""
        self._route.reply_refused(self.plan, why, self._started, self._reply)

    def client_left(self) -> None:
        """Nobody waits for the answer any more."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None
        observer = self._route.observer
        answer = observer.failure(ClientDisconnected(), self.plan.model, b"")
        observer.count(self._route.path, answer, self._started)

    def _done(self, outcome: Inference | Exception) -> None:
        self._cancel = None
        if isinstance(outcome, Exception):
            self._fail(outcome)
            return
        try:
            answer = self.plan.answer(outcome)
        except Exception as error:  # the request's edge
            self._fail(error)
            return
        self._route.observer.count(self._route.path, answer, self._started)
        self._reply(answer, self._route.request_id)

    def _fail(self, error: Exception) -> None:
        request_id = self._route.request_id or new_request_id()
        answer = self._route.observer.failure(error, self.plan.model, request_id)
        self._route.observer.count(self._route.path, answer, self._started)
        self._reply(answer, request_id)
