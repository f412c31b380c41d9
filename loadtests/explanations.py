"""The command `python -m loadtests.explanations`: what explanations cost those who only classify.

    python -m loadtests.explanations
    python -m loadtests.explanations --model cnn --method integrated_gradients --rounds 60

One service gets single raw images at half its capacity, whether it answers or not (`loadtests.generator`).
In alternating slices it also gets /explain from callers that each wait for their answer. The p99 of /classify
in a slice with them, over that of the slice next to it without: the median of these ratios must not exceed
the limit. Its 95 % interval, by bootstrap over the pairs, tells how far the noise of this machine reaches.
Many short slices tell more than a few long ones: on a shared machine a few pauses decide what the p99 of a
long one is. The callers begin when the load has run for a while, because a service that was idle gives them
the whole device. How long an explanation takes beside the load is measured last, in one long slice.
"""

import argparse
import json
import math
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from loadtests.arguments import at_least_one
from loadtests.generator import Outcome, Plan, generate
from loadtests.interrupts import exit_code
from loadtests.machine import ROOT, describe
from loadtests.outputs import write_text
from loadtests.progress import say
from loadtests.service_process import NotStarted, serving

CONNECTIONS = 64
OPEN_SHARE = 0.7
"""What independent callers reach of the rate of 64 that wait for each other; see `loadtests.open_loop`."""

LIMIT = 1.10
WARM_UP_SECONDS = 2.0
LEAD_SECONDS = 0.5
"""How long the load runs before each slice. Callers of /explain begin in the middle of it."""

LAST_SECONDS = 20.0
"""The length of the slice that measures how long explanations take."""

METHODS = ("occlusion", "lime", "integrated_gradients")


@dataclass(frozen=True)
class Slice:
    """Two slices of the load. p99s in seconds, of /classify; rates per second of what was answered 200."""

    alone_p99: float
    with_explanations_p99: float
    classified: float
    classified_with: float
    failed: int

    @property
    def ratio(self) -> float:
        """How many times as long the p99 is with explanations."""
        return self.with_explanations_p99 / self.alone_p99


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if the limit is exceeded or nothing could be measured."""
    parsed = _parser().parse_args(arguments)
    try:
        result = _measure(parsed)
    except NotStarted as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    if parsed.output is not None:
        write_text(parsed.output, json.dumps(result, indent=2) + "\n")
    ratio, (low, high) = result["median_ratio"], result["interval"]
    print(
        f"{result['model']}, {result['method']}, {result['callers']} callers: the p99 of /classify at "
        f"{result['rate']:,.0f} requests/s is {ratio:.3f} times as long "
        f"(95 % interval {low:.2f} to {high:.2f}, limit {LIMIT})"
    )
    return 0 if ratio <= LIMIT and not any(each["failed"] for each in result["slices"]) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.explanations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", default="cnn", help="classifier (default: %(default)s)")
    add("--method", choices=METHODS, default=METHODS[0], help="of the explanations (default: %(default)s)")
    add("--callers", type=at_least_one, default=2, help="callers of /explain (default: %(default)s)")
    add("--rounds", type=at_least_one, default=40, help="pairs of slices (default: %(default)s)")
    add("--seconds", type=at_least_one, default=2, help="whole seconds per slice (default: %(default)s)")
    add("--models-dir", type=Path, default=ROOT / "models", help="the models (default: the shipped ones)")
    add("--output", type=Path, help="JSON file for the figures")
    return parser


def _measure(parsed: argparse.Namespace) -> dict[str, Any]:
    """Start the service and measure slice after slice. Raises NotStarted."""
    spawn = multiprocessing.get_context("spawn")
    with (
        serving(["--models-dir", str(parsed.models_dir.resolve())]) as service,
        ProcessPoolExecutor(2, mp_context=spawn) as pool,
    ):
        port = service.port
        classify = _request(f"/classify?model={parsed.model}")
        explain = _request(f"/explain?model={parsed.model}&method={parsed.method}")
        pool.submit(generate, Plan(port, classify, None, WARM_UP_SECONDS, CONNECTIONS)).result()
        closed = pool.submit(generate, Plan(port, classify, None, parsed.seconds, CONNECTIONS)).result()
        rate = OPEN_SHARE * _rate(closed) / 2
        say(f"{_rate(closed):,.0f} requests/s in a closed loop, so {rate:,.0f} are half of the capacity")
        slices = []
        for number in range(parsed.rounds):
            seen = {}
            for explaining in (False, True) if number % 2 else (True, False):
                load = Plan(port, classify, rate, LEAD_SECONDS + parsed.seconds, 256, seed=number)
                others = replace(load, request=explain, rate=None, connections=parsed.callers)
                seen[explaining], _ = _beside(pool, load, others if explaining else None)
            slices.append(_slice(seen[False], seen[True]))
            say(f"round {number + 1} of {parsed.rounds}: {_line(slices[-1])}")
        load = Plan(port, classify, rate, LEAD_SECONDS + LAST_SECONDS, 256, seed=parsed.rounds)
        others = replace(load, request=explain, rate=None, connections=parsed.callers)
        _, explained = _beside(pool, load, others)
        assert explained is not None
        seconds = _explanation_seconds(explained)
        median = statistics.median(seconds or [math.nan])
        say(f"{len(seconds)} explanations beside the load, {median:.2f} s each in the median")
    ratios = [each.ratio for each in slices]
    return {
        "machine": describe(),
        "model": parsed.model,
        "method": parsed.method,
        "callers": parsed.callers,
        "rate": rate,
        "slices": [asdict(each) | {"ratio": each.ratio} for each in slices],
        "explanation_seconds": seconds,
        "median_ratio": statistics.median(ratios),
        "interval": interval(ratios),
    }


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the median, from 10,000 bootstrap samples (percentile method)."""
    drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
    return float(low), float(high)


def _beside(pool: ProcessPoolExecutor, load: Plan, others: Plan | None) -> tuple[Outcome, Outcome | None]:
    """Run the load, and the others from the middle of its lead on."""
    running = pool.submit(generate, load)
    time.sleep(LEAD_SECONDS / 2)
    beside = None if others is None else pool.submit(generate, others)
    return running.result(), None if beside is None else beside.result()


def _slice(alone: Outcome, loaded: Outcome) -> Slice:
    (alone_p99, classified, failed), (loaded_p99, classified_with, failed_with) = map(
        _counted, (alone, loaded)
    )
    return Slice(alone_p99, loaded_p99, classified, classified_with, failed + failed_with)


def _counted(outcome: Outcome) -> tuple[float, float, int]:
    """Return the p99, the rate and the failures of the requests that were due after the lead."""
    counted = outcome.due >= LEAD_SECONDS
    answered = int((outcome.status[counted] == 200).sum())
    p99 = float(np.nanpercentile((outcome.done - outcome.due)[counted], 99))
    return p99, answered / (outcome.seconds - LEAD_SECONDS), int(counted.sum()) - answered


def _explanation_seconds(explained: Outcome) -> list[float]:
    """Return how long each explanation took that was answered before the load beside it ended."""
    end = explained.seconds - LEAD_SECONDS / 2  # they began later than the load
    good = (explained.status == 200) & (explained.done <= end)
    seconds: list[float] = np.sort((explained.done - explained.sent)[good]).tolist()
    return seconds


def _rate(outcome: Outcome) -> float:
    return int((outcome.status == 200).sum()) / outcome.seconds


def _line(each: Slice) -> str:
    return (
        f"p99 {1e3 * each.alone_p99:.2f} ms alone, {1e3 * each.with_explanations_p99:.2f} ms with "
        f"explanations, {each.ratio:.3f} times"
    )


def _request(path: str) -> bytes:
    """A POST of the seven of MNIST's test set, as raw rows."""
    image = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()[7 * 784 : 8 * 784]
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image


if __name__ == "__main__":
    sys.exit(exit_code(main))
