"""The command `python -m loadtests.fast_path`: CPU time per request, and what options add to it.

    python -m loadtests.fast_path
    python -m loadtests.fast_path --against ../inkserve-before

Each round starts one service per configuration and loads one at a time, in short slices that alternate. wrk
posts one raw image per request over 64 connections and gets raw float32 back. A ratio compares neighbouring
slices, so that a change in the machine's speed affects both sides.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from loadtests import wrk
from loadtests.arguments import at_least_one, checkout
from loadtests.interrupts import exit_code
from loadtests.machine import ROOT, describe
from loadtests.peers.contestants import NotInstalled, newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.peers.wire import OCTETS, RAW, Headers, Images, Probabilities, Wire, agrees
from loadtests.processes import Server, ServerFailed, end_servers_on_sigterm, free_port, serving
from loadtests.progress import say
from loadtests.samples import Sample, sample_of

MODEL = "mlp-int8"
PATH = f"/classify?model={MODEL}"
CONNECTIONS = 64
WARM_UP_SECONDS = 1.0
KEY = "fast-path-benchmark-key"
DEFAULT = "default"


@dataclass(frozen=True)
class Configuration:
    """A way to run the service.

    directory: the checkout that is run. limit: the highest accepted ratio to the default's CPU time, or None.
    """

    name: str
    flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    directory: Path = ROOT
    limit: float | None = None


Slice = Mapping[str, Sample]
"""Samples taken one right after another, by the configuration's name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a ratio is above its limit or nothing could be measured."""
    parsed = _parser().parse_args(arguments)
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    with tempfile.TemporaryDirectory() as folder:
        configurations = _configurations(Path(folder), parsed.against)
        try:
            slices = [
                each
                for number in range(1, parsed.rounds + 1)
                for each in _round(configurations, number, parsed)
            ]
        except (NotInstalled, ServerFailed) as error:
            print(f"loadtests: {error}", file=sys.stderr)
            return 1
    print(report(configurations, slices))
    return 1 if missed(configurations, slices) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.fast_path",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--rounds", type=at_least_one, default=3, help="times to start every service (default: 3)")
    add("--slices", type=at_least_one, default=4, help="slices per service and round (default: 4)")
    add("--seconds", type=at_least_one, default=1, help="whole seconds per slice (default: 1)")
    add(
        "--against",
        type=checkout,
        metavar="DIR",
        help="another checkout of this project, run with its own code and models in this virtual environment",
    )
    return parser


def _configurations(folder: Path, against: Path | None) -> list[Configuration]:
    """The configurations to compare. folder: a private folder, which gets the file of API keys."""
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o600)
    closed = f"http://127.0.0.1:{free_port()}"
    unsampled = {"OTEL_TRACES_SAMPLER": "always_off", "OTEL_EXPORTER_OTLP_ENDPOINT": closed}
    chosen = [
        Configuration(DEFAULT),
        Configuration("access log to a file", ["--access-log"], limit=1.3),
        Configuration("tracing, unsampled", ["--tracing", "otlp"], unsampled, limit=1.2),
        Configuration("API keys", ["--api-keys-file", str(keys)], headers={"Authorization": f"Bearer {KEY}"}),
    ]
    if against is not None:
        chosen.append(Configuration(_name(against), directory=against))
    return chosen


def _name(checkout: Path) -> str:
    git = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    if shutil.which("git") is None:
        return "the other checkout"
    run = subprocess.run(git, capture_output=True, text=True, check=False)
    return f"default at {run.stdout.strip() or 'an unknown commit'}"


def _round(
    configurations: Sequence[Configuration], number: int, parsed: argparse.Namespace
) -> Iterator[Slice]:
    """Start every configuration, measure slice after slice, stop them. Raises ServerFailed."""
    place = f"round {number} of {parsed.rounds}"
    with ExitStack() as stack:
        say(f"{place}: starting {len(configurations)} services")
        targets = {each.name: _start(each, stack) for each in configurations}
        for target in targets.values():
            _load(target, WARM_UP_SECONDS)
        names = list(targets)
        for index in range(parsed.slices):
            first = (number + index) % len(names)
            order = (*names[first:], *names[:first])
            samples = {name: _load(targets[name], parsed.seconds) for name in order}
            figures = ", ".join(f"{name} {1e6 * samples[name].cpu_seconds:.1f} us" for name in names)
            say(f"{place}, slice {index + 1} of {parsed.slices}: {figures}")
            yield samples


@dataclass(frozen=True)
class _Target:
    server: Server
    port: int
    wire: Wire


def _start(configuration: Configuration, stack: ExitStack) -> _Target:
    """Start a service that stops with the stack; it has answered one image correctly. Raises ServerFailed."""
    port, wire = free_port(), _wire(configuration.headers)
    image, expected = images_of(1), _expected(configuration.directory)
    command = [sys.executable, "-m", "service", "--port", str(port), *configuration.flags]
    server = serving(
        command,
        lambda: agrees(port, PATH, wire, image, expected),
        directory=configuration.directory,
        environment=configuration.environment,
    )
    return _Target(stack.enter_context(server), port, wire)


def _wire(headers: Mapping[str, str]) -> Wire:
    """Raw bytes in, raw float32 out, with these headers on top."""

    def encode(images: Images) -> tuple[bytes, Headers]:
        return images.tobytes(), {"Content-Type": OCTETS, "Accept": OCTETS, **headers}

    return Wire(encode, RAW.decode)


def _expected(checkout: Path) -> Probabilities:
    return right_answer(newest_graph(checkout / "models", MODEL), images_of(1))


def _load(target: _Target, seconds: float) -> Sample:
    """Load one service. Raises ServerFailed unless every response is 200."""
    body, headers = target.wire.encode(images_of(1))
    url = f"http://127.0.0.1:{target.port}{PATH}"
    return sample_of(target.server, url, body, headers, connections=CONNECTIONS, seconds=seconds)


def ratio(slices: Sequence[Slice], name: str, to: str = DEFAULT) -> float:
    """The median over the slices of one configuration's CPU time per request over another's."""
    return statistics.median(each[name].cpu_seconds / each[to].cpu_seconds for each in slices)


def missed(configurations: Sequence[Configuration], slices: Sequence[Slice]) -> list[str]:
    """The names of the configurations that cost more than their limit."""
    return [
        each.name
        for each in configurations
        if each.limit is not None and ratio(slices, each.name) > each.limit
    ]


def report(configurations: Sequence[Configuration], slices: Sequence[Slice]) -> str:
    """Markdown: medians, spread and ratios."""
    about = describe()
    lines = [
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}; {about['cpu']}, "
        f"{about['cores']} cores shared with wrk; medians of {len(slices)} slices.",
        "",
        "| configuration | CPU us per request | lowest to highest | requests/s | times the default | limit "
        "| |",
        "|---|---|---|---|---|---|---|",
    ]
    late = missed(configurations, slices)
    for each in configurations:
        samples = [seen[each.name] for seen in slices]
        costs = [1e6 * sample.cpu_seconds for sample in samples]
        verdict = "" if each.limit is None else "miss" if each.name in late else "pass"
        cells = [
            each.name,
            f"{statistics.median(costs):.1f}",
            f"{min(costs):.1f} to {max(costs):.1f}",
            f"{statistics.median(sample.requests_per_second for sample in samples):,.0f}",
            f"{ratio(slices, each.name):.3f}",
            "" if each.limit is None else f"{each.limit:g}",
            verdict,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    others = [each.name for each in configurations if each.directory != ROOT]
    lines += [
        f"\nThe default here takes {ratio(slices, DEFAULT, to=name):.3f} times the CPU time of the {name}."
        for name in others
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_code(main))
