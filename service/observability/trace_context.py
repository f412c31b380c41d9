"""Which trace a request belongs to, handed on from HTTP to its batch. Knows nothing of OpenTelemetry."""

from contextvars import ContextVar

current_traceparent: ContextVar[str | None] = ContextVar("current_traceparent", default=None)
"""The span that the request is being served in, as W3C traceparent; None where nothing is traced."""
