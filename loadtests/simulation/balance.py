"""The command `python -m loadtests.simulation.balance`: compare balancers in front of simulated pods.

Pods are followed request by request. Writes a table, its figures and a picture.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import simpy

from loadtests import machine
from loadtests.capacity import RESULT
from loadtests.interrupts import exit_code
from loadtests.outputs import add_output_arguments, chosen_output, replacing, shown, write_text
from loadtests.progress import doing, say
from loadtests.service_process import ROOT
from loadtests.simulation.balancers import (
    AgentChecked,
    Balancer,
    ClientSideWeighted,
    LeastRequest,
    RoundRobin,
    Sticky,
)
from loadtests.simulation.check import at_speed
from loadtests.simulation.costs import PodCosts, load_costs
from loadtests.simulation.pod import Process, RequestPod, poisson
from loadtests.simulation.service_rules import REPORT_SECONDS, LoadMeter
from loadtests.simulation.tally import Tally

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot as plt

FOLDER = ROOT / "docs" / "scaling"
PACE = 0.1
"""The pods' speed, of the measured one's: an image takes ten times as long, so that balancers that learn
within seconds have the time to, in a tenth of the requests."""

UNEQUAL = (1.0, 1.0, 1 / 3)
EQUAL = (1.0, 1.0, 1.0)
SETTLE_SECONDS = 40.0
SECONDS = 40.0
CONNECTIONS = 64
AGE_SECONDS = 60.0
GROWN_AT = 20.0
GROWN_SECONDS = 120.0

Make = Callable[[list[RequestPod], np.random.Generator], Balancer]

BALANCERS: dict[str, Make] = {
    "round robin": lambda pods, _: RoundRobin(len(pods)),
    "least request (Envoy)": lambda pods, rng: _least_request(pods, rng, distinct=False),
    "least request (nginx)": lambda pods, rng: _least_request(pods, rng, distinct=True),
    "ORCA weights (Envoy)": lambda pods, _: ClientSideWeighted(len(pods)),
    "agent checks (HAProxy)": lambda pods, _: AgentChecked(len(pods)),
    "sticky": lambda pods, rng: Sticky(len(pods), CONNECTIONS, rng),
    "sticky, with an age": lambda pods, rng: Sticky(len(pods), CONNECTIONS, rng, AGE_SECONDS),
}
SCENARIOS = {
    "equal, 60 %": (EQUAL, 0.6),
    "one slow, 40 %": (UNEQUAL, 0.4),
    "one slow, 60 %": (UNEQUAL, 0.6),
    "one slow, 80 %": (UNEQUAL, 0.8),
}
GROWING = ("round robin", "sticky", "sticky, with an age")


@dataclass(frozen=True)
class Balanced:
    """The result of one balancer. shares: of the requests, by pod. lost: the fraction shed or expired."""

    scenario: str
    balancer: str
    p50_seconds: float
    p99_seconds: float
    lost: float
    shares: list[float]


@dataclass(frozen=True)
class Grown:
    """The share of the least loaded pod, each second, after one pod became three."""

    balancer: str
    least_shares: list[float]
    p99_seconds: float


class Fleet:
    """Pods of these speeds behind a balancer, under Poisson arrivals."""

    def __init__(self, costs: PodCosts, speeds: Sequence[float], make: Make, rate: float, seed: int) -> None:
        self.env = simpy.Environment()
        self.tally = Tally()
        self.pods = [RequestPod(self.env, at_speed(costs, speed), self.tally) for speed in speeds]
        rng = np.random.default_rng(seed)
        self.balancer = make(self.pods, np.random.default_rng((seed, 1)))
        self._meters = [LoadMeter(costs.max_queue_requests) for _ in speeds]
        self.env.process(poisson(self.env, lambda _: rate, self._send, rng))
        self.env.process(self._report())

    def sent(self) -> list[float]:
        """The requests that each pod has got."""
        return [pod.offered for pod in self.pods]

    def _send(self) -> None:
        self.pods[self.balancer.pick(self.env.now)].send()

    def _report(self) -> Process:
        while True:
            for meter, pod in zip(self._meters, self.pods, strict=True):
                meter.note(pod.counts(self.env.now))
            self.balancer.note(self.env.now, [meter.over(REPORT_SECONDS) for meter in self._meters])
            yield self.env.timeout(1.0)


def balance(
    scenario: str,
    balancer: str,
    costs: PodCosts,
    seconds: float,
    seed: int,
    settle_seconds: float = SETTLE_SECONDS,
) -> Balanced:
    """Run one balancer in one of SCENARIOS; the first seconds are not counted."""
    speeds, load = SCENARIOS[scenario]
    rate = load * sum(speeds) * costs.saturation_rate
    fleet = Fleet(costs, speeds, BALANCERS[balancer], rate, seed)
    fleet.env.run(until=settle_seconds)
    settled, sent = deepcopy(fleet.tally), fleet.sent()
    fleet.env.run(until=settle_seconds + seconds)
    tally = fleet.tally.since(settled)
    counted = np.subtract(fleet.sent(), sent)
    latencies = tally.latencies
    return Balanced(
        scenario,
        balancer,
        latencies.quantile(0.5),
        latencies.quantile(0.99),
        float((tally.shed + tally.expired) / tally.arrived),
        [float(share) for share in counted / counted.sum()],
    )


def grow(balancer: str, costs: PodCosts, seed: int) -> Grown:
    """One pod at 80 % becomes three at GROWN_AT; every second counts the requests of the last ten."""
    fleet = Fleet(costs, EQUAL, BALANCERS[balancer], 0.8 * costs.saturation_rate, seed)
    fleet.balancer = BALANCERS[balancer](fleet.pods[:1], np.random.default_rng((seed, 1)))
    fleet.env.run(until=GROWN_AT)
    fleet.balancer.resize(3)
    grown, sent, shares = deepcopy(fleet.tally), [fleet.sent()], []
    for second in range(1, round(GROWN_SECONDS) + 1):
        fleet.env.run(until=GROWN_AT + second)
        sent.append(fleet.sent())
        recent = np.subtract(sent[-1], sent[max(0, len(sent) - 11)])
        shares.append(float(recent.min() / recent.sum()))
    return Grown(balancer, shares, fleet.tally.since(grown).latencies.quantile(0.99))


def _least_request(pods: list[RequestPod], rng: np.random.Generator, *, distinct: bool) -> LeastRequest:
    return LeastRequest(len(pods), lambda pod: pods[pod].waiting, rng, distinct=distinct)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parsed = command_line().parse_args(arguments)
    measured = load_costs(parsed.measured)
    costs = at_speed(measured, PACE)
    output = chosen_output(parsed, FOLDER, full=is_full_run(parsed))
    balanced = []
    for scenario in SCENARIOS:
        for balancer in BALANCERS:
            with doing(f"{scenario}, {balancer}"):
                balanced.append(balance(scenario, balancer, costs, parsed.seconds, parsed.seed))
            say(f"{scenario}, {balancer}: p99 {1e3 * balanced[-1].p99_seconds:,.0f} ms")
    with doing("1 to 3 pods"):
        grown = [grow(balancer, costs, parsed.seed) for balancer in GROWING]
    about = {"machine": machine.describe(), "pace": PACE, "costs": asdict(measured)}
    result = about | {
        "balanced": [asdict(each) for each in balanced],
        "grown": [asdict(each) for each in grown],
    }
    write_text(output / "balancers.json", json.dumps(result, indent=1) + "\n")
    with replacing(output / "balancers.png") as part:
        draw(balanced, grown, part)
    print(f"{table(balanced)}\n\n{grown_table(grown)}")
    say(f"written: {shown(output)}/balancers.json and .png")
    return 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether these are the published figures."""
    defaults = vars(command_line().parse_args([]))
    return all(getattr(parsed, name) == defaults[name] for name in ("measured", "seconds", "seed"))


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.simulation.balance", description=__doc__)
    add = parser.add_argument
    add("--measured", type=Path, default=RESULT, help=f"file of measured costs (default: {shown(RESULT)})")
    add("--seconds", type=float, default=SECONDS, help="counted seconds per balancer (default: 40)")
    add("--seed", type=int, default=1, help="seed of the arrivals (default: 1)")
    add_output_arguments(parser, FOLDER, what="folder to write to")
    return parser


def table(balanced: Sequence[Balanced]) -> str:
    """The p99 in ms and the slow pod's share, in Markdown: one row per balancer."""
    scenarios = list(dict.fromkeys(each.scenario for each in balanced))
    lines = [f"| p99, ms | {' | '.join(scenarios)} |", f"|---|{'---|' * len(scenarios)}"]
    for name in dict.fromkeys(each.balancer for each in balanced):
        rows = {each.scenario: each for each in balanced if each.balancer == name}
        lines.append(f"| {name} | {' | '.join(_cell(rows[scenario]) for scenario in scenarios)} |")
    return "\n".join(lines)


def _cell(each: Balanced) -> str:
    lost = f", {each.lost:.1%} lost" if each.lost >= 0.0005 else ""
    return f"{1e3 * each.p99_seconds:,.0f} ({each.shares[-1]:.0%}{lost})"


def grown_table(grown: Sequence[Grown]) -> str:
    """When the least loaded pod has its share, in Markdown."""
    lines = [
        "| 1 pod becomes 3 | least loaded pod's share, after 30 s | after 60 s | after 120 s | p99, ms |",
        "|---|---|---|---|---|",
    ]
    for each in grown:
        shares = [f"{each.least_shares[second - 1]:.0%}" for second in (30, 60, 120)]
        lines.append(f"| {each.balancer} | {' | '.join(shares)} | {1e3 * each.p99_seconds:,.0f} |")
    return "\n".join(lines)


def draw(balanced: Sequence[Balanced], grown: Sequence[Grown], file: Path) -> None:
    """Draw the p99 and the slow pod's share by balancer, and the new pods' share over time."""
    figure, (tails, shares, growth) = plt.subplots(
        1, 3, figsize=(13, 4), layout="constrained", width_ratios=(3, 3, 4)
    )
    names = list(dict.fromkeys(each.balancer for each in balanced))
    for scenario, marker in zip(SCENARIOS, "o^sD", strict=True):
        rows = [each for each in balanced if each.scenario == scenario]
        places = [names.index(each.balancer) for each in rows]
        tails.plot([1e3 * each.p99_seconds for each in rows], places, marker, label=scenario, alpha=0.8)
        if scenario != "equal, 60 %":
            color = tails.lines[-1].get_color()
            shares.plot([100 * each.shares[-1] for each in rows], places, marker, alpha=0.8, color=color)
    shares.axvline(100 / 7, color="k", linestyle="--", linewidth=0.8)
    for axes in (tails, shares):
        axes.set_yticks(range(len(names)), names if axes is tails else [""] * len(names))
        axes.invert_yaxis()
        axes.grid(alpha=0.3)
    tails.set_xscale("log")
    tails.set_xlabel("p99, ms")
    tails.legend(fontsize="small")
    shares.set_xlabel("slow pod's requests, % (dashed: fair)")
    for each in grown:
        growth.plot(range(1, len(each.least_shares) + 1), [100 * share for share in each.least_shares])
        growth.lines[-1].set_label(each.balancer)
    growth.set_xlabel("seconds after one pod became three")
    growth.set_ylabel("least loaded pod's requests, %")
    growth.legend(fontsize="small")
    growth.grid(alpha=0.3)
    figure.savefig(file, dpi=80)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(exit_code(main))
