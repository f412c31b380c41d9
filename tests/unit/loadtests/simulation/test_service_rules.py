"""The simulation's view of the service's queue, and its independence of everything else in the service."""

import ast
from pathlib import Path

from loadtests import simulation
from loadtests.simulation.service_rules import Queue, padded_rows


def test_only_service_rules_imports_the_service() -> None:
    folder = Path(simulation.__file__).parent
    importers = [file.name for file in folder.glob("*.py") if "service" in imported_packages(file)]
    assert importers == ["service_rules.py"]


def test_service_rules_imports_public_names_only() -> None:
    tree = ast.parse((Path(simulation.__file__).parent / "service_rules.py").read_text())
    names = [
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("service.")
        for alias in node.names
    ]
    assert names
    assert not [name for name in names if name.startswith("_")]


def imported_packages(file: Path) -> set[str]:
    packages = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            packages.add(node.module.partition(".")[0])
        elif isinstance(node, ast.Import):
            packages.update(alias.name.partition(".")[0] for alias in node.names)
    return packages


def test_a_request_finishes_with_the_batch_that_holds_its_last_rows() -> None:
    queue, finished = Queue(4, 100, 10), list[str]()
    assert queue.push(6, 0.0, 10.0, lambda: finished.append("six"))
    first, second = queue.take(None), queue.take(None)
    assert (first.rows, first.finished, second.rows) == (4, [], 2)
    second.finished[0]()
    assert finished == ["six"]
    assert queue.take(None).rows == 0


def test_a_rejection_counts_until_the_next_batch() -> None:
    queue = Queue(4, 100, 1)
    assert queue.push(1, 0.0, 10.0, lambda: None)
    assert not queue.refused_since_batch
    assert not queue.push(1, 0.0, 10.0, lambda: None)
    assert queue.refused_since_batch
    queue.take(None)
    assert not queue.refused_since_batch


def test_a_request_that_the_measured_pace_makes_late_is_rejected() -> None:
    queue = Queue(4, 100, 10)
    assert queue.push(4, 0.0, 100.0, lambda: None)
    queue.note_batch(queue.take(None).rows, 0.0, 4.0)  # a row is now expected to take 0.1 s
    assert queue.push(4, 4.0, 100.0, lambda: None)
    assert queue.push(1, 4.0, 4.2, lambda: None)  # small: its lane is empty
    assert not queue.push(4, 4.0, 4.9, lambda: None)


def test_expired_requests_leave_the_queue() -> None:
    queue = Queue(4, 100, 10)
    assert queue.push(1, 0.0, 1.0, lambda: None)
    assert queue.push(1, 0.0, 2.0, lambda: None)
    assert [queue.expire(now) for now in (0.5, 1.0, 1.0)] == [0, 1, 0]
    assert queue.rows == 1


def test_a_batch_on_a_cpu_is_padded_to_four_sizes_per_power_of_two() -> None:
    assert [padded_rows(rows, 64) for rows in (1, 8, 9, 17, 33, 64)] == [1, 8, 10, 20, 40, 64]
