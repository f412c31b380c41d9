"""Log lines on stderr, as text for people or as JSON for collectors.

A line's own fields are given as `extra={FIELDS: {...}}`. No line blocks its caller, and none can be forged or
made to show a credential by what a client sends.
"""

import json
import logging
import sys
import threading
import time
from types import TracebackType
from typing import Any

import orjson

from service.observability.escaping import escape, escape_json, redact
from service.observability.log_writer import LogWriter
from service.observability.rate_limit import LINES, WINDOW_SECONDS, RateLimit, RateLimitFilter
from service.settings import Settings

FIELDS = "fields"

STDERR = 2

_INDENT = "    "


class JsonFormatter(logging.Formatter):
    """One JSON object per line.

    It has the time (UTC, RFC 3339), level, logger and message, the line's own fields and the exception.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
            **_own_fields(record),
        }
        if record.exc_info:
            fields["exception"] = redact(self.formatException(record.exc_info))
        try:
            return escape_json(orjson.dumps(fields, default=str).decode())
        except TypeError:  # halves of surrogate pairs, numbers beyond 64 bits
            return json.dumps(fields, default=str)


class TextFormatter(logging.Formatter):
    """One line of text, with its own fields at the end. An exception's lines are indented."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Render one record without its exception."""
        line = escape(redact(super().formatMessage(record)))
        return " ".join([line, *(f"{name}={_plain(value)}" for name, value in _own_fields(record).items())])

    def formatException(self, ei: Any) -> str:  # noqa: N802, logging's name
        """Render an exception, whose message may have lines of its own."""
        lines = redact(super().formatException(ei)).split("\n")
        return "\n".join(_INDENT + escape(line) for line in lines)


def _own_fields(record: logging.LogRecord) -> dict[str, object]:
    given: dict[str, object] = getattr(record, FIELDS, {})
    fields = {name: redact(value) if isinstance(value, str) else value for name, value in given.items()}
    suppressed = getattr(record, "suppressed", 0)
    return {**fields, "suppressed": suppressed} if suppressed else fields


def _plain(value: object) -> str:
    """Return a field's value; quoted if it could be taken for more than one field."""
    text = escape(redact(str(value)))
    return json.dumps(text, ensure_ascii=False) if any(char in text for char in ' ="') else text


def request_fields(request_id: bytes, traceparent: bytes | None = None) -> dict[str, str]:
    """Return the fields that identify a request in a line: its id, and its trace if it is traced."""
    fields = {"request_id": request_id.decode("ascii")}
    if traceparent is not None:
        fields["trace_id"] = traceparent[3:35].decode("ascii")
    return fields


def configure_logging(settings: Settings) -> LogWriter:
    """Send every logger's lines to stderr, in the format and from the level that the settings name.

    Warnings and exceptions that nothing catches become such lines too, and `sys.stderr` no longer blocks.
    Returns the stream, to be drained at the end.
    """
    formatter = JsonFormatter() if settings.log_format == "json" else TextFormatter()
    writer = LogWriter(STDERR, lambda lost: _lost_line(formatter, lost))
    handler = logging.StreamHandler(writer)
    handler.setFormatter(formatter)
    handler.addFilter(RateLimitFilter(RateLimit(LINES, WINDOW_SECONDS)))
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
    logging.captureWarnings(True)
    sys.stderr = writer
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    sys.unraisablehook = _log_unraisable
    return writer


def dropped_lines() -> int:
    """Return how many lines this process has dropped because stderr did not take them."""
    streams = [getattr(handler, "stream", None) for handler in logging.getLogger().handlers]
    return sum(stream.dropped for stream in streams if isinstance(stream, LogWriter))


def _lost_line(formatter: logging.Formatter, lost: int) -> str:
    message = "%d log lines were dropped: stderr did not take them"
    record = logging.LogRecord("inkserve", logging.WARNING, __file__, 0, message, (lost,), None)
    return formatter.format(record) + "\n"


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger("inkserve").critical("uncaught exception", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(caught: threading.ExceptHookArgs) -> None:
    if caught.exc_value is not None and not issubclass(caught.exc_type, SystemExit):
        name = "a thread" if caught.thread is None else f"thread {caught.thread.name}"
        logging.getLogger("inkserve").critical("uncaught exception in %s", name, exc_info=caught.exc_value)


def _log_unraisable(caught: "sys.UnraisableHookArgs") -> None:
    message = caught.err_msg or "ignored exception"
    logging.getLogger("inkserve").error("%s in %.200r", message, caught.object, exc_info=caught.exc_value)
