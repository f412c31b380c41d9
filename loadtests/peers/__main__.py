"""The command `python -m loadtests.peers`: measure every server one after another, in rounds, and report."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests import machine, wrk
from loadtests.interrupts import exit_code
from loadtests.outputs import Unfinished, add_output_arguments, chosen_output, shown, write_text
from loadtests.peers import report
from loadtests.peers.contestants import ASGI, EVERY, Contestant, inkserve
from loadtests.peers.measure import Options, import_seconds, measure, measure_engine
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say

Json = dict[str, Any]

PUBLISHED = machine.RESULTS / "peers"
MODELS = machine.ROOT / "models"
ROUNDS = 3
SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parsed = command_line().parse_args(arguments)
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    options = Options(parsed.models_dir.resolve(), parsed.seconds, parsed.threads)
    contestants = _chosen(parsed.only, parsed.variant)
    output = chosen_output(parsed, PUBLISHED, full=is_full_run(parsed))
    result: Json = {
        "machine": machine.describe(),
        "options": {"seconds": options.seconds, "threads": options.threads},
        "servers": {contestant.name: contestant.configuration for contestant in contestants},
        "rounds": [],
    }
    unfinished = Unfinished("peers")
    with unfinished.kept():
        for number in range(1, parsed.rounds + 1):
            say(f"round {number} of {parsed.rounds}")
            _measure_round(result, contestants, options, unfinished)
        for suffix, text in _texts(result).items():
            write_text(output.with_suffix(suffix), text)
    print(report.markdown(result))
    say(f"written: {shown(output)}.json and .md")
    return 0


def is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run measures what the published report is about, for as long."""
    whole = parsed.only is None and not parsed.variant and parsed.models_dir == MODELS
    return whole and parsed.rounds >= ROUNDS and parsed.seconds >= SECONDS


def _measure_round(
    result: Json, contestants: Sequence[Contestant], options: Options, unfinished: Unfinished
) -> None:
    """Measure every server once, and append the round to the result."""
    with doing("onnxruntime alone"):
        engine = measure_engine(options)
    seen: Json = {"import_seconds": import_seconds(), "onnxruntime": engine, "servers": {}}
    result["rounds"].append(seen)
    for contestant in contestants:
        with doing(contestant.name):
            seen["servers"][contestant.name] = measured = measure(contestant, options)
        say(f"  {contestant.name}: {report.one_line(measured)}")
        unfinished.write(_texts(result))


def _texts(result: Json) -> dict[str, str]:
    return {".json": json.dumps(result, indent=1) + "\n", ".md": report.markdown(result)}


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    add = parser.add_argument
    add(
        "--only",
        nargs="+",
        metavar="NAME",
        help="servers to measure besides asgi (default: all)",
    )
    add("--seconds", type=float, default=SECONDS, help="seconds per load (default: 5)")
    add("--rounds", type=int, default=ROUNDS, help="rounds, whose medians are reported (default: 3)")
    threads = max(1, machine.cores() - 1)
    add(
        "--threads",
        type=int,
        default=threads,
        help="onnxruntime threads per server (default: cores less one)",
    )
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="also measure inkserve with other flags, for instance two-workers='--workers 2'",
    )
    add("--models-dir", type=Path, default=MODELS, help="folder of models (default: models/)")
    add_output_arguments(parser, PUBLISHED, what="path of the report, without .json and .md")
    return parser


def _chosen(only: Sequence[str] | None, variants: Sequence[str]) -> list[Contestant]:
    """The chosen contestants and inkserve's variants. Exits if a name is unknown."""
    extra = []
    for variant in variants:
        name, _, flags = variant.partition("=")
        extra.append(inkserve(f"inkserve-{name}", f"raw, {flags}", shlex.split(flags)))
    everyone = [*EVERY, *extra]
    if only is None:
        return everyone
    unknown = set(only) - {contestant.name for contestant in everyone}
    if unknown:
        names = ", ".join(contestant.name for contestant in everyone)
        sys.exit(f"loadtests: unknown server {', '.join(sorted(unknown))}, expected some of {names}")
    return [contestant for contestant in everyone if contestant.name in {*only, ASGI.name}]


if __name__ == "__main__":
    sys.exit(exit_code(main))
