"""The cores of a measured service and of its generator."""

import os
import subprocess
import sys

from loadtests.placement import on_cores, place


def test_the_generator_gets_the_last_core_and_the_service_the_others() -> None:
    cores = sorted(os.sched_getaffinity(0))
    placement = place()
    assert placement.generator_cores == cores[-1:]
    assert placement.service_cores == (cores[:-1] or cores)
    with on_cores(cores[:1]):
        assert place().service_cores == place().generator_cores == cores[:1]


def test_processes_started_on_cores_stay_there() -> None:
    before = os.sched_getaffinity(0)
    first = min(before)
    with on_cores([first]):
        shown = subprocess.run(
            [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert shown.stdout.strip() == str({first})
    assert os.sched_getaffinity(0) == before
