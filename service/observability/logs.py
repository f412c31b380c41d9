"""Log lines on stderr, as text for people or as JSON for collectors.

A line's own fields are given as `extra={FIELDS: {...}}`.
"""

import logging
import sys
import time

import orjson

from service.settings import Settings

FIELDS = "fields"


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
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(fields).decode()


class TextFormatter(logging.Formatter):
    """One line of text, with its own fields at the end."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802, logging's name
        """Render one record without its exception."""
        fields = getattr(record, FIELDS, {})
        return " ".join([super().formatMessage(record), *(f"{name}={fields[name]}" for name in fields)])


def request_fields(request_id: bytes, traceparent: bytes | None = None) -> dict[str, str]:
    """Return the fields that identify a request in a line: its id, and its trace if it is traced."""
    fields = {"request_id": request_id.decode("ascii")}
    if traceparent is not None:
        fields["trace_id"] = traceparent[3:35].decode("ascii")
    return fields


def configure_logging(settings: Settings) -> None:
    """Send every logger's lines to stderr, in the format and from the level that the settings name."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    logging.basicConfig(handlers=[handler], level=settings.log_level.upper(), force=True)
