"""Load reports for balancers, as a response header carries them: ORCA (Open Request Cost Aggregation).

Follows what Envoy reads (source/common/orca/orca_parser.cc), and from what it computes a host's weight
(client_side_weighted_round_robin_lb.cc). Knows nothing of HTTP but a header's bytes.
"""

from collections.abc import Mapping
from typing import Literal

import orjson

from service.observability.load import IDLE, REPORT_SECONDS, Load

ReportFormat = Literal["text", "json"]
FORMATS: dict[bytes, ReportFormat] = {b"text": "text", b"json": "json"}

ASKS = b"endpoint-load-metrics-format"
"""The request header that asks for a report. Any other value than these is ignored: it may be for a proxy."""

REPORT = b"endpoint-load-metrics"

LEAST_UTILIZATION = 0.001
LEAST_RATE = 1 / REPORT_SECONDS
"""Envoy ignores a report of 0. A pod that answers is not idle: it has just had one request."""


def fields_of(load: Load) -> dict[str, float]:
    """Return the fields of a load report.

    eps: errors per second, requests that were shed among them, so that a pod that sheds fast does not look
        idle.
    """
    return {
        "application_utilization": round(max(LEAST_UTILIZATION, load.utilization), 4),
        "rps_fractional": round(max(LEAST_RATE, load.requests_per_second), 3),
        "eps": round(max(0.0, load.errors_per_second), 3),
    }


def to_text(load: Load) -> bytes:
    """Return a report in ORCA's native HTTP format."""
    return b"TEXT " + ",".join(f"{name}:{value}" for name, value in fields_of(load).items()).encode("ascii")


def to_json(load: Load) -> bytes:
    """Return a report as JSON."""
    return b"JSON " + orjson.dumps(fields_of(load))


class LoadReports:
    """The current report, encoded once for all responses until the next one.

    always: every response has a report; otherwise those whose requests ask for it.
    """

    def __init__(self, *, always: bool = False) -> None:
        self._always = always
        self.update(IDLE)

    def update(self, load: Load) -> None:
        """Report this load from now on."""
        self.values: dict[ReportFormat, bytes] = {"text": to_text(load), "json": to_json(load)}
        self.lines = {name: b"%b: %b\r\n" % (REPORT, value) for name, value in self.values.items()}

    def format_for(self, headers: Mapping[bytes, bytes]) -> ReportFormat | None:
        """Return the format of the report for a request with these headers; None for no report."""
        asked = headers.get(ASKS)
        if asked is None:
            return "text" if self._always else None
        return FORMATS.get(asked.lower(), "text" if self._always else None)
