"""The command `python -m loadtests.capacity`: measure one pod, or plan the pods for a rate."""

import argparse
import json
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from loadtests import machine
from loadtests.interrupts import exit_code
from loadtests.measured_pod import MeasuredPod, Step
from loadtests.outputs import add_output_arguments, chosen_output, shown, write_text
from loadtests.placement import on_cores, place
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say
from loadtests.service_process import ROOT, serving
from loadtests.simulation.calibration import CALLERS, calibrate

STARTS = 3
SECONDS = 8.0
P99_SECONDS = 0.05
MODEL = "mlp"
MODELS = ROOT / "models"
RESULT = ROOT / "loadtests" / "results" / "capacity.json"

Json = dict[str, Any]


@dataclass(frozen=True)
class Sizing:
    """A plan. pod_rate: requests per second per pod; base_replicas: pods without spares."""

    pod_rate: float
    base_replicas: int
    replicas: int
    nodes: int
    gpus: int
    cost_per_hour: float | None
    utilisation: float
    utilisation_after_a_loss: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    try:
        return _measure(parsed) if parsed.command == "measure" else _plan(parsed)
    except ValueError as error:
        print(f"capacity: {error}", file=sys.stderr)
        return 1


def _measure(parsed: argparse.Namespace) -> int:
    output = chosen_output(parsed, RESULT, full=is_full_run(parsed))
    result = measure(parsed.models_dir, parsed.model, parsed.p99, parsed.seconds)
    write_text(output, json.dumps(result, indent=1) + "\n")
    names = ("capacity_rate", "saturation_rate", "speed_change", "model_saturation_rate", "costs")
    figures = {name: result[name] for name in names}
    print(json.dumps(figures, indent=1))
    say(f"written: {shown(output)}")
    return 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run measures what the published file is about, for as long."""
    same = (parsed.model, parsed.models_dir, parsed.p99) == (MODEL, MODELS, P99_SECONDS)
    return same and bool(parsed.seconds >= SECONDS)


def _plan(parsed: argparse.Namespace) -> int:
    measured = json.loads(parsed.measured.read_text())
    sizing = plan_for(measured, parsed)
    print(_shown(parsed, sizing, [Step(**step) for step in measured["steps"]]))
    return 0


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.capacity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure one pod on this machine; about 3 minutes")
    add = measuring.add_argument
    add("--model", default=MODEL, help="classifier to load (default: mlp)")
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    _add_p99(measuring)
    add("--seconds", type=float, default=SECONDS, help="seconds per load (default: 8)")
    add_output_arguments(measuring, RESULT, what="JSON file to write")
    planning = commands.add_parser("plan", help="compute replicas, nodes, GPUs and cost for a rate")
    add = planning.add_argument
    add("--rate", type=float, required=True, help="one-image requests per second")
    _add_p99(planning)
    add("--utilisation", type=float, default=0.6, help="fraction of a pod's saturation to use (default: 0.6)")
    add("--spare", type=int, default=1, help="pods that may be lost (default: 1, N+1)")
    add("--zones", type=int, default=1, help="zones; with more than 1, a whole zone may be lost (default: 1)")
    add("--pods-per-node", type=int, default=1, help="pods per node (default: 1)")
    add("--gpus-per-replica", type=int, default=0, help="GPUs per pod; none was measured here (default: 0)")
    add("--pod-cost-per-hour", type=float, help="price of one pod per hour, in any currency")
    add("--measured", type=Path, default=RESULT, help=f"what `measure` wrote (default: {shown(RESULT)})")
    return parser


def _add_p99(parser: argparse.ArgumentParser) -> None:
    target = parser.add_mutually_exclusive_group()
    target.add_argument(
        "--p99", type=float, default=P99_SECONDS, help="target p99 in seconds (default: 0.05)"
    )
    target.add_argument("--p99-ms", dest="p99", type=_milliseconds, help="the same in milliseconds")


def _milliseconds(text: str) -> float:
    return float(text) / 1000


def measure(models_dir: Path, model: str, p99_seconds: float, seconds: float) -> Json:
    """Measure one pod: its costs, its saturation, and its capacity at the latency."""
    placement = place()
    flags = _flags(models_dir, model)
    with on_cores(placement.generator_cores):
        start_seconds = []
        for _ in range(STARTS - 1):
            with serving(flags, placement.service_cores) as service:
                start_seconds.append(service.start_seconds)
        with serving(flags, placement.service_cores) as service:
            start_seconds.append(service.start_seconds)
            pod = MeasuredPod(service, model, seconds)
            calibration = calibrate(pod, len(placement.service_cores))
            saturation = calibration.answered_rate
            steps = [asdict(step) for step in _search(pod, saturation, p99_seconds)]
            with doing(f"{CALLERS[-1]} callers again"):
                speed_change = calibration.speed_change(pod.spend(CALLERS[-1]))
            memory_bytes = psutil.Process(service.pid).memory_info().rss
    costs = calibration.costs(statistics.median(start_seconds))
    good = [step["offered_rate"] for step in steps if Step(**step).meets(p99_seconds)]
    return {
        "machine": machine.describe(),
        "placement": asdict(placement),
        "model": model,
        "p99_seconds": p99_seconds,
        "capacity_rate": max(good, default=0.0),
        "saturation_rate": saturation,
        "speed_change": speed_change,
        "model_saturation_rate": costs.saturation_rate,
        "unloaded_p50_seconds": calibration.unloaded_seconds,
        "costs": asdict(costs),
        "start_seconds": start_seconds,
        "memory_bytes": memory_bytes,
        "batches_on_the_loop": [calibration.loop_share(spent) for spent in calibration.answering],
        "largest_batch": calibration.largest_batch,
        "answering": [asdict(spent) for spent in calibration.answering],
        "refusing": asdict(calibration.refusing),
        "steps": steps,
    }


def capacity_at(steps: Sequence[Json], p99_seconds: float) -> float:
    """The highest measured rate that met the latency. Raises ValueError if none did."""
    good = [step["offered_rate"] for step in steps if Step(**step).meets(p99_seconds)]
    if not good:
        raise ValueError(f"no measured step has a p99 of at most {p99_seconds:g} s: measure one that has")
    return float(max(good))


def plan(
    rate: float,
    capacity_rate: float,
    saturation_rate: float,
    *,
    utilisation: float,
    spare: int = 1,
    zones: int = 1,
    pods_per_node: int = 1,
    gpus_per_replica: int = 0,
    pod_cost_per_hour: float | None = None,
) -> Sizing:
    """Size a deployment; docs/scaling.md explains the formulas. Raises ValueError for impossible arguments.

    A pod is given at most capacity_rate, which met the latency, and at most `utilisation` of its saturation:
    the remainder absorbs bursts (the wait grows as 1/(1 - utilisation), Kingman 1961) and the time until the
    autoscaler's pods are ready. `spare` pods are added; with several zones, all zones but one carry the rate.
    """
    if rate <= 0 or not 0 < utilisation < 1 or zones < 1 or spare < 0 or pods_per_node < 1:
        raise ValueError("rate, zones and pods per node must be positive, utilisation between 0 and 1")
    pod_rate = min(capacity_rate, utilisation * saturation_rate)
    base = math.ceil(rate / pod_rate - 1e-9)
    replicas = base + spare
    left = replicas - spare
    if zones > 1:
        each = math.ceil(base / (zones - 1))
        replicas, left = max(replicas, zones * each), max(base, (zones - 1) * each)
    return Sizing(
        pod_rate=pod_rate,
        base_replicas=base,
        replicas=replicas,
        nodes=math.ceil(replicas / pods_per_node),
        gpus=replicas * gpus_per_replica,
        cost_per_hour=None if pod_cost_per_hour is None else replicas * pod_cost_per_hour,
        utilisation=rate / replicas / saturation_rate,
        utilisation_after_a_loss=rate / left / saturation_rate,
    )


def plan_for(measured: Json, parsed: argparse.Namespace) -> Sizing:
    """The plan for the command line's arguments. Raises ValueError."""
    return plan(
        parsed.rate,
        capacity_at(measured["steps"], parsed.p99),
        measured["saturation_rate"],
        utilisation=parsed.utilisation,
        spare=parsed.spare,
        zones=parsed.zones,
        pods_per_node=parsed.pods_per_node,
        gpus_per_replica=parsed.gpus_per_replica,
        pod_cost_per_hour=parsed.pod_cost_per_hour,
    )


def predicted_p99(steps: Sequence[Step], rate: float) -> float:
    """The p99 of a pod at a rate between measured ones, in seconds.

    Interpolates the logarithm of the p99, which grows faster and faster. Below all steps it is the
    lowest one's, and above those that lost nothing inf. `loadtests.plan_check` compares it
    with loads that it was not given.
    """
    whole = sorted(
        (step.offered_rate, step.p99_seconds) for step in steps if not step.shed and not step.failed
    )
    if not whole or rate > whole[-1][0]:
        return math.inf
    rates, tails = zip(*whole, strict=True)
    return float(np.exp(np.interp(rate, rates, np.log(tails))))


def _shown(parsed: argparse.Namespace, sizing: Sizing, steps: Sequence[Step]) -> str:
    after_a_loss = sizing.utilisation_after_a_loss / sizing.utilisation
    each = parsed.rate / sizing.replicas
    usual, after = (1e3 * predicted_p99(steps, rate) for rate in (each, each * after_a_loss))
    lines = [
        f"each pod      {sizing.pod_rate:,.0f} requests/s",
        f"replicas      {sizing.replicas:,} ({sizing.base_replicas:,} carry the rate)",
        f"nodes         {sizing.nodes:,}",
        f"utilisation   {sizing.utilisation:.0%}, {sizing.utilisation_after_a_loss:.0%} after a loss",
        f"p99           {usual:.1f} ms, {after:.1f} ms after a loss (between measured loads)",
    ]
    if sizing.gpus:
        lines.append(f"GPUs          {sizing.gpus:,} (the measured pod had none: measure one with a GPU)")
    if sizing.cost_per_hour is not None:
        lines.append(
            f"cost          {sizing.cost_per_hour:,.2f} per hour, {24 * sizing.cost_per_hour:,.2f} per day, "
            f"{1e6 * sizing.cost_per_hour / 3600 / parsed.rate:.4f} per million requests"
        )
    return "\n".join(lines)


def _flags(models_dir: Path, model: str) -> list[str]:
    return ["--models-dir", str(models_dir.resolve()), "--default-classifier", model]


def _search(pod: MeasuredPod, saturation: float, p99_seconds: float) -> Iterator[Step]:
    """Measure fixed steps for the curve, then bisect for the highest rate that meets the latency."""
    low, high = 0.0, saturation
    for seed, part in enumerate((0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.2)):
        with doing(f"{part * saturation:,.0f} requests/s"):
            step = pod.open(part * saturation, seed).step
        _report(step)
        yield step
        if step.meets(p99_seconds):
            low = max(low, part * saturation)
    high = min(high, max(low * 1.2, 0.1 * saturation))
    for seed in range(100, 104):
        rate = (low + high) / 2
        with doing(f"{rate:,.0f} requests/s"):
            step = pod.open(rate, seed).step
        _report(step)
        yield step
        low, high = (rate, high) if step.meets(p99_seconds) else (low, rate)


def _report(step: Step) -> None:
    latencies = f"p50 {1e3 * step.p50_seconds:.2f} ms, p99 {1e3 * step.p99_seconds:.2f} ms"
    say(f"{step.offered_rate:,.0f}/s: {latencies}, {step.shed} times 429, {step.failed} failed")


if __name__ == "__main__":
    sys.exit(exit_code(main))
