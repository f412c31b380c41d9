"""Fills in the templates of model cards. Knows nothing of torch or of any model family.

A template is Markdown with the fields of `str.format`. A family's templates hold the sections of a
`Card`, one under each heading; `model.md`, `int8.md` and `fp16.md` are whole pages.
"""

import re
import shlex
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent

# The width of the lines of a card's paragraphs.
WIDTH = 120

# How a block of Markdown begins whose lines must stay as they are: headings, tables, code, pictures.
KEPT = ("#", "|", "```", "!")


@dataclass(frozen=True)
class Card:
    """The parts of a model card that only the model's family knows, each a sentence or more."""

    description: str
    architecture: str
    training: str
    intended_use: str
    limits: str


def make_card(*templates: str, **facts: Any) -> Card:
    """The card whose sections the templates hold together, with the facts filled in."""
    sections: dict[str, str] = {}
    for template in templates:
        text = _read(template).format(**facts)
        for heading, section in re.findall(r"^# (.+)\n((?:(?!# ).*\n?)*)", text, re.MULTILINE):
            sections[heading.lower().replace(" ", "_")] = " ".join(section.split())
    return Card(**sections)


def fill_page(template: str, **facts: Any) -> str:
    """A whole page: the template with the facts filled in, its paragraphs wrapped to WIDTH."""
    blocks = re.split(r"\n{2,}", _read(template).format(**facts).strip())
    return "\n\n".join(_wrapped(block) for block in blocks) + "\n"


def section(page: str, heading: str) -> str:
    """The first paragraph under a heading of a page, on one line; empty if there is none."""
    found = re.search(rf"^## {re.escape(heading)}\n\n(.*?)(?:\n\n|\Z)", page, re.MULTILINE | re.DOTALL)
    return " ".join(found[1].split()) if found else ""


def with_section(page: str, text: str) -> str:
    """A page with a section, which begins with its heading, in the place of the one with that heading.

    A new section goes before the intended use or the speed, or to the end.
    """
    heading = re.escape(text.split("\n", 1)[0])
    page = re.sub(rf"^{heading}\n.*?(?=^## |\Z)", "", page, flags=re.DOTALL | re.MULTILINE)
    place = re.search(r"^## (?:Intended use|Speed)\n", page, re.MULTILINE)
    where = place.start() if place else len(page)
    return f"{page[:where].rstrip()}\n\n{text.strip()}\n\n{page[where:]}".rstrip() + "\n"


def table(rows: Iterable[Sequence[object]]) -> str:
    """The rows of a Markdown table."""
    return "\n".join(f"| {' | '.join(str(cell) for cell in row)} |" for row in rows)


def command_lines(command: str) -> str:
    """A manifest's command with each of its steps on a line of its own, or on several that fit WIDTH."""
    return "\n".join(_continued(step) for step in command.split(" && "))


def _read(template: str) -> str:
    return (TEMPLATES / f"{template}.md").read_text()


def _continued(step: str) -> str:
    """A shell command, broken between its words; each line but the last ends in a backslash."""
    lines = [""]
    for word in map(shlex.quote, shlex.split(step)):
        if len(lines[-1]) + len(word) > WIDTH - 3:
            lines.append(" ")
        lines[-1] += f" {word}" if lines[-1] else word
    return " \\\n".join(lines)


def _wrapped(block: str) -> str:
    if block.startswith(KEPT):
        return block
    return textwrap.fill(" ".join(block.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def titled_table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A whole Markdown table."""
    return f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}\n{table(rows)}"
