"""Log lines on stderr, as text for people or as JSON for collectors; the ids that tell requests apart.

A line's own fields are given as `extra={FIELDS: {...}}`.
"""

import logging
import sys
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import orjson

from service.observability.trace_context import current_traceparent
from service.settings import Settings

access = logging.getLogger("inkserve.access")

FIELDS = "fields"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC, RFC 3339), level, logger, message, its own fields, the exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Render one record."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        fields = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


class TextFormatter(logging.Formatter):
    """One line for people, its own fields at the end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Render one record but for its exception."""
        fields = getattr(record, FIELDS, {})
        return " ".join([super().formatMessage(record), *(f"{name}={fields[name]}" for name in fields)])


def request_fields(request_id: bytes) -> dict[str, str]:
    """What tells a line's request apart: its id, and its trace where it is traced."""
    fields = {"request_id": request_id.decode("ascii")}
    traceparent = current_traceparent.get()
    if traceparent is not None:
        fields["trace_id"] = traceparent.split("-")[1]
    return fields


def log_access(scope: Mapping[str, Any], model: str, status: int, seconds: float, request_id: bytes) -> None:
    """One line for a request that was answered. Its query is the caller's affair and left out."""
    client = scope.get("client")
    fields = {
        "method": scope["method"],
        "path": quote(scope["path"]),
        "status": status,
        "seconds": round(seconds, 6),
        "model": model,
        "client": client[0] if client else "",
        **request_fields(request_id),
    }
    access.info("answered", extra={FIELDS: fields})


def configure_logging(settings: Settings) -> None:
    """Send every logger's lines to stderr in the format and from the level that the settings name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
