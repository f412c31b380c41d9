"""The command `python -m loadtests.simulation.scaling`: simulate scenarios, write a table and pictures."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
import yaml

from loadtests import machine
from loadtests.capacity import RESULT
from loadtests.interrupts import exit_code
from loadtests.outputs import add_output_arguments, chosen_output, replacing, shown, write_text
from loadtests.progress import doing, say
from loadtests.service_process import ROOT
from loadtests.simulation.autoscaler import SCALE_DOWN, Spec
from loadtests.simulation.cluster import ClusterOptions
from loadtests.simulation.costs import PodCosts, load_costs
from loadtests.simulation.scenario import Outcome, Rollout, Scenario, simulate
from loadtests.simulation.stationary import Stationary, stationary

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt

FOLDER = ROOT / "docs" / "scaling"
VALUES = ROOT / "helm" / "values.yaml"
TARGET = 0.6
"""The target of CPU and of requests, as a fraction of a pod's saturation; and the steady load."""
STEADY_SECONDS = 3 * 3600.0
DAY_SECONDS = 86_400.0
RATES = (10_000.0, 100_000.0, 1_000_000.0)
HEAD = (
    "scenario",
    "peak/s",
    "requests",
    "answered",
    "429",
    "expired",
    "refused",
    "p50 ms",
    "p99 ms",
    "over the target",
    "pods least/most",
    "pod-hours",
    "scale changes",
)

Rate = Callable[[float], float]


@dataclass(frozen=True)
class Family:
    """Scenarios that one picture compares."""

    name: str
    make: Callable[[float, PodCosts, ClusterOptions], list[Scenario]]


def replicas_for(rate: float, costs: PodCosts) -> int:
    """The pods for a rate at the autoscaler's target."""
    return max(2, math.ceil(rate / (TARGET * costs.saturation_rate)))


def chart_spec(max_replicas: int) -> Spec:
    """The autoscaler as the chart sets it up, for the gauge `inkserve_load`."""
    chart = yaml.safe_load(VALUES.read_text())["autoscaling"]
    down = replace(SCALE_DOWN, stabilization_window_seconds=chart["scaleDownStabilizationSeconds"])
    return Spec(chart["minReplicas"], max_replicas, chart["targetLoad"], scale_down=down)


def steady_scenarios(peak: float, costs: PodCosts, options: ClusterOptions) -> list[Scenario]:
    """A constant load of 60 % for three hours: nothing should happen."""
    pods = replicas_for(peak, costs)
    rate = TARGET * pods * costs.saturation_rate
    spec = chart_spec(2 * pods)
    return [
        Scenario("steady 60 %", STEADY_SECONDS, lambda _: rate, pods, options, spec, "load", tick_seconds=5.0)
    ]


def diurnal(peak: float) -> Rate:
    """A day as a cosine: a tenth of the peak at night, the peak in the afternoon."""
    return lambda now: peak * (0.55 - 0.45 * math.cos(2 * math.pi * now / DAY_SECONDS))


def flash_crowd(peak: float) -> Rate:
    """A fifth of the peak; at 300 s the peak within 30 s, for 15 minutes, and back within 60 s."""
    times, parts = (0, 300, 330, 1230, 1290), (0.2, 0.2, 1.0, 1.0, 0.2)
    return lambda now: peak * float(np.interp(now, times, parts))


def diurnal_scenarios(peak: float, costs: PodCosts, options: ClusterOptions) -> list[Scenario]:
    """The chart's autoscaler over a day, and one on CPU."""
    rate, most = diurnal(peak), 2 * replicas_for(peak, costs)
    start = replicas_for(rate(0), costs)
    cpu = Scenario("diurnal, CPU", DAY_SECONDS, rate, start, options, Spec(2, most, TARGET), tick_seconds=5.0)
    return [cpu, replace(cpu, name="diurnal, load", metric="load", spec=chart_spec(most))]


def flash_scenarios(peak: float, costs: PodCosts, options: ClusterOptions) -> list[Scenario]:
    """A flash crowd with remedies: another metric, room on the nodes, pods started in advance."""
    rate, most = flash_crowd(peak), 2 * replicas_for(peak, costs)
    start = replicas_for(rate(0), costs)
    spec = Spec(2, most, TARGET)
    roomy = replace(options, room=most)
    cpu = Scenario("flash crowd, CPU", 2400, rate, start, options, spec)
    by_rate = replace(cpu, name="flash crowd, requests", metric="requests")
    by_load = replace(cpu, name="flash crowd, load", metric="load", spec=chart_spec(most))
    room = replace(by_load, name="flash crowd, load, room on nodes", options=roomy)
    ahead = max(start, math.ceil(peak / (0.95 * costs.saturation_rate)))
    in_advance = replace(
        room,
        name="flash crowd, load, pods in advance",
        replicas=ahead,
        spec=replace(chart_spec(most), min_replicas=ahead),
    )
    return [cpu, by_rate, by_load, room, in_advance]


def rollout_scenarios(peak: float, costs: PodCosts, options: ClusterOptions) -> list[Scenario]:
    """A rolling update under steady load: fast, without a drain, and one pod at a time."""
    pods = replicas_for(peak, costs)
    quarter = math.ceil(pods / 4)
    one_by_one = pods * (options.start_seconds + options.image_seconds + options.probe_seconds + 2)
    roomy = replace(options, room=2 * pods)
    surge = Scenario(
        "rollout, maxSurge 25%", 900, lambda _: peak, pods, roomy, rollout=Rollout(60.0, quarter, 0)
    )
    hasty = replace(surge, name="rollout, maxSurge 25%, no drain", options=replace(roomy, drain_seconds=0.0))
    single = replace(
        surge,
        name="rollout, maxSurge 1",
        seconds=120 + one_by_one,
        rollout=Rollout(60.0, 1, 0),
        tick_seconds=2.0,
    )
    return [surge, hasty, single]


FAMILIES = (
    Family("steady", steady_scenarios),
    Family("diurnal", diurnal_scenarios),
    Family("flash-crowd", flash_scenarios),
    Family("rolling-update", rollout_scenarios),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code. Writes results.md, results.json and the pictures."""
    parsed = command_line().parse_args(arguments)
    costs = load_costs(parsed.measured)
    options = ClusterOptions(
        costs.start_seconds,
        image_seconds=parsed.image_seconds,
        node_seconds=parsed.node_seconds,
        endpoint_seconds=parsed.endpoint_seconds,
        drain_seconds=parsed.drain_seconds,
    )
    output = chosen_output(parsed, FOLDER, full=is_full_run(parsed))
    say("latencies at steady load")
    with doing("latencies at steady load"):
        usual = stationary(costs, parsed.seed)
    rows, drawn = [], []
    with TemporaryDirectory() as folder:
        for family, peak, outcomes in _outcomes(parsed.rates, costs, options, usual, parsed.seed):
            rows += [row_of(peak, outcome, parsed.p99) for outcome in outcomes]
            if peak == max(parsed.rates) and family.name != "steady":
                drawn.append(Path(folder) / f"{family.name}.png")
                draw(outcomes, parsed.p99, drawn[-1])
        for picture in drawn:
            with replacing(output / picture.name) as part:
                part.write_bytes(picture.read_bytes())
    _write(parsed, output, costs, options, rows)
    say(f"written: {shown(output)}/")
    return 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether these are the published scenarios."""
    defaults = command_line().parse_args([])
    return all(
        getattr(parsed, name) == value
        for name, value in vars(defaults).items()
        if name not in ("output", "publish")
    )


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.simulation.scaling", description=__doc__)
    add = parser.add_argument
    add("--measured", type=Path, default=RESULT, help=f"file of measured costs (default: {shown(RESULT)})")
    add("--rates", type=float, nargs="+", default=RATES, help="peaks in requests per second")
    add("--p99", type=float, default=0.05, help="target p99 in seconds (default: 0.05)")
    add("--image-seconds", type=float, default=5.0, help="seconds to pull the image (default: 5)")
    add("--node-seconds", type=float, default=90.0, help="seconds to add a node (default: 90)")
    add(
        "--endpoint-seconds",
        type=float,
        default=5.0,
        help="seconds until the balancers stop sending to a pod that stops (default: 5)",
    )
    add("--drain-seconds", type=float, default=10.0, help="INKSERVE_DRAIN_SECONDS (default: 10)")
    add("--seed", type=int, default=1, help="seed of the arrivals (default: 1)")
    add_output_arguments(parser, FOLDER, what="folder to write to")
    return parser


def _outcomes(
    rates: Sequence[float], costs: PodCosts, options: ClusterOptions, usual: Stationary, seed: int
) -> Iterator[tuple[Family, float, list[Outcome]]]:
    for family in FAMILIES:
        for peak in rates:
            scenarios = family.make(peak, costs, options)
            say(f"{family.name} to {peak:,.0f}/s")
            with doing(f"{family.name} to {peak:,.0f}/s"):
                outcomes = [simulate(scenario, costs, usual, seed) for scenario in scenarios]
            yield family, peak, outcomes


def row_of(peak: float, outcome: Outcome, p99_seconds: float) -> dict[str, Any]:
    """One row of the table; answered, shed, expired and refused are fractions of the requests."""
    tally, ready = outcome.tally, outcome.series["ready"]
    return {
        "scenario": outcome.scenario.name,
        "peak_rate": peak,
        "requests": tally.arrived,
        "answered": tally.answered / tally.arrived,
        "shed": tally.shed / tally.arrived,
        "expired": tally.expired / tally.arrived,
        "refused": tally.refused / tally.arrived,
        "p50_seconds": tally.latencies.quantile(0.5),
        "p99_seconds": tally.latencies.quantile(0.99),
        "late": tally.latencies.share_above(p99_seconds) * tally.answered / tally.arrived,
        "pods_least": int(ready.min()),
        "pods_most": int(ready.max()),
        "pod_hours": outcome.pod_seconds / 3600,
        "scale_changes": int(np.count_nonzero(np.diff(outcome.series["replicas"]))),
    }


def draw(outcomes: Sequence[Outcome], p99_seconds: float, file: Path) -> None:
    """Draw load and capacity, losses, and latency over time, one line per scenario."""
    figure, (load, lost, latency) = plt.subplots(3, 1, figsize=(8, 7), sharex=True, layout="constrained")
    hours = outcomes[0].scenario.seconds > 7200
    for outcome in outcomes:
        series = outcome.series
        times = series["seconds"] / (3600 if hours else 60)
        load.plot(times, series["ready"], label=outcome.scenario.name, linewidth=1)
        lost.plot(times, 100 * series["lost"] / np.maximum(series["rate"], 1), linewidth=1)
        latency.plot(times, series["p99"], linewidth=1)
    offered = load.twinx()
    first = outcomes[0].series
    offered.plot(first["seconds"] / (3600 if hours else 60), first["rate"], "k:", linewidth=1)
    offered.set_ylabel("requests/s (dotted)")
    offered.set_ylim(bottom=0)
    load.set_ylabel("ready pods")
    load.set_ylim(bottom=0)
    load.legend(fontsize="small")
    lost.set_ylabel("lost, % of offered")
    latency.set_ylabel("p99, seconds")
    latency.set_yscale("log")
    latency.axhline(p99_seconds, color="k", linestyle="--", linewidth=0.8)
    latency.set_xlabel("hours" if hours else "minutes")
    figure.savefig(file, dpi=80)
    plt.close(figure)


def _write(
    parsed: argparse.Namespace,
    output: Path,
    costs: PodCosts,
    options: ClusterOptions,
    rows: Sequence[dict[str, Any]],
) -> None:
    about = machine.describe()
    result = {
        "machine": about,
        "costs": asdict(costs),
        "cluster": asdict(options),
        "p99_seconds": parsed.p99,
    }
    write_text(output / "results.json", json.dumps(result | {"scenarios": rows}, indent=1) + "\n")
    write_text(output / "results.md", markdown(result, rows))


def markdown(result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> str:
    """The table and its inputs, in Markdown."""
    about, costs, cluster = result["machine"], result["costs"], result["cluster"]
    parts = [f"{name} {value:g}" for name, value in (costs | cluster).items()]
    lines = [
        "# Simulated scenarios",
        "",
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}. Simulated, not measured; "
        "the pod's costs were measured: see [scaling.md](../scaling.md).",
        "",
        f"Pod and cluster: {', '.join(parts)}.",
        "",
        f"Percentages are of all requests; the target is {1e3 * result['p99_seconds']:g} ms.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
    ]
    for row in rows:
        figures = [row["scenario"], f"{row['peak_rate']:,.0f}", f"{row['requests']:,.0f}"]
        figures += [f"{row[name]:.3%}" for name in ("answered", "shed", "expired", "refused")]
        figures += [f"{1e3 * row[name]:,.2f}" for name in ("p50_seconds", "p99_seconds")]
        figures += [f"{row['late']:.3%}", f"{row['pods_least']:,} / {row['pods_most']:,}"]
        figures += [f"{row['pod_hours']:,.1f}", f"{row['scale_changes']:,}"]
        lines.append(f"| {' | '.join(figures)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(exit_code(main))
