"""How busy a thread is: computing counts, sleeping does not."""

import threading
import time
from pathlib import Path

import pytest

from service.observability.busy import ThreadClock


def spin(seconds: float) -> None:
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        pass


@pytest.mark.slow
def test_a_thread_that_computes_is_busy_and_one_that_sleeps_is_not() -> None:
    clock = ThreadClock()
    began = time.perf_counter()
    spin(0.2)
    busy = clock.busy_seconds()
    # The kernel brings the figure up to date at its ticks, every 10 ms at most.
    assert 0.18 <= busy <= time.perf_counter() - began + 0.02
    time.sleep(0.2)
    assert clock.busy_seconds() - busy < 0.1  # on a busy machine, waking up takes a moment


def test_another_thread_has_its_own_clock() -> None:
    seen: list[float] = []

    def sleep() -> None:
        clock = ThreadClock()
        time.sleep(0.1)
        seen.append(clock.busy_seconds())

    thread = threading.Thread(target=sleep)
    thread.start()
    spin(0.1)
    thread.join()
    assert seen[0] < 0.08


@pytest.mark.parametrize("content", [None, "", "5\n", "not a number\n"])
def test_without_the_kernels_figures_cpu_time_counts(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "schedstat"
    if content is not None:
        file.write_text(content)
    clock = ThreadClock(file)
    spent = time.thread_time()
    spin(0.02)
    assert clock.busy_seconds() == pytest.approx(time.thread_time() - spent, abs=0.005)


def test_a_process_without_file_descriptors_keeps_the_last_figure(tmp_path: Path) -> None:
    file = tmp_path / "schedstat"
    file.write_text("1000000000 500000000 7\n")
    clock = ThreadClock(file)
    file.write_text("3000000000 700000000 9\n")
    assert clock.busy_seconds() == pytest.approx(2.2)
    file.unlink()
    assert clock.busy_seconds() == pytest.approx(2.2)
    file.write_text("4000000000 700000000 9\n")
    assert clock.busy_seconds() == pytest.approx(3.2)
