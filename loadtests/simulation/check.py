"""The command `python -m loadtests.simulation.check`: compare the simulated pod with a real one.

Both get the same rates, and a difference beyond the stated tolerance fails the command. The costs are
measured on the same process right before. A machine's speed drifts, and the latency of a pod that is nearly
full amplifies the drift, so under each load the model gets the speed that follows from the load's CPU time.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import simpy

from loadtests import machine
from loadtests.generator import arrivals
from loadtests.interrupts import exit_code
from loadtests.measured_pod import OPENING_SECONDS, MeasuredPod, Spent, Step
from loadtests.outputs import add_output_arguments, chosen_output, shown, write_text
from loadtests.placement import on_cores, place
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say
from loadtests.service_process import ROOT, serving
from loadtests.simulation.calibration import CALLERS, Calibration, calibrate, calibration_of
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.pod import RequestPod
from loadtests.simulation.tally import Tally

LOADS = (0.6, 0.2, 0.8, 0.4)
"""Fractions of the model's saturation, in an order in which neither low nor high loads are nearest to the
calibration. Above 1 the comparison would include the generator's own queue."""

SECONDS = 8.0
CALIBRATE_SECONDS = 3.0
MODEL = "mlp"
MODELS = ROOT / "models"
PUBLISHED = machine.RESULTS / "simulation-check.json"

RATE_TOLERANCE = 0.05
"""Of the responses per second to the same arrivals, because the requests in flight at the end may differ."""

LATENCY_FACTOR = {"p50_seconds": 2.0, "p99_seconds": 3.0}
LATENCY_SLACK_SECONDS = {"p50_seconds": 0.001, "p99_seconds": 0.005}
"""A latency agrees within a factor or, if both are small, within a time slice of the kernel's scheduler: a
thread may wait that long for a core that other work on the machine has taken."""


@dataclass(frozen=True)
class Comparison:
    """One rate. apart: the names of the figures that differ by more than their tolerance.

    spent: by the real pod. speed: of the machine under this load; 1 is the speed at which the costs were
    measured.
    """

    load: float
    real: Step
    simulated: Step
    apart: list[str]
    spent: Spent
    speed: float


@dataclass(frozen=True)
class Check:
    """All rates. answered_rate: of the most CALLERS, per second; speed_change: its relative change after."""

    costs: PodCosts
    answered_rate: float
    speed_change: float
    comparisons: list[Comparison]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a figure is out of tolerance."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    placement = place()
    measured = json.loads(parsed.measured.read_text()) if parsed.measured else None
    if measured and len(placement.service_cores) != measured["costs"]["cores"]:
        cores = measured["costs"]["cores"]
        print(
            f"the measured pod had {cores} cores, expected {len(placement.service_cores)} as here",
            file=sys.stderr,
        )
        return 1
    model = parsed.model = measured["model"] if measured else parsed.model
    flags = ["--models-dir", str(parsed.models_dir.resolve()), "--default-classifier", model]
    output = chosen_output(parsed, PUBLISHED, full=is_full_run(parsed))
    try:
        with on_cores(placement.generator_cores):
            done = check(parsed, flags, model, placement.service_cores, measured)
    except ValueError as error:
        print(f"check: {error}", file=sys.stderr)
        return 1
    result = {
        "machine": machine.describe(),
        "placement": asdict(placement),
        "model": model,
        "saturation_rate": done.costs.saturation_rate,
        **asdict(done),
    }
    write_text(output, json.dumps(result, indent=1) + "\n")
    print(f"service on the cores {placement.service_cores}, generator on {placement.generator_cores}\n")
    print(f"{table(done.comparisons)}\n\n{_saturations(done)}")
    say(f"written: {shown(output)}")
    return 1 if any(each.apart for each in done.comparisons) else 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run checks what the published file is about, for as long."""
    same = (parsed.model, parsed.models_dir) == (MODEL, MODELS)
    return same and parsed.seconds >= SECONDS and bool(parsed.calibrate_seconds >= CALIBRATE_SECONDS)


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.simulation.check", description=__doc__)
    add = parser.add_argument
    add("--measured", type=Path, help="file of costs from `capacity measure` (default: measure them first)")
    add("--model", default=MODEL, help="classifier to load, if --measured names none (default: mlp)")
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    add("--seconds", type=float, default=SECONDS, help="seconds per rate (default: 8)")
    add(
        "--calibrate-seconds",
        type=float,
        default=CALIBRATE_SECONDS,
        help="seconds per load from which the costs follow (default: 3)",
    )
    add_output_arguments(parser, PUBLISHED, what="JSON file to write")
    return parser


def check(
    parsed: argparse.Namespace,
    flags: Sequence[str],
    model: str,
    service_cores: list[int],
    measured: dict[str, Any] | None,
) -> Check:
    """Offer each of LOADS to a real pod on these cores, and to the simulated one.

    measured: the result of `capacity measure`; without it the pod is calibrated first.
    """
    with serving(flags, service_cores) as service:
        pod = MeasuredPod(service, model, parsed.calibrate_seconds)
        calibration = calibration_of(measured) if measured else calibrate(pod, len(service_cores))
        costs = calibration.costs(service.start_seconds)
        offered = MeasuredPod(service, model, parsed.seconds)
        comparisons = []
        for seed, load in enumerate(LOADS):
            with doing(f"{load:.0%} of the saturation, real and simulated"):
                comparisons.append(_compare(offered, calibration, costs, parsed.seconds, seed))
            say(f"{load:.0%} of the saturation: {_result(comparisons[-1])}")
        with doing(f"{CALLERS[-1]} callers again"):
            change = calibration.speed_change(pod.spend(CALLERS[-1]))
    answered_rate = calibration.answering[-1].step.answered_rate
    return Check(costs, answered_rate, change, sorted(comparisons, key=lambda each: each.load))


def _compare(
    pod: MeasuredPod, calibration: Calibration, costs: PodCosts, seconds: float, seed: int
) -> Comparison:
    load = LOADS[seed]
    rate = load * costs.saturation_rate
    spent = pod.open(rate, seed)
    speed = calibration.speed(spent, costs)
    simulated = simulate_pod(at_speed(costs, speed), rate, seconds, seed)
    return Comparison(load, spent.step, simulated, _apart(spent.step, simulated), spent, speed)


def _result(comparison: Comparison) -> str:
    real, simulated = comparison.real, comparison.simulated
    return f"p99 {1e3 * real.p99_seconds:.1f} ms real, {1e3 * simulated.p99_seconds:.1f} ms simulated"


def at_speed(costs: PodCosts, speed: float) -> PodCosts:
    """A pod's costs on a machine that is `speed` times as fast; it forms the same batches."""
    names = ("batch", "row", "turn", "request", "refuse", "overhead", "on_loop", "brief")
    times = {f"{name}_seconds": getattr(costs, f"{name}_seconds") / speed for name in names}
    return replace(costs, **times)


def simulate_pod(costs: PodCosts, rate: float, seconds: float, seed: int) -> Step:
    """The same figures for the same arrivals, from the model that follows every request."""
    env, tally = simpy.Environment(), Tally()
    pod = RequestPod(env, costs, tally)
    for due in arrivals(rate, OPENING_SECONDS + seconds, seed).tolist():
        env.timeout(due).callbacks.append(lambda _: pod.send())
    env.run(until=OPENING_SECONDS)
    opened = deepcopy(tally)
    env.run(until=OPENING_SECONDS + seconds)
    tally = tally.since(opened)
    latencies = tally.latencies
    return Step(
        offered_rate=tally.arrived / seconds,
        answered_rate=tally.answered / seconds,
        shed=int(tally.shed),
        failed=int(tally.expired),
        p50_seconds=latencies.quantile(0.5),
        p99_seconds=latencies.quantile(0.99),
        late_p99_seconds=0.0,
    )


def _apart(real: Step, simulated: Step) -> list[str]:
    apart = []
    if abs(real.answered_rate - simulated.answered_rate) > RATE_TOLERANCE * simulated.answered_rate:
        apart.append("answered_rate")
    for name, factor in LATENCY_FACTOR.items():
        low, high = sorted((getattr(real, name), getattr(simulated, name)))
        if high > factor * low and high - low > LATENCY_SLACK_SECONDS[name]:
            apart.append(name)
    return apart


def table(comparisons: Sequence[Comparison]) -> str:
    """The figures of both, in Markdown, one row per rate."""
    lines = [
        "| load | offered/s | answered/s, real | simulated | p50 ms, real | simulated | p99 ms, real "
        "| simulated | sent late ms, p99 | speed | out of tolerance |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        real, simulated = each.real, each.simulated
        figures = [f"{each.load:.0%}", f"{real.offered_rate:,.0f}"]
        figures += [f"{step.answered_rate:,.0f}" for step in (real, simulated)]
        for name in LATENCY_FACTOR:
            figures += [f"{1e3 * getattr(step, name):.2f}" for step in (real, simulated)]
        figures += [f"{1e3 * real.late_p99_seconds:.2f}", f"{each.speed:.2f}"]
        lines.append(f"| {' | '.join([*figures, ', '.join(each.apart) or 'none'])} |")
    return "\n".join(lines)


def _saturations(done: Check) -> str:
    return (
        f"saturation: {done.costs.saturation_rate:,.0f}/s in the model; {CALLERS[-1]} callers got "
        f"{done.answered_rate:,.0f}/s before, and {done.speed_change:+.0%} after"
    )


if __name__ == "__main__":
    sys.exit(exit_code(main))
