"""The command `python -m loadtests.explanations`: what explanations cost those who only classify.

    python -m loadtests.explanations
    python -m loadtests.explanations --model cnn --method integrated_gradients --rounds 60

One service gets single raw images at half its capacity, whether it answers or not (`loadtests.generator`).
In alternating slices it also gets /explain from callers that each wait for their answer. The p99 of /classify
in a slice with them, over that of the slice next to it without: the median of these ratios must not exceed
the limit. Many short slices tell more than a few long ones: on a shared machine a few pauses decide what the
p99 of a long one is.
"""

import argparse
import json
import multiprocessing
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
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
METHODS = ("occlusion", "lime", "integrated_gradients")


@dataclass(frozen=True)
class Slice:
    """One slice of the load. p99s in seconds, of /classify; rates per second of what was answered 200."""

    alone_p99: float
    with_explanations_p99: float
    classified: float
    classified_with: float
    explained: float
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
    ratio = result["median_ratio"]
    print(
        f"{result['model']}, {result['method']}, {result['callers']} callers: the p99 of /classify at "
        f"{result['rate']:,.0f} requests/s is {ratio:.3f} times as long (limit {LIMIT})"
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
            seen: dict[bool, tuple[Outcome, Outcome | None]] = {}
            for explaining in (False, True) if number % 2 else (True, False):
                load = Plan(port, classify, rate, parsed.seconds, 256, seed=number)
                others = Plan(port, explain, None, parsed.seconds, parsed.callers)
                beside = pool.submit(generate, others) if explaining else None
                outcome = pool.submit(generate, load).result()
                seen[explaining] = (outcome, None if beside is None else beside.result())
            slices.append(_slice(seen))
            say(f"round {number + 1} of {parsed.rounds}: {_line(slices[-1])}")
    return {
        "machine": describe(),
        "model": parsed.model,
        "method": parsed.method,
        "callers": parsed.callers,
        "rate": rate,
        "slices": [asdict(each) | {"ratio": each.ratio} for each in slices],
        "median_ratio": statistics.median(each.ratio for each in slices),
    }


def _slice(seen: dict[bool, tuple[Outcome, Outcome | None]]) -> Slice:
    alone, _ = seen[False]
    loaded, beside = seen[True]
    assert beside is not None
    failed = sum(int((each.status != 200).sum()) for each in (alone, loaded))
    p99s = [float(np.nanpercentile(each.done - each.due, 99)) for each in (alone, loaded)]
    return Slice(p99s[0], p99s[1], _rate(alone), _rate(loaded), _rate(beside), failed)


def _rate(outcome: Outcome) -> float:
    return int((outcome.status == 200).sum()) / outcome.seconds


def _line(each: Slice) -> str:
    return (
        f"p99 {1e3 * each.alone_p99:.2f} ms alone, {1e3 * each.with_explanations_p99:.2f} ms with "
        f"{each.explained:.1f} explanations/s, {each.ratio:.3f} times"
    )


def _request(path: str) -> bytes:
    """A POST of the seven of MNIST's test set, as raw rows."""
    image = (ROOT / "tests" / "digits" / "digits.raw").read_bytes()[7 * 784 : 8 * 784]
    head = f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Type: application/octet-stream\r\n"
    return f"{head}Content-Length: {len(image)}\r\n\r\n".encode() + image


if __name__ == "__main__":
    sys.exit(exit_code(main))
