"""The table of all rows, and its place in docs/reliability.md."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loadtests.chaos.verdicts import Figure, Row

BEGIN = "<!-- The table of `make chaos`: written by it, do not edit. -->"
END = "<!-- End of the table. -->"
HEAD = ("scenario", "server", "before", "now", "bar", "")
ALIVE = "dead at the end"
Key = tuple[str, str]


def merged(old: Iterable[Row], new: Iterable[Row]) -> list[Row]:
    """The old rows, with the new ones in place of those with their keys, scenario by scenario."""
    rows: dict[Key, Row] = {row.key: row for row in old}
    rows.update({row.key: row for row in new})
    scenarios = list(dict.fromkeys(scenario for scenario, _ in rows))
    return [row for scenario in scenarios for row in rows.values() if row.scenario == scenario]


def table(rows: Sequence[Row], before: Mapping[Key, Row]) -> str:
    """The table in Markdown."""
    lines = [_line(HEAD), _line(["---"] * len(HEAD))]
    for row in rows:
        earlier = before.get(row.key)
        lines.append(
            _line(
                [
                    row.scenario,
                    row.server,
                    "" if earlier is None else _figures(earlier, only=earlier.bars),
                    _figures(row, only=row.figures) + (f" ({row.note})" if row.note else ""),
                    _bars(row),
                    verdict(row),
                ]
            )
        )
    return "\n".join(lines) + "\n"


def verdict(row: Row) -> str:
    """The last cell of a row."""
    if not row.bars:
        return "not judged"
    return "pass" if row.passed else "**miss**: " + ", ".join(row.misses)


def one_line(row: Row) -> str:
    """A row in one line, to follow a run."""
    return f"  {row.scenario}, {row.server}: {_figures(row, only=row.figures)} -> {verdict(row)}"


def conditions(rows: Sequence[Row]) -> str:
    """The commits, dates and scales of the rows, and the machine, in a sentence for each."""
    runs: dict[str, list[str]] = {}
    for row in rows:
        about = row.about
        text = (
            f"commit {about.get('commit', 'unknown')}, {str(about.get('measured_at', ''))[:10]}, "
            f"scale {about.get('scale', 1):g}, {about.get('cores', '?')} cores shared with the clients, "
            f"load average {about.get('load_average_before', 0):.1f} before"
        )
        runs.setdefault(text, []).append(row.scenario)
    counts = {text: "1 row" if len(names) == 1 else f"{len(names)} rows" for text, names in runs.items()}
    return "\n".join(f"- {count}: {text}." for text, count in counts.items()) + "\n"


def put_into(page: str, text: str) -> str:
    """The page with its table replaced. Raises ValueError if it has no place for one."""
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page has no {BEGIN!r} and {END!r}, expected both")
    pattern = re.escape(BEGIN) + ".*" + re.escape(END)
    return re.sub(pattern, lambda _: f"{BEGIN}\n\n{text}\n{END}", page, count=1, flags=re.DOTALL)


def to_json(row: Row) -> dict[str, Any]:
    """A row for the JSON file, with its verdict."""
    figures = {name: _finite(value) for name, value in row.figures.items()}
    return {
        "scenario": row.scenario,
        "server": row.server,
        "figures": figures,
        "bars": row.bars,
        "misses": row.misses,
        "note": row.note,
        "about": row.about,
    }


def from_json(value: Mapping[str, Any]) -> Row:
    """What `to_json` wrote."""
    return Row(*(value[name] for name in ("scenario", "server", "figures", "bars", "note", "about")))


def _finite(value: Figure) -> Figure:
    return value if value is None or math.isfinite(value) else None


def _figures(row: Row, only: Iterable[str]) -> str:
    shown = [name for name in row.figures if name in set(only)]
    return ", ".join(f"{name} {number(row.figures[name])}" for name in shown if _matters(row, name))


def _matters(row: Row, name: str) -> bool:
    return name != ALIVE or name in row.misses


def _bars(row: Row) -> str:
    bars = {name: limit for name, limit in row.bars.items() if name != ALIVE}
    return ", ".join(f"{name} {'<= ' if limit else ''}{number(limit)}" for name, limit in bars.items())


def number(value: Figure) -> str:
    """A figure as the table shows it."""
    if value is None or math.isnan(value):
        return "unknown"
    if value == round(value):
        return f"{value:,.0f}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 1 else f"{value:.3g}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "/").split()) for cell in cells) + " |"
