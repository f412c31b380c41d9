"""The report of a run: table, bounds and targets, in Markdown."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Json = dict[str, Any]
Combine = Callable[[Sequence[float]], float]

OURS = ("asgi", "inkserve")
"""Prefixes of rows that are not peers."""

HEAD = (
    "server",
    "format, configuration",
    "1 connection",
    "16",
    "64",
    "256",
    "p50 / p99 ms at 64",
    "at 256",
    "256-image bodies, images/s",
    "CPU us per request at 64",
    "errors",
    "RSS MB",
    "cold start s",
)


@dataclass(frozen=True)
class Round:
    """One round's figures. Methods raise KeyError for a figure that was not measured."""

    seen: Json
    cores: int

    def point(self, server: str, load: str, figure: str) -> float:
        """A figure of a server under a load: "1", "16", "64", "256" connections or "large" bodies."""
        return float(self.seen["servers"][server]["points"][load][figure])

    def engine(self, rows: int, figure: str) -> float:
        """A figure of onnxruntime alone."""
        return float(self.seen["onnxruntime"][str(rows)][figure])

    def rate(self, server: str, load: str = "64") -> float:
        """Requests per second."""
        return self.point(server, load, "requests_per_second")

    def best_peer(self) -> float:
        """Requests per second of the fastest peer at 64 connections."""
        peers = [name for name in self.seen["servers"] if not name.startswith(OURS)]
        return max(self.rate(name) for name in peers if "points" in self.seen["servers"][name])

    def least_cpu_seconds(self) -> float:
        """The minimum CPU time per image: its HTTP in Python, plus onnxruntime at its best batch."""
        sizes = self.seen["onnxruntime"]
        best = min(self.engine(rows, "cpu_seconds_per_image") for rows in map(int, sizes))
        return self.point("asgi", "64", "cpu_seconds_per_request") + best

    def bound(self) -> float:
        """Requests per second if the cores did only that and the load generator's work."""
        return self.cores / (
            self.least_cpu_seconds() + self.point("asgi", "64", "client_cpu_seconds_per_request")
        )

    def alone_excess_ms(self) -> float:
        """Milliseconds that inkserve adds to a lone request."""
        least = self.point("asgi", "1", "p50_seconds") + self.engine(1, "p50_seconds")
        return 1e3 * (self.point("inkserve", "1", "p50_seconds") - least)

    def start_excess(self) -> float:
        """Seconds from start to the first response, minus the imports of onnxruntime and fastapi."""
        return float(self.seen["servers"]["inkserve"]["cold_start_seconds"] - self.seen["import_seconds"])


@dataclass(frozen=True)
class Target:
    """A promise about one figure. combine: how the rounds are combined, by default with their median."""

    promise: str
    at_least: bool
    limit: float
    figure: Callable[[Round], float]
    combine: Combine = median

    def row(self, rounds: Sequence[Round]) -> str:
        """The target's row of the table."""
        wanted = f"{'>=' if self.at_least else '<='} {self.limit:g}"
        seen = list(_measured(self.figure, rounds))
        if not seen:
            return f"| {self.promise} | {wanted} | not measured | |"
        value = self.combine(seen)
        passed = value >= self.limit if self.at_least else value <= self.limit
        measured = _with_spread(value, seen, ".3g")
        return f"| {self.promise} | {wanted} | {measured} | {'pass' if passed else 'miss'} |"


TARGETS = (
    Target(
        "one image, 64 connections: times the hand-written batcher",
        True,
        3.0,
        lambda r: r.rate("inkserve") / r.rate("fastapi_batcher"),
    ),
    Target(
        "one image, 64 connections: times the fastest peer",
        True,
        1.0,
        lambda r: r.rate("inkserve") / r.best_peer(),
    ),
    Target(
        "one image, 64 connections: fraction of the bound",
        True,
        0.75,
        lambda r: r.rate("inkserve") / r.bound(),
    ),
    Target(
        "256-image bodies: fraction of onnxruntime alone",
        True,
        0.9,
        lambda r: r.point("inkserve", "large", "images_per_second") / r.engine(256, "images_per_second"),
    ),
    Target(
        "int8 model, 64 connections: times the fp32 model",
        True,
        2.0,
        lambda r: r.rate("inkserve-int8") / r.rate("inkserve"),
    ),
    Target("256 connections: errors", False, 0, lambda r: r.point("inkserve", "256", "errors"), max),
    Target(
        "256 connections: p99 over p50",
        False,
        5.0,
        lambda r: r.point("inkserve", "256", "p99_seconds") / r.point("inkserve", "256", "p50_seconds"),
    ),
    Target("one request alone: ms beyond empty ASGI app and onnxruntime", False, 0.3, Round.alone_excess_ms),
    Target("cold start: s beyond importing onnxruntime and fastapi", False, 1.0, Round.start_excess),
    Target(
        "RSS with every shipped model, MB",
        False,
        150,
        lambda r: r.seen["servers"]["inkserve"]["rss_bytes"] / 1e6,
        max,
    ),
)


def markdown(result: Json) -> str:
    """The whole report, in Markdown."""
    rounds = [Round(seen, result["machine"]["cores"]) for seen in result["rounds"]]
    return "\n".join(
        [
            *_preface(result),
            "",
            *_servers(result, rounds),
            "",
            *_bounds(rounds),
            "",
            *_targets(rounds),
            "",
        ]
    )


def one_line(seen: Json) -> str:
    """One server's measurement in one line, to follow a run."""
    if "failed" in seen:
        return f"failed: {seen['failed']}"
    points = seen["points"]
    return (
        f"{points['64']['requests_per_second']:,.0f} requests/s at 64 connections, "
        f"{points['large']['images_per_second']:,.0f} images/s in large bodies, "
        f"{seen['cold_start_seconds']:.1f} s to start"
    )


def _preface(result: Json) -> list[str]:
    about, options = result["machine"], result["options"]
    packages = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return [
        "# inkserve and its peers",
        "",
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}.",
        f"{about['cpu']}, {about['cores']} cores shared with the load generator, load average "
        f"{about['load_average_before']:.1f} before; Linux {about['kernel']}, Python {about['python']}, "
        f"{packages}.",
        "",
        "Requests per second that wrk counted, one image per request unless said otherwise; medians of "
        f"{len(result['rounds'])} round(s) of {options['seconds']:g} s per load, with the lowest and the "
        "highest if rounds differ. All servers have one model file and "
        f"{options['threads']} onnxruntime thread(s). Ratios are taken within a round.",
    ]


def _servers(result: Json, rounds: Sequence[Round]) -> list[str]:
    lines = [_row(HEAD), _row(["---"] * len(HEAD))]
    for name, configuration in result["servers"].items():
        lines.append(_server(name, configuration, rounds))
    return lines


def _server(name: str, configuration: str, rounds: Sequence[Round]) -> str:
    runs = [r.seen["servers"][name] for r in rounds if name in r.seen["servers"]]
    failures = [run["failed"] for run in runs if "failed" in run]
    good = [run for run in runs if "failed" not in run]
    if not good:
        reason = failures[0] if failures else "not run"
        return _row([name, configuration, f"failed: {_cell(reason)}", *[""] * (len(HEAD) - 3)])

    def figures(load: str, key: str) -> list[float]:
        return [run["points"][load][key] for run in good]

    def figure(load: str, key: str) -> float:
        return float(median(figures(load, key)))

    def spread(load: str, key: str, unit: float = 1.0) -> str:
        values = [value / unit for value in figures(load, key)]
        return _with_spread(median(values), values, ",.0f")

    def latency(load: str) -> str:
        return f"{1e3 * figure(load, 'p50_seconds'):.2f} / {1e3 * figure(load, 'p99_seconds'):.1f}"

    errors = sum(point["errors"] for run in good for point in run["points"].values())
    note = f" (failed in {len(failures)} of {len(runs)} rounds)" if failures else ""
    return _row(
        [
            name,
            configuration + note,
            *[spread(load, "requests_per_second") for load in ("1", "16", "64", "256")],
            latency("64"),
            latency("256"),
            spread("large", "images_per_second") if name != "asgi" else "",
            spread("64", "cpu_seconds_per_request", 1e-6),
            f"{errors:,}",
            f"{median(run['rss_bytes'] for run in good) / 1e6:,.0f}",
            f"{median(run['cold_start_seconds'] for run in good):.2f}",
        ]
    )


def _bounds(rounds: Sequence[Round]) -> list[str]:
    lines = ["| onnxruntime alone, batch | images/s | p50 ms | CPU us per image |", "|---|---|---|---|"]
    for rows in map(int, rounds[0].seen["onnxruntime"]):
        rate, p50, cpu = (
            median(r.engine(rows, figure) for r in rounds)
            for figure in ("images_per_second", "p50_seconds", "cpu_seconds_per_image")
        )
        lines.append(f"| {rows} | {rate:,.0f} | {1e3 * p50:.2f} | {1e6 * cpu:.0f} |")
    figures = (Round.bound, Round.least_cpu_seconds, _cpu_share, _engine_limit)
    values = [list(_measured(figure, rounds)) for figure in figures]
    if all(values):
        bound, least, share, engine = (median(value) for value in values)
        lines += [
            "",
            f"The bound at 64 connections is {bound:,.0f} requests/s: an image costs at "
            f"least {1e6 * least:.0f} us of CPU time, for the empty ASGI app and for onnxruntime at its best "
            "batch, and wrk uses its part of the cores. inkserve's CPU time per request is "
            f"{1 / share:.2f} times that. Without HTTP, onnxruntime allows {engine:,.0f} images/s.",
        ]
    return lines


def _cpu_share(r: Round) -> float:
    return r.least_cpu_seconds() / r.point("inkserve", "64", "cpu_seconds_per_request")


def _engine_limit(r: Round) -> float:
    return max(r.engine(int(rows), "images_per_second") for rows in r.seen["onnxruntime"])


def _targets(rounds: Sequence[Round]) -> list[str]:
    head = ["| target | wanted | measured | |", "|---|---|---|---|"]
    return [*head, *(target.row(rounds) for target in TARGETS)]


def _measured(figure: Callable[[Round], float], rounds: Sequence[Round]) -> Iterator[float]:
    """The figure of each round that measured everything it needs."""
    for r in rounds:
        try:
            yield figure(r)
        except (KeyError, ValueError, ZeroDivisionError):
            continue


def _with_spread(combined: float, values: Sequence[float], pattern: str) -> str:
    """What values are combined to, with the lowest and the highest of them unless these look alike."""
    told, lowest, highest = (format(value, pattern) for value in (combined, min(values), max(values)))
    return told if lowest == highest else f"{told} ({lowest} to {highest})"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(text: str) -> str:
    """Shorten and escape a text for a cell of a table."""
    return " ".join(text.replace("|", "/").split())[:300]
