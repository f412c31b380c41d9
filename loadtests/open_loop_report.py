"""The report of an open-loop run: tables, targets and the figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

Json = dict[str, Any]

GOODPUT_SHARE = 0.95
REJECTION_SECONDS = 0.005

LATENESS = ("late_p50", "late_p99")

HEAD = (
    "load",
    "offered/s",
    "answered/s",
    "goodput/s",
    "429/s",
    "504/s",
    "failed",
    "p50 ms",
    "p99 ms",
    "p99.9 ms",
    "429 p50 / p99 / max ms",
    "waited",
    "lateness p50 / p99 ms",
    "generator's core",
    "",
)


def markdown(result: Json) -> str:
    """The whole report, in Markdown."""
    about, generator = result["machine"], result["generator"]
    half = generator["at_half"]
    lines = [
        "# Latency under load",
        "",
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}.",
        f"{about['cpu']}, {about['cores']} cores shared with the load generator; Linux {about['kernel']}, "
        f"Python {about['python']}.",
        "",
        f"Poisson arrivals, {result['seconds']:g} s per load. Latency counts from the time a request was "
        f"due; goodput is the requests answered 200 within {1e3 * result['deadline_seconds']:g} ms of it. "
        "Each request sets that deadline (inkserve-timeout): a request that would be late gets 429 at once, "
        "one whose deadline passes in the queue gets 504.",
        "",
        "The generator sends at most "
        f"{generator['requests_per_second']:,.0f} requests/s to the empty ASGI app on the same cores, for "
        f"{1e6 * generator['cpu_seconds_per_request']:.0f} us of its own CPU time each; at half of that rate "
        f"its lateness is {_ms(half, LATENESS)} ms (p50 / p99). Loads at which the generator was the limit "
        "are marked *saturated* and say little about the server; *waited* counts requests that found every "
        "connection busy. The generator runs on the last core, at a higher priority than the server.",
    ]
    for scenario in result["scenarios"]:
        if scenario["points"]:
            lines += ["", *_scenario(scenario)]
    return "\n".join([*lines, ""])


def one_line(point: Json) -> str:
    """One point in one line, to follow a run."""
    return (
        f"load {point['load']:g}: {point['offered']:,.0f} offered, {point['goodput']:,.0f} good, "
        f"{point['rejected']:,.0f} 429, p99 {1e3 * point['p99_seconds']:.1f} ms"
        + (", generator saturated" if point["generator_saturated"] else "")
    )


def draw(result: Json, path: Path) -> None:
    """Draw latency and goodput over the offered load."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
    for scenario, colour in zip(result["scenarios"], ("tab:blue", "tab:orange", "tab:green"), strict=False):
        points = scenario["points"]
        loads = [point["load"] for point in points]
        label = f"{scenario['images']} image{'s' * (scenario['images'] > 1)} per request"
        for name, style in (("p50", ":"), ("p99", "-")):
            latencies = [1e3 * point[f"{name}_seconds"] or None for point in points]
            axes[0].plot(loads, latencies, style, marker=".", color=colour, label=f"{label}, {name}")
        for name, style in (("goodput", "-"), ("rejected", ":")):
            shares = [point[name] / scenario["capacity"] for point in points]
            what = "429" if name == "rejected" else name
            axes[1].plot(loads, shares, style, marker=".", color=colour, label=f"{label}, {what}")
    axes[0].set(yscale="log", ylabel="latency of answered requests, ms")
    axes[1].set(ylabel="requests/s, in capacities")
    for axis in axes:
        axis.set(xscale="log", xlabel="offered load, in capacities")
        ticks = [0.1, 0.25, 0.5, 1, 2, 5]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    about = result["machine"]
    figure.suptitle(
        f"inkserve, {about['cpu']}, {about['cores']} cores shared with the generator", fontsize=10
    )
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _scenario(scenario: Json) -> list[str]:
    points = scenario["points"]
    return [
        f"## {scenario['images']} image(s) per request",
        "",
        f"Capacity, the best goodput of five rates: {scenario['capacity']:,.0f} requests/s. A closed loop of "
        f"64 connections, which fills the batches: {scenario['closed_loop']:,.0f}.",
        "",
        _row(HEAD),
        _row(["---"] * len(HEAD)),
        *(_point(point) for point in points),
        "",
        *_targets(points),
    ]


def _point(point: Json) -> str:
    rejections = ("rejected_p50", "rejected_p99", "rejected_max")
    return _row(
        [
            f"{point['load']:g}",
            *(
                f"{point[key]:,.0f}"
                for key in ("offered", "answered", "goodput", "rejected", "expired", "failed")
            ),
            *(_ms(point, [key]) if point["answered"] else "" for key in ("p50", "p99", "p999")),
            _ms(point, rejections) if point["rejected"] else "",
            f"{point['waited']:,}",
            _ms(point, LATENESS),
            f"{point['generator_cpu_share']:.0%}",
            "*saturated*" if point["generator_saturated"] else "",
        ]
    )


def _targets(points: Sequence[Json]) -> list[str]:
    """The targets at twice the capacity and beyond: goodput as at its best, and quick rejections."""
    peak = max(point["goodput"] for point in points if point["load"] < 2)
    lines = ["| target | wanted | measured | |", "|---|---|---|---|"]
    for point in (point for point in points if point["load"] >= 2):
        share = point["goodput"] / peak if peak else 0.0
        name = f"{point['load']:g}x overload"
        limit = f">= {GOODPUT_SHARE:.0%}"
        lines.append(
            f"| {name}: goodput of its peak | {limit} | {share:.0%} | {_verdict(share >= GOODPUT_SHARE)} |"
        )
        slowest = point["rejected_p99_seconds"]
        quick = bool(point["rejected"]) and slowest <= REJECTION_SECONDS
        seen = f"{1e3 * slowest:.1f} ms" if point["rejected"] else "none"
        lines.append(f"| {name}: p99 of 429 responses | <= 5 ms | {seen} | {_verdict(quick)} |")
        lines.append(
            f"| {name}: failed otherwise | 0 | {point['failed']:,} | {_verdict(not point['failed'])} |"
        )
    return lines


def _verdict(passed: bool) -> str:
    return "pass" if passed else "miss"


def _ms(point: Json, names: Sequence[str]) -> str:
    return " / ".join(f"{1e3 * point[f'{name}_seconds']:.2f}" for name in names)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
