"""A real Prometheus as a process of its own, and queries to it. Knows nothing of inkserve's metrics.

Requires Debian's package `prometheus`.
"""

import json
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loadtests.processes import terminate

Json = dict[str, Any]

START_SECONDS = 120.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.2


class NotListening(Exception):
    """Prometheus exited or did not listen in time; the message holds its log."""


class NotAnswered(Exception):
    """Prometheus rejected a query; the message holds its response."""


@dataclass(frozen=True)
class Line:
    """One series of an answer. times: seconds since the epoch, one per value."""

    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus and its HTTP interface."""

    url: str

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The data of `/api/v1/<path>`. Raises NotAnswered."""
        query = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise NotAnswered(f"{path}?{query}: {error.read().decode('utf-8', 'replace')}") from None

    def at(self, expression: str, when: float | None = None) -> list[Line]:
        """Query the expression at a time, by default now: lines with one value each."""
        moment = {} if when is None else {"time": when}
        result = self.ask("query", query=expression, **moment)["result"]
        return [_line(series["metric"], [series["value"]]) for series in result]

    def between(self, expression: str, start: float, end: float, step: float) -> list[Line]:
        """Query the expression over a period, with one value per `step` seconds."""
        result = self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [_line(series["metric"], series["values"]) for series in result]

    def label_values(self, label: str, selector: str) -> list[str]:
        """The sorted values of a label among the series that match the selector."""
        values = self.ask(f"label/{label}/values", **{"match[]": selector})
        return sorted(map(str, values))


def _line(labels: Mapping[str, str], samples: Sequence[tuple[float, str]]) -> Line:
    return Line(labels, [float(when) for when, _ in samples], [float(value) for _, value in samples])


def config(
    job: str, target: str, labels: Mapping[str, str], rules: Path, *, interval_seconds: int = 1
) -> Json:
    """A configuration that scrapes one target, host:port, and evaluates rules at the same interval."""
    every = f"{interval_seconds}s"
    return {
        "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": job, "static_configs": [{"targets": [target], "labels": dict(labels)}]}
        ],
    }


@contextmanager
def running(folder: Path, configuration: Json, *flags: str) -> Iterator[Prometheus]:
    """Run Prometheus, with its files in the folder, until the block ends. Raises NotListening.

    flags: more of its flags.
    """
    file, log = folder / "prometheus.yml", folder / "log"
    file.write_text(json.dumps(configuration))  # JSON is YAML too
    command = [
        "prometheus",
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
        "--log.format=json",
        *flags,
    ]
    with log.open("w") as stderr, subprocess.Popen(command, stderr=stderr) as process:
        try:
            yield Prometheus(_await_address(process, log))
        finally:
            terminate(process, STOP_SECONDS)


def _await_address(process: "subprocess.Popen[bytes]", log: Path) -> str:
    until = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < until:
        if address := _address(log):
            return f"http://{address}"
        time.sleep(POLL_SECONDS)
    raise NotListening(f"prometheus does not listen:\n{log.read_text()}")


def _address(log: Path) -> str | None:
    for line in log.read_text().splitlines(keepends=True):
        if line.endswith("\n") and json.loads(line).get("msg") == "Listening on":
            return str(json.loads(line)["address"])
    return None
