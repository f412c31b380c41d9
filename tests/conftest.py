"""Fixtures of several test files: tiny models, built on the spot. Marks slow tests, lists why tests skip."""

import gc
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import settings as hypothesis_settings
from onnx import TensorProto, helper, numpy_helper

from service.memory import disable_gc, freeze_and_enable_gc
from tests.support.models import (
    DIGITS,
    IMAGES,
    LABEL,
    PROBABILITIES,
    first_pixel_classifier,
    make_model,
    ramp_generator,
    write_model,
    z_spec,
)

if TYPE_CHECKING:
    from tests.support.tiny_runs import Workshop


def pytest_configure() -> None:
    """Give torch one thread, register hypothesis's profiles, and save time while tests are collected.

    The threads of OpenMP, of which torch has one per core, wait for each other more than they compute in a
    tiny network, and for every other process: test_flow.py took 12 s with two of them beside a training, and
    1.7 s with one. torch reads the variable when it is imported, in the tests' subprocesses too.

    The profile of .ci/nightly has more examples, and different ones each night. No profile has the deadline
    of 0.2 s for an example, which other work on the machine can use up.
    """
    disable_gc()
    # When jsonschema is imported, it would build a parser of IRIs, 1.2 s, for a format that no test checks.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    hypothesis_settings.register_profile("timeless", hypothesis_settings(), deadline=None)
    hypothesis_settings.load_profile("timeless")
    default = hypothesis_settings.get_profile("default")
    hypothesis_settings.register_profile(
        "nightly", default, max_examples=1000, deadline=None, print_blob=True
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that share the workshop as slow: it takes 16 s to set up."""
    for item in items:
        if "workshop" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave the modules and the collected tests, 760,000 objects, out of garbage collection.

    Each full collection took 0.4 s, and 1 s in a long run: 10 of the 63 s of CPU time of tests/unit/http.
    """
    freeze_and_enable_gc()


def pytest_runtest_teardown(nextitem: pytest.Item | None) -> None:
    """Collect garbage in a process's last test: pytest-xdist loses what a leak warns of after that."""
    if nextitem is None:
        gc.collect()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests were skipped, and how many for each reason."""
    skipped: list[pytest.TestReport] = terminalreporter.stats.get("skipped", [])
    reasons = Counter(str(report.longrepr[2]) for report in skipped if isinstance(report.longrepr, tuple))
    if reasons:
        terminalreporter.section("why tests were skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"{count:4d} {reason.removeprefix('Skipped: ')}")


@pytest.fixture
def add_classifier(tmp_path: Path) -> Callable[..., Path]:
    """Adds a version of a classifier to the models folder `tmp_path`."""

    def add(name: str = "first-pixel", version: int = 1, labels: tuple[str, ...] = DIGITS) -> Path:
        return write_model(
            tmp_path,
            first_pixel_classifier(),
            name=name,
            task="classification",
            inputs=(IMAGES,),
            outputs=(PROBABILITIES,),
            version=version,
            labels=labels,
        )

    return add


@pytest.fixture
def add_generator(tmp_path: Path) -> Callable[..., Path]:
    """Adds a generator to the models folder `tmp_path`."""

    def add(name: str = "ramp", version: int = 1) -> Path:
        return write_model(
            tmp_path,
            ramp_generator(),
            name=name,
            task="generation",
            inputs=(z_spec(), LABEL),
            outputs=(IMAGES,),
            version=version,
        )

    return add


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> "Workshop":
    """Tiny trained and exported models of every family (torch is imported for those who ask)."""
    from tests.support.tiny_runs import shared

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "workshop"
    folder.mkdir(exist_ok=True)
    return shared(folder)


@pytest.fixture
def add_slow(tmp_path: Path) -> Callable[[], Path]:
    """A models folder with one classifier that takes some milliseconds a row."""

    def add() -> Path:
        size = 1500
        rng = np.random.default_rng(0)
        nodes = [
            helper.make_node("Cast", ["images"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("Flatten", ["float"], ["h0"], axis=1),
            helper.make_node("MatMul", ["h0", "first"], ["h1"]),
            *[helper.make_node("MatMul", [f"h{i}", "square"], [f"h{i + 1}"]) for i in range(1, 13)],
            helper.make_node("MatMul", ["h13", "last"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ]
        constants = [
            numpy_helper.from_array(rng.normal(0, 0.01, (784, size)).astype(np.float32), "first"),
            numpy_helper.from_array(rng.normal(0, 0.01, (size, size)).astype(np.float32), "square"),
            numpy_helper.from_array(rng.normal(0, 0.01, (size, 10)).astype(np.float32), "last"),
        ]
        write_model(
            tmp_path,
            make_model(nodes, constants, (IMAGES,), (PROBABILITIES,)),
            name="slow",
            task="classification",
            inputs=(IMAGES,),
            outputs=(PROBABILITIES,),
        )
        return tmp_path

    return add
