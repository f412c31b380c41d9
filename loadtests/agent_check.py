"""The command `python -m loadtests.agent_check`: what agent checks are worth, with a real HAProxy.

Three pods, one of them slowed three times by its CPU quota, get the same Poisson arrivals through HAProxy, in
alternating rounds: by round robin and by least connections, each without and with agent checks.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.cpu_quota import NoQuotas, quotas
from loadtests.generator import Plan, generate
from loadtests.haproxy import Backend, Haproxy, Pod, balancing, installed, version
from loadtests.interrupts import exit_code
from loadtests.measured_pod import Step, post_request, step_of
from loadtests.outputs import add_output_arguments, chosen_output, shown, write_text
from loadtests.processes import end_servers_on_sigterm, free_port
from loadtests.progress import doing, say
from loadtests.service_process import ROOT, serving

PODS = 3
SLOWED = 3.0
CORES = 0.3
LOADS = (0.4, 0.6)
ROUNDS = 3
SECONDS = 10.0
SETTLE_SECONDS = 8.0
PAUSE_SECONDS = 3.0
CALLERS = 16
MODEL = "cnn-ensemble"
MODELS = ROOT / "models"
RESULT = machine.RESULTS / "agent-check.json"
MOST_RATIO = 0.5

BACKENDS = (
    Backend("round-robin", "roundrobin", agents=False),
    Backend("round-robin-agents", "roundrobin", agents=True),
    Backend("least-connections", "leastconn", agents=False),
    Backend("least-connections-agents", "leastconn", agents=True),
)
NAMES = {
    "round-robin": "round robin",
    "round-robin-agents": "round robin, agent checks",
    "least-connections": "least connections",
    "least-connections-agents": "least connections, agent checks",
}


@dataclass(frozen=True)
class Round:
    """One backend under one load. load: the fraction of all pods' capacity. weights: at the end."""

    load: float
    number: int
    backend: str
    weights: list[int]
    step: Step


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if agent checks do not halve round robin's p99 at every load."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    program = installed()
    if program is None:
        print("agent_check: haproxy is not installed: apt-get install haproxy", file=sys.stderr)
        return 2
    output = chosen_output(parsed, RESULT, full=is_full_run(parsed))
    try:
        result = measure(parsed, program)
    except NoQuotas as error:
        print(f"agent_check: {error}", file=sys.stderr)
        return 2
    write_text(output, json.dumps(result, indent=1) + "\n")
    print(table(result))
    say(f"written: {shown(output)}")
    return 0 if all(ratio <= MOST_RATIO for ratio in ratios(result).values()) else 1


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run measures what the published file is about, for as long."""
    defaults = command_line().parse_args([])
    chosen = {name: value for name, value in vars(defaults).items() if name not in ("output", "publish")}
    return all(getattr(parsed, name) == value for name, value in chosen.items())


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.agent_check", description=__doc__)
    add = parser.add_argument
    add("--model", default=MODEL, help=f"classifier to load (default: {MODEL})")
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    add("--cores", type=float, default=CORES, help=f"CPU quota of a pod that is not slow (default: {CORES})")
    add("--loads", type=float, nargs="+", default=LOADS, help="fractions of all pods' capacity")
    add("--rounds", type=int, default=ROUNDS, help=f"rounds per load and backend (default: {ROUNDS})")
    add("--seconds", type=float, default=SECONDS, help="counted seconds per round (default: 10)")
    add("--settle-seconds", type=float, default=SETTLE_SECONDS, help="seconds before those (default: 8)")
    add_output_arguments(parser, RESULT, what="JSON file to write")
    return parser


def measure(parsed: argparse.Namespace, program: str) -> dict[str, Any]:
    """Measure each pod's capacity, then every round."""
    about = machine.describe()
    cores = [parsed.cores] * (PODS - 1) + [parsed.cores / SLOWED]
    with ExitStack() as stack:
        agent_ports = [free_port() for _ in cores]
        flags = ["--models-dir", str(parsed.models_dir.resolve()), "--default-classifier", parsed.model]
        flags += ["--intra-op-threads", "1"]
        services = [stack.enter_context(serving([*flags, "--agent-port", str(port)])) for port in agent_ports]
        stack.enter_context(quotas(dict(zip((service.pid for service in services), cores, strict=True))))
        capacities = [_capacity(service.port, parsed.seconds / 2) for service in services]
        say(f"capacities: {', '.join(f'{each:,.0f}' for each in capacities)} requests/s")
        pods = [Pod(service.port, port) for service, port in zip(services, agent_ports, strict=True)]
        haproxy = stack.enter_context(balancing(program, BACKENDS, pods))
        rounds = [
            _round(haproxy, backend, load, number, load * sum(capacities), parsed)
            for load in parsed.loads
            for number in range(parsed.rounds)
            for backend in BACKENDS
        ]
    return {
        "machine": about,
        "haproxy": version(program),
        "model": parsed.model,
        "cores": cores,
        "capacities": capacities,
        "seconds": parsed.seconds,
        "settle_seconds": parsed.settle_seconds,
        "rounds": [asdict(each) for each in rounds],
    }


def _capacity(port: int, seconds: float) -> float:
    """The rate that closed-loop callers get from one pod."""
    with doing("one pod's capacity"):
        outcome = generate(Plan(port, post_request(port, 1), None, seconds, CALLERS))
    return step_of(outcome).answered_rate


def _round(
    haproxy: Haproxy, backend: Backend, load: float, number: int, rate: float, parsed: argparse.Namespace
) -> Round:
    """The same arrivals for every backend; what a round leaves queued is served before the next."""
    port = haproxy.ports[backend.name]
    seconds = parsed.settle_seconds + parsed.seconds
    with doing(f"{load:.0%} by {backend.name}"):
        outcome = generate(Plan(port, post_request(port, 1), rate, seconds, 2048, seed=number))
        weights = haproxy.weights(backend.name)
        time.sleep(PAUSE_SECONDS)
    step = step_of(outcome, parsed.settle_seconds)
    say(
        f"{load:.0%} of {rate / load:,.0f}/s by {backend.name}: p50 {1e3 * step.p50_seconds:.1f} ms, "
        f"p99 {1e3 * step.p99_seconds:.1f} ms, {step.shed} times 429, {step.failed} failed, weights {weights}"
    )
    return Round(load, number, backend.name, weights, step)


def _steps(result: dict[str, Any], load: float, backend: str) -> list[dict[str, Any]]:
    return [each["step"] for each in result["rounds"] if (each["load"], each["backend"]) == (load, backend)]


def p99(result: dict[str, Any], load: float, backend: str) -> float:
    """The median of the rounds' p99, in seconds."""
    return float(statistics.median(step["p99_seconds"] for step in _steps(result, load, backend)))


def ratios(result: dict[str, Any]) -> dict[float, float]:
    """By load: round robin's p99 with agent checks over that without."""
    loads = dict.fromkeys(each["load"] for each in result["rounds"])
    return {
        load: p99(result, load, "round-robin-agents") / p99(result, load, "round-robin") for load in loads
    }


def table(result: dict[str, Any]) -> str:
    """Medians over the rounds, in Markdown; the p99 with its lowest and highest."""
    lines = [
        "| load | HAProxy balances by | p50, ms | p99, ms | lost | weights |",
        "|---|---|---|---|---|---|",
    ]
    for load in ratios(result):
        for backend in BACKENDS:
            steps = _steps(result, load, backend.name)
            tails = [1e3 * step["p99_seconds"] for step in steps]
            lost = [(step["shed"] + step["failed"]) / _due(step, result) for step in steps]
            median = statistics.median(1e3 * step["p50_seconds"] for step in steps)
            weights = _weights(result, load, backend.name) if backend.agents else "equal"
            lines.append(
                f"| {load:.0%} | {NAMES[backend.name]} | {median:.1f} | {statistics.median(tails):,.0f} "
                f"({min(tails):,.0f} to {max(tails):,.0f}) | {statistics.median(lost):.1%} | {weights} |"
            )
    return "\n".join(lines)


def _weights(result: dict[str, Any], load: float, backend: str) -> str:
    """The median of each pod's weights, the slow pod's last."""
    every = [
        each["weights"] for each in result["rounds"] if (each["load"], each["backend"]) == (load, backend)
    ]
    return ", ".join(f"{statistics.median(weights):.0f}" for weights in zip(*every, strict=True))


def _due(step: dict[str, Any], result: dict[str, Any]) -> float:
    return float(step["offered_rate"] * result["seconds"])


if __name__ == "__main__":
    sys.exit(exit_code(main))
