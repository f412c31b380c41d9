"""The command `python -m loadtests.plan_check`: compare the p99 that a plan rests on with a real pod's.

A plan knows the p99 at the rates at which a pod was measured, and interpolates. Each round measures a pod at
these rates and at others, in a random order. The medians at the former predict the medians at the latter.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from loadtests import machine
from loadtests.capacity import predicted_p99
from loadtests.interrupts import exit_code
from loadtests.measured_pod import MeasuredPod, Step
from loadtests.outputs import add_output_arguments, chosen_output, shown, write_text
from loadtests.placement import on_cores, place
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say
from loadtests.service_process import ROOT, serving

FACTOR = 1.5
"""How far apart prediction and measurement may be, either way."""

GIVEN = (0.1, 0.25, 0.4, 0.55)
HELD_OUT = (0.175, 0.325, 0.475)
"""Fractions of what CALLERS callers get."""

CALLERS = 256
ROUNDS = 5
SECONDS = 5.0
MODEL = "mlp"
MODELS = ROOT / "models"
RESULT = machine.RESULTS / "plan-check.json"


Rounds = Sequence[dict[float, Step]]
"""A step for each load, one dictionary per round."""


@dataclass(frozen=True)
class Prediction:
    """One of HELD_OUT, in medians over the rounds. rate: requests per second. The seconds are of the p99.

    predicted_seconds: inf if a given load at or above this one was shed. lowest, highest: of the rounds.
    """

    load: float
    rate: float
    predicted_seconds: float
    measured_seconds: float
    lowest_seconds: float
    highest_seconds: float

    @property
    def ratio(self) -> float:
        """Measured over predicted."""
        return self.measured_seconds / self.predicted_seconds

    @property
    def agrees(self) -> bool:
        """Whether the ratio is within FACTOR of 1."""
        return 1 / FACTOR <= self.ratio <= FACTOR


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a load's p99 is off by more than FACTOR."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    output = chosen_output(parsed, RESULT, full=is_full_run(parsed))
    about = machine.describe()
    placement = place()
    flags = ["--models-dir", str(parsed.models_dir.resolve()), "--default-classifier", parsed.model]
    with on_cores(placement.generator_cores), serving(flags, placement.service_cores) as service:
        pod = MeasuredPod(service, parsed.model, parsed.seconds)
        try:
            with doing(f"{CALLERS} callers"):
                saturation = pod.closed(1, CALLERS).answered_rate
        except ValueError as error:
            print(f"plan-check: {error}", file=sys.stderr)
            return 1
        say(f"{CALLERS} callers: {saturation:,.0f} requests/s answered")
        rounds = [_round(pod, saturation, number) for number in range(parsed.rounds)]
    found = predictions(rounds)
    result = {
        "machine": about,
        "placement": asdict(placement),
        "model": parsed.model,
        "saturation_rate": saturation,
        "seconds": parsed.seconds,
        "predictions": [asdict(each) | {"ratio": each.ratio} for each in found],
        "rounds": [{str(load): asdict(step) for load, step in steps.items()} for steps in rounds],
    }
    write_text(output, json.dumps(result, indent=1) + "\n")
    print(table(found))
    say(f"written: {shown(output)}")
    return 0 if all(each.agrees for each in found) else 1


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run measures what the published file is about, for as long."""
    defaults = vars(command_line().parse_args([]))
    names = ("model", "models_dir", "rounds", "seconds")
    return all(getattr(parsed, name) == defaults[name] for name in names)


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.plan_check", description=__doc__)
    add = parser.add_argument
    add("--model", default=MODEL, help="classifier to load (default: mlp)")
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    add("--rounds", type=int, default=ROUNDS, help=f"rounds of all loads (default: {ROUNDS})")
    add("--seconds", type=float, default=SECONDS, help="seconds per load (default: 5)")
    add_output_arguments(parser, RESULT, what="JSON file to write")
    return parser


def _round(pod: MeasuredPod, saturation: float, number: int) -> dict[float, Step]:
    steps: dict[float, Step] = {}
    for load in np.random.default_rng(number).permutation((*GIVEN, *HELD_OUT)).tolist():
        with doing(f"{load:.1%} of the saturation"):
            steps[load] = step = pod.open(load * saturation, number).step
        say(
            f"round {number + 1}, {load:.1%}: p99 {1e3 * step.p99_seconds:.1f} ms, {step.shed} times 429, "
            f"sent {1e3 * step.late_p99_seconds:.1f} ms late (p99)"
        )
    return dict(sorted(steps.items()))


def predictions(rounds: Rounds) -> list[Prediction]:
    """Predict the loads of HELD_OUT from those of GIVEN."""
    given = [_median(rounds, load) for load in GIVEN]
    found = []
    for load in HELD_OUT:
        step = _median(rounds, load)
        tails = [steps[load].p99_seconds for steps in rounds]
        predicted = predicted_p99(given, step.offered_rate)
        found.append(Prediction(load, step.offered_rate, predicted, step.p99_seconds, min(tails), max(tails)))
    return found


def _median(rounds: Rounds, load: float) -> Step:
    """Each figure's median over the rounds."""
    every = [asdict(steps[load]) for steps in rounds]
    return Step(**{name: statistics.median_low(each[name] for each in every) for name in every[0]})


def table(found: Sequence[Prediction]) -> str:
    """The p99 in ms, measured with its lowest and highest round, in Markdown: one row per load."""
    lines = [
        f"| load | requests/s | p99 predicted, ms | measured, ms | ratio | within {FACTOR:g} |",
        "|---|---|---|---|---|---|",
    ]
    for each in found:
        spread = f"{1e3 * each.lowest_seconds:.1f} to {1e3 * each.highest_seconds:.1f}"
        verdict = "yes" if each.agrees else "no"
        lines.append(
            f"| {each.load:.1%} | {each.rate:,.0f} | {1e3 * each.predicted_seconds:.1f} | "
            f"{1e3 * each.measured_seconds:.1f} ({spread}) | {each.ratio:.2f} | {verdict} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_code(main))
