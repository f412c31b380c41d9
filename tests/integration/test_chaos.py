"""Small versions of `make chaos`'s scenarios, with the real service. Figures of time are not judged here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from loadtests.chaos.faults import descriptors, failing_batch, output
from loadtests.chaos.kills import kills_of
from loadtests.chaos.leavers import leavers
from loadtests.chaos.mixed import mixed
from loadtests.chaos.report import to_json
from loadtests.chaos.scenario import Context
from loadtests.chaos.subjects import FORMS
from loadtests.chaos.verdicts import Row
from loadtests.machine import ROOT

pytestmark = pytest.mark.slow

SINGLE, SPLIT = Context(FORMS["single"], 0.002), Context(FORMS["split"], 0.008)


def misses(row: Row) -> list[str]:
    """The bars that a row misses, without those of time."""
    return [name for name in row.misses if not name.endswith(" s")]


@pytest.mark.parametrize("context", [SINGLE, SPLIT], ids=lambda context: context.subject.name)
def test_every_answer_to_a_mixture_is_onnxruntimes(context: Context) -> None:
    (row,) = mixed(context)
    requests = row.figures["requests"]
    assert requests is not None
    assert requests >= 1000
    assert not misses(row), row


def test_nothing_is_left_of_clients_that_left() -> None:
    (row,) = leavers(SINGLE)
    assert not misses(row), row


def test_a_killed_engine_leaves_nobody_waiting() -> None:
    row = kills_of(SPLIT, "engine")
    assert row.figures["kills"] == 3
    assert not misses(row), row


@pytest.mark.parametrize("form", ["single", "split"])
def test_a_batch_that_raises_is_answered_and_the_next_one_runs(form: str) -> None:
    row = failing_batch(FORMS[form])
    assert row.figures["mates"] == 300
    assert not misses(row), row


def test_a_full_disk_stops_nothing() -> None:
    row = output(SINGLE, "Disk full", 'exec "$@" >/dev/full 2>/dev/full')
    assert not misses(row), row


@pytest.mark.parametrize("form", ["single", "split"])
def test_a_served_connection_outlives_silent_ones_that_take_every_descriptor(form: str) -> None:
    row = descriptors(FORMS[form])
    assert not misses(row), row


def test_the_command_merges_its_rows_into_the_file(tmp_path: Path) -> None:
    path = tmp_path / "chaos.json"
    path.write_text(json.dumps([to_json(Row("Another", "inkserve", {"n": 1}))]))
    options = ["--only", "leavers", "--forms", "single", "--scale", "0.001", "--output", str(path)]
    subprocess.run([sys.executable, "-m", "loadtests.chaos", *options], cwd=ROOT, check=True)
    assert [row["scenario"] for row in json.loads(path.read_text())] == ["Another", "Clients that leave"]
