"""The Grafana dashboard as data: its panels, and a Prometheus's answers to their queries.

Reads helm/dashboards/inkserve.json as Grafana would, but only the kinds of panels and variables in that file;
any other kind raises. Knows nothing of drawing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.prometheus import Line, Prometheus
from loadtests.service_process import ROOT

FILE = ROOT / "helm" / "dashboards" / "inkserve.json"
KINDS = ("row", "stat", "timeseries", "heatmap")
LABEL_VALUES = re.compile(r"label_values\((.+), (\w+)\)")
SCRAPES_IN_RATE = 4
"""Grafana's $__rate_interval spans at least this many scrapes, so that a rate always sees two samples."""

Json = dict[str, Any]


class NotUnderstood(Exception):
    """The dashboard has a panel or variable that is not supported here."""


@dataclass(frozen=True)
class Query:
    """An expression with Grafana's variables, and the pattern of its lines' names."""

    expression: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. place: left, top, width, height, in Grafana's grid of 24 columns.

    thresholds: value and colour of a graph's horizontal lines, lowest first.
    """

    kind: str
    title: str
    place: tuple[int, int, int, int]
    unit: str
    queries: Sequence[Query]
    thresholds: Sequence[tuple[float, str]]
    has_legend: bool


@dataclass(frozen=True)
class Span:
    """The period to show, in seconds since the epoch, and the seconds between two scrapes."""

    start: float
    end: float
    scrape_seconds: int

    @property
    def rate_interval(self) -> str:
        """$__rate_interval, if a step of the picture does not hold many scrapes."""
        return f"{SCRAPES_IN_RATE * self.scrape_seconds}s"


@dataclass(frozen=True)
class Curve:
    """A line and the name that the panel gives it."""

    name: str
    line: Line


def panels(file: Path = FILE) -> list[Panel]:
    """Read every panel, rows included. Raises NotUnderstood."""
    return [_panel(panel) for panel in json.loads(file.read_text())["panels"]]


def _panel(panel: Json) -> Panel:
    if panel["type"] not in KINDS:
        raise NotUnderstood(
            f"panel {panel['title']} is a {panel['type']}, expected one of {', '.join(KINDS)}"
        )
    place, field = panel["gridPos"], panel.get("fieldConfig", {}).get("defaults", {})
    lines = field.get("custom", {}).get("thresholdsStyle", {}).get("mode") == "line"
    steps = field["thresholds"]["steps"] if lines else []
    return Panel(
        panel["type"],
        panel["title"],
        (place["x"], place["y"], place["w"], place["h"]),
        field.get("unit", "none"),
        [Query(target["expr"], target["legendFormat"]) for target in panel.get("targets", [])],
        [(step["value"], step["color"]) for step in steps if step["value"] is not None],
        panel.get("options", {}).get("legend", {}).get("showLegend", False),
    )


def variables(prometheus: Prometheus, file: Path = FILE) -> dict[str, str]:
    """The dashboard's variables as when Grafana opens it: each query's first value, or all of them."""
    chosen: dict[str, str] = {}
    for variable in json.loads(file.read_text())["templating"]["list"]:
        if variable["type"] == "datasource":
            continue
        if variable.get("includeAll"):
            chosen[variable["name"]] = variable["allValue"]
            continue
        found = LABEL_VALUES.fullmatch(fill(variable["query"], chosen))
        if not found:
            raise NotUnderstood(f"variable {variable['name']} is {variable['query']}, expected label_values")
        values = prometheus.label_values(found[2], found[1])
        if not values:
            raise NotUnderstood(f"variable {variable['name']} has no value in Prometheus")
        chosen[variable["name"]] = values[0]
    return chosen


def fill(text: str, values: Mapping[str, str]) -> str:
    """The text with its variables replaced. Raises NotUnderstood if one has no value."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in values:
            raise NotUnderstood(f"no value for ${match[1]} in {text}")
        return values[match[1]]

    return re.sub(r"\$(\w+)", value, text)


def number(prometheus: Prometheus, panel: Panel, values: Mapping[str, str], span: Span) -> float | None:
    """The figure of a single-figure panel at the end of the period; None without data."""
    (query,) = panel.queries
    lines = prometheus.at(_expression(query, values, span), span.end)
    return lines[0].values[0] if lines else None


def curves(prometheus: Prometheus, panel: Panel, values: Mapping[str, str], span: Span) -> list[Curve]:
    """The curves of a graph over the period, one point per scrape."""
    return [
        Curve(_name(query.legend, line.labels), line)
        for query in panel.queries
        for line in prometheus.between(
            _expression(query, values, span), span.start, span.end, span.scrape_seconds
        )
    ]


def _expression(query: Query, values: Mapping[str, str], span: Span) -> str:
    return fill(query.expression, {**values, "__rate_interval": span.rate_interval})


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend).strip()
