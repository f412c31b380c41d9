"""The documentation: its commands run as pasted, its links lead somewhere, its site builds without warnings.

Sybil and byexample run blocks of Markdown too, but neither keeps a service running next to a page's commands,
nor compares numbers with a tolerance.
"""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.support.console import Failed, Shell, copy_tree, matches, read_blocks
from tests.support.live import ROOT

DOCS = ROOT / "docs"
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "loadtests" / "README.md",
    ROOT / "models" / "README.md",
    *sorted(DOCS.rglob("*.md")),
]
LANGUAGES = {"console", "json", "python", "text", "yaml"}
README_LINES = 150
PROGRAMS = ("wrk",)
"""What a page may need besides Python and Debian's basic programs; a block is skipped without it."""

NORUN = {
    "CONTRIBUTING.md": (1, "runs what CI runs itself"),
    "docs/confidence.md": (2, "needs Fashion-MNIST, or training data, and takes minutes"),
    "docs/decisions/equal-bits.md": (1, "takes minutes"),
    "docs/decisions/fast-path.md": (1, "takes minutes"),
    "docs/deployment.md": (14, "need a cluster, Docker or a registry"),
    "docs/image.md": (4, "need Docker"),
    "docs/gpu.md": (6, "need a GPU, or take minutes"),
    "docs/load-testing.md": (4, "need several machines or a slow one, or run until stopped"),
    "docs/models.md": (8, "take minutes, or need Fashion-MNIST"),
    "docs/open-inference.md": (2, "needs an environment that CI installs, and loads the service"),
    "docs/own-models.md": (2, "need a registry (test_registry.py makes the same calls), or a graph"),
    "docs/performance.md": (8, "take 2 to 10 minutes, or draw a picture of the documentation"),
    "docs/privacy.md": (2, "train for minutes, one of them with Flower, 1.7 GB of packages"),
    "docs/reliability.md": (1, "takes 25 minutes"),
    "docs/security.md": (1, "needs openssl and a password typed in"),
    "docs/runbooks.md": (1, "needs a cluster"),
    "docs/scaling.md": (1, "takes six minutes on a quiet machine"),
    "docs/training.md": (2, "trains for an hour, and on two nodes"),
    "docs/tuning.md": (1, "trains for half an hour"),
    "models/README.md": (2, "train for minutes to an hour"),
    "loadtests/README.md": (3, "take up to half an hour"),
}
"""How many blocks of a page do not run, and why. Every other page has none: a new one is argued for here."""

NAMED = re.compile(
    r"(?:\.ci|docs|examples|helm|loadtests|models|requirements|service|tests|training)/[\w./-]+"
)
"""A file or folder of the project, as a code span names it."""

MADE = ("loadtests/results/gpu.json",)
"""Files that a command writes and git does not hold."""

SLOW_PAGES = ("docs/load-testing.md", "docs/performance.md")
"""Pages whose commands take half a minute, and that other tests run with other values."""

ISSUED = "git clone <this repository> inkserve && cd inkserve"
"""What `copy_tree` does: each page runs in a fresh copy of the project."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, from which pages and the site are made."""
    folder = tmp_path_factory.mktemp("project") / "inkserve"
    copy_tree(ROOT, folder)
    return folder


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy for one page, which may write to it."""
    folder = tmp_path / "inkserve"
    shutil.copytree(project, folder, symlinks=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.nightly) if name_of(page) in SLOW_PAGES else page
        for page in PAGES
    ],
    ids=name_of,
)
def test_a_pages_commands_run_as_pasted(page: Path, copy: Path, tmp_path: Path) -> None:
    blocks = [block for block in read_blocks(page.read_text()) if block.runs]
    skipped = []
    with Shell(copy, tmp_path) as shell:
        for block in blocks:
            missing = [name for name in PROGRAMS if re.search(rf"\b{name} ", "\n".join(block.lines))]
            missing = [name for name in missing if shutil.which(name) is None]
            if missing:
                skipped.append(f"line {block.line} needs {missing[0]}")
                continue
            for command in block.commands():
                if command.text == ISSUED:
                    continue
                try:
                    shell.run(command)
                except Failed as error:
                    pytest.fail(f"{name_of(page)}:{command.line}: {error}", pytrace=False)
    if skipped:
        pytest.skip("; ".join(skipped))


def test_no_block_escapes_unnoticed() -> None:
    counts = {
        name_of(page): sum(
            block.info.startswith("console") and not block.runs for block in read_blocks(page.read_text())
        )
        for page in PAGES
    }
    assert {name: count for name, count in counts.items() if count} == {
        name: count for name, (count, _) in NORUN.items()
    }


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_fence_names_a_language_that_is_checked_or_inert(page: Path) -> None:
    for block in read_blocks(page.read_text()):
        language, *options = block.info.split() or [""]
        assert language in LANGUAGES, f"line {block.line}"
        assert options in ([], ["norun"] if language == "console" else []), f"line {block.line}"
        if language == "json":
            json.loads("\n".join(block.lines))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file(page: Path) -> None:
    """Pages of the site may not leave docs/: what lies outside is named, not linked."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "#")):
            continue
        path = (page.parent / unquote(target.partition("#")[0])).resolve()
        assert path.exists(), target
        if DOCS in page.parents:
            assert path.is_relative_to(DOCS), f"{target} leaves docs/"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if NAMED.fullmatch(span) and span not in MADE:
            assert (ROOT / span).exists(), span


def test_every_page_is_in_the_sites_navigation() -> None:
    def pages(entries: list[dict[str, object]]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values():
                if isinstance(value, list):
                    yield from pages(value)
                else:
                    yield str(value)

    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    assert sorted(pages(nav)) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_site_builds_without_warnings_or_other_hosts(project: Path) -> None:
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((project / "build" / "site").rglob("*.html"))
    assert len(pages) > len(list(DOCS.rglob("*.md")))  # and the page for 404
    for page in pages:
        html = page.read_text()
        loaded = re.findall(r"<(?:script|img|iframe|source)[^>]*\ssrc=\"?([^\"\s>]+)", html)
        loaded += re.findall(r"<link[^>]*rel=\"?(?:stylesheet|preconnect|icon)[^>]*href=\"?([^\"\s>]+)", html)
        assert loaded
        assert not [url for url in loaded if re.match(r"(?:https?:)?//", url)], page.name


def test_the_diagram_shows_every_wing() -> None:
    drawn = set(re.findall(r">([a-z_/]+)</text>", (DOCS / "wings.svg").read_text()))
    wings = {path.parent.name for path in (ROOT / "service").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "service").glob("*.py")} - {"__init__"}
    assert wings | files <= drawn


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= README_LINES


@pytest.mark.parametrize(
    ("shown", "seen", "same"),
    [
        ("ready", "ready\n", True),
        ("... ready at http://127.0.0.1:8000, ...", "12:00 ready at http://127.0.0.1:8123, see /docs", True),
        ('{"p":0.9999,\n "q":1.8276879e-6}', '{"p":0.99990001,"q":1.8276861e-06}', True),
        ('{"p":0.9999}', '{"p":0.9899}', False),
        ('{"label":"7"}', '{"label":"1"}', False),
        ("one ...", "two", False),
        ("", "anything", False),
    ],
)
def test_output_is_compared_by_text_and_by_value(shown: str, seen: str, same: bool) -> None:
    assert matches(shown, seen, 8123) is same


def test_commands_are_read_with_their_lines_and_their_output() -> None:
    page = "text\n\n```console\n$ one \\\n    more\nout\n\n$ two\n```\n\n```console norun\n$ three\n```\n"
    first, second = read_blocks(page)
    assert (first.runs, second.runs) == (True, False)
    assert [(c.line, c.text, c.shown) for c in first.commands()] == [
        (4, "one \\\n    more", "out\n"),
        (8, "two", ""),
    ]


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("false", "exited with 1"),
        ("echo one\ntwo", "printed"),
        ("make serve ARGS=--nonsense", "unrecognized arguments"),
        ("curl http://127.0.0.1:8000/nothing", "exited with 22"),
    ],
)
def test_a_wrong_page_fails(command: str, problem: str, copy: Path, tmp_path: Path) -> None:
    [block] = read_blocks(f"```console\n$ {command}\n```")
    [read] = block.commands()
    with Shell(copy, tmp_path) as shell, pytest.raises(Failed, match=problem):
        shell.run(read)
