"""The command `python -m loadtests.check_simulation`: the simulated pod beside the real one.

The same rates against both; what differs by more than the stated tolerance fails the command.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import simpy

from loadtests import machine
from loadtests.capacity import RESULT
from loadtests.generator import Plan, arrivals, generate
from loadtests.measured_pod import CONNECTIONS, Step, post_request, step_of
from loadtests.placement import on_cores, place
from loadtests.pod import PodCosts, RequestPod, Tally, load_costs
from loadtests.service_process import ROOT, serving

LOADS = (0.2, 0.4, 0.6, 0.8)
"""Parts of the pod's saturation. Above it the generator's own queue would be part of what is compared."""

RATE_TOLERANCE = 0.05
"""Of the answers per second, to the same arrivals: what is still inside at the end may differ."""

LATENCY_FACTOR = {"p50_seconds": 2.0, "p99_seconds": 3.0}
LATENCY_SLACK_SECONDS = {"p50_seconds": 0.001, "p99_seconds": 0.005}
"""A latency agrees within a factor or, where both are small, within a time slice of the kernel's
scheduler: a thread may wait that long for a core that something else of the machine's has taken."""


@dataclass(frozen=True)
class Comparison:
    """One rate. apart: the names of the figures that differ by more than their tolerance."""

    load: float
    real: Step
    simulated: Step
    apart: list[str]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns 1 if a figure is out of tolerance."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.check_simulation", description=__doc__)
    parser.add_argument("--measured", type=Path, default=RESULT, help="what `capacity measure` wrote")
    parser.add_argument("--models-dir", type=Path, default=ROOT / "models")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each rate; default 8")
    parser.add_argument("--output", type=Path, default=RESULT.with_name("simulation-check.json"))
    parsed = parser.parse_args(arguments)
    model = json.loads(parsed.measured.read_text())["model"]
    costs, placement = load_costs(parsed.measured), place()
    if len(placement.service_cores) != costs.cores:
        parser.error(f"the measured pod had {costs.cores} cores, this one has {placement.service_cores}")
    with on_cores(placement.generator_cores):
        comparisons = check(costs, parsed.models_dir, model, parsed.seconds, placement.service_cores)
    result = {
        "machine": machine.describe(),
        "placement": asdict(placement),
        "comparisons": [asdict(each) for each in comparisons],
    }
    parsed.output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"service on the cores {placement.service_cores}, generator on {placement.generator_cores}\n")
    print(table(comparisons))
    return 1 if any(each.apart for each in comparisons) else 0


def check(
    costs: PodCosts, models_dir: Path, model: str, seconds: float, service_cores: list[int]
) -> list[Comparison]:
    """Offer each of LOADS to a real pod on these cores, and to the simulated one."""
    comparisons = []
    flags = ["--models-dir", str(models_dir.resolve()), "--default-classifier", model]
    with serving(flags, service_cores) as service:
        request = post_request(service.port, 1)
        generate(Plan(service.port, request, None, min(1.0, seconds), 8))
        for seed, load in enumerate(LOADS):
            rate = load * costs.saturation_rate
            real = step_of(generate(Plan(service.port, request, rate, seconds, CONNECTIONS, seed=seed)))
            simulated = simulate_pod(costs, rate, seconds, seed)
            comparisons.append(Comparison(load, real, simulated, _apart(real, simulated)))
    return comparisons


def simulate_pod(costs: PodCosts, rate: float, seconds: float, seed: int) -> Step:
    """The same figures, for the same arrivals, from the model that follows every request."""
    env, tally = simpy.Environment(), Tally()
    pod = RequestPod(env, costs, tally)
    for due in arrivals(rate, seconds, seed).tolist():
        env.timeout(due).callbacks.append(lambda _: pod.send())
    env.run(until=seconds)
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
    if abs(real.answered_rate / simulated.answered_rate - 1) > RATE_TOLERANCE:
        apart.append("answered_rate")
    for name, factor in LATENCY_FACTOR.items():
        low, high = sorted((getattr(real, name), getattr(simulated, name)))
        if high > factor * low and high - low > LATENCY_SLACK_SECONDS[name]:
            apart.append(name)
    return apart


def table(comparisons: Sequence[Comparison]) -> str:
    """Markdown: both figures of each rate."""
    lines = [
        "| load | offered/s | answered/s, real | simulated | p50 ms, real | simulated | p99 ms, real "
        "| simulated | out of tolerance |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in comparisons:
        real, simulated = each.real, each.simulated
        figures = [f"{each.load:.0%}", f"{real.offered_rate:,.0f}"]
        figures += [f"{step.answered_rate:,.0f}" for step in (real, simulated)]
        for name in LATENCY_FACTOR:
            figures += [f"{1e3 * getattr(step, name):.2f}" for step in (real, simulated)]
        lines.append(f"| {' | '.join([*figures, ', '.join(each.apart) or 'none'])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
