"""The command `python -m loadtests.peers`: measure every server in turn, some rounds, and report."""

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.peers import report
from loadtests.peers.contestants import ASGI, EVERY, Contestant, inkserve
from loadtests.peers.measure import Options, import_seconds, measure, measure_engine
from loadtests.processes import end_servers_on_sigterm

Json = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the process's exit code."""
    parsed = _parser().parse_args(arguments)
    end_servers_on_sigterm()
    if shutil.which("wrk") is None:
        print("loadtests: wrk is missing; on Debian: apt-get install wrk", file=sys.stderr)
        return 1
    options = Options(parsed.models_dir.resolve(), parsed.seconds, parsed.threads)
    contestants = _chosen(parsed.only, parsed.variant)
    result: Json = {
        "machine": machine.describe(),
        "options": {"seconds": options.seconds, "threads": options.threads},
        "servers": {contestant.name: contestant.configuration for contestant in contestants},
        "rounds": [],
    }
    for number in range(1, parsed.rounds + 1):
        _say(f"round {number} of {parsed.rounds}")
        seen: Json = {
            "import_seconds": import_seconds(),
            "onnxruntime": measure_engine(options),
            "servers": {},
        }
        result["rounds"].append(seen)
        for contestant in contestants:
            seen["servers"][contestant.name] = measured = measure(contestant, options)
            _say(f"  {contestant.name}: {report.one_line(measured)}")
            _write(result, parsed.output)
    print(report.markdown(result))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.peers", description=__doc__)
    add = parser.add_argument
    add("--only", nargs="+", metavar="NAME", help="these servers; the empty ASGI app always runs")
    add("--seconds", type=float, default=5.0, help="of each load; default 5")
    add("--rounds", type=int, default=3, help="default 3; their medians are reported")
    threads = max(1, machine.cores() - 1)
    add("--threads", type=int, default=threads, help="onnxruntime's, everywhere; default the cores less one")
    add(
        "--variant",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help="inkserve with other flags as well, for instance two-workers='--workers 2'",
    )
    add("--models-dir", type=Path, default=machine.ROOT / "models", help="default models/")
    add(
        "--output",
        type=Path,
        default=machine.RESULTS / "peers",
        help="where to write, less .json and .md; default loadtests/results/peers",
    )
    return parser


def _chosen(only: Sequence[str] | None, variants: Sequence[str]) -> list[Contestant]:
    """The contestants that are wanted, and inkserve's variants. Exits on a name that nobody has."""
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
        sys.exit(f"loadtests: there is no {', '.join(sorted(unknown))}, expected some of {names}")
    return [contestant for contestant in everyone if contestant.name in {*only, ASGI.name}]


def _write(result: Json, output: Path) -> None:
    """Write what is known so far: a crash then loses no more than the server it happened in."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
    output.with_suffix(".md").write_text(report.markdown(result))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
