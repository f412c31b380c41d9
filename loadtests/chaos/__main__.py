"""The command `python -m loadtests.chaos`: trouble the service in every way, and report what was lost."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from loadtests import machine
from loadtests.chaos import report
from loadtests.chaos.attacks import attacks
from loadtests.chaos.faults import faults
from loadtests.chaos.flood import flood
from loadtests.chaos.kills import kills
from loadtests.chaos.leavers import leavers
from loadtests.chaos.mixed import mixed
from loadtests.chaos.scenario import Context, Scenario
from loadtests.chaos.slow_clients import slow_clients
from loadtests.chaos.stops import stops
from loadtests.chaos.subjects import FORMS, PEERS, Subject
from loadtests.chaos.verdicts import Row
from loadtests.interrupts import exit_code
from loadtests.outputs import Unfinished, add_output_arguments, chosen_output, shown, write_text
from loadtests.peers.contestants import NotInstalled
from loadtests.processes import end_servers_on_sigterm
from loadtests.progress import doing, say

PUBLISHED = machine.RESULTS / "chaos.json"
BEFORE = machine.RESULTS / "chaos_before.json"
PAGE = machine.ROOT / "docs" / "reliability.md"
SCENARIOS: dict[str, Scenario] = {
    "stops": stops,
    "kills": kills,
    "mixed": mixed,
    "leavers": leavers,
    "slow": slow_clients,
    "flood": flood,
    "faults": faults,
    "attacks": attacks,
}
ON_PEERS = ("stops", "leavers", "slow", "flood", "attacks")
PEER_SCALE = 0.1
"""Of the counts and times: a peer's row shows of which kind it is, and takes minutes as it is."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 1 if inkserve misses a bar."""
    parsed = command_line().parse_args(arguments)
    end_servers_on_sigterm()
    output = chosen_output(parsed, PUBLISHED, full=_is_full_run(parsed))
    about = {**machine.describe(), "scale": parsed.scale}
    unfinished, rows = Unfinished("chaos"), list[Row]()
    with unfinished.kept():
        for row in _measure(parsed, about):
            rows.append(row)
            say(report.one_line(row))
            unfinished.write({".json": _json(rows)})
    everything = report.merged(_read(output), rows)
    write_text(output, _json(everything))
    text = report.table(everything, {row.key: row for row in _read(BEFORE)})
    if output == PUBLISHED:
        write_text(PAGE, report.put_into(PAGE.read_text(), text + "\n" + report.conditions(everything)))
    print(report.table(rows, {row.key: row for row in _read(BEFORE)}))
    say(f"written: {shown(output)}")
    ours = {FORMS[form].name for form in FORMS}
    return int(any(not row.passed for row in rows if row.server in ours))


def _measure(parsed: argparse.Namespace, about: dict[str, Any]) -> Iterator[Row]:
    """Run every chosen scenario on every chosen server."""
    for name in parsed.only:
        for form in parsed.forms:
            context = Context(FORMS[form], parsed.scale, parsed.seed)
            yield from _rows(name, context, about)
        for peer in parsed.peers:
            if name in ON_PEERS:
                scale = min(parsed.scale, PEER_SCALE)
                context = Context(PEERS[peer], scale, parsed.seed)
                yield from _rows(name, context, {**about, "scale": scale})


def _rows(name: str, context: Context, about: dict[str, Any]) -> Iterator[Row]:
    """Run one scenario on one server; a scenario that breaks off is a row that misses its bar."""
    subject = context.subject
    try:
        _install(subject)
        with doing(f"{name}, {subject.name}"):
            for row in SCENARIOS[name](context):
                yield Row(row.scenario, row.server, row.figures, row.bars, row.note, about)
    except Exception as error:  # the edge of one scenario: the others still run
        note = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        yield Row(f"Not completed: {name}", subject.name, {"errors": 1}, {"errors": 0}, note, about)


def _install(subject: Subject) -> None:
    if not subject.ours:
        try:
            subject.contestant.install()
        except NotInstalled as error:
            raise RuntimeError(f"{subject.name} cannot be installed: {error}") from None


def command_line() -> argparse.ArgumentParser:
    """The options of the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.chaos", description=__doc__)
    add = parser.add_argument
    names = ", ".join(SCENARIOS)
    add(
        "--only",
        nargs="+",
        choices=SCENARIOS,
        default=list(SCENARIOS),
        metavar="SCENARIO",
        help=f"scenarios to run, of {names} (default: all)",
    )
    add(
        "--forms",
        nargs="*",
        choices=FORMS,
        default=list(FORMS),
        help="forms of the service: one process, or 2 HTTP workers and an engine (default: both)",
    )
    add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=[],
        help=f"also run {', '.join(ON_PEERS)} on other servers, at a tenth of the scale; they are installed "
        "into virtual environments of their own (default: none)",
    )
    add("--scale", type=float, default=1.0, help="fraction of the counts and times (default: 1)")
    add("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    add_output_arguments(parser, PUBLISHED, what="path of the JSON file; rows of other runs in it stay")
    return parser


def _is_full_run(parsed: argparse.Namespace) -> bool:
    """Whether a run has all that the published table is about."""
    whole = list(parsed.only) == list(SCENARIOS) and list(parsed.forms) == list(FORMS)
    return whole and parsed.scale >= 1


def _json(rows: Sequence[Row]) -> str:
    return json.dumps([report.to_json(row) for row in rows], indent=1) + "\n"


def _read(path: Path) -> list[Row]:
    return [report.from_json(value) for value in json.loads(path.read_text())] if path.exists() else []


if __name__ == "__main__":
    sys.exit(exit_code(main))
