"""Signs of life from long steps."""

import threading

import pytest

from loadtests import progress
from loadtests.progress import doing


def test_a_long_step_reports_that_it_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    twice = threading.Event()

    def say(text: str) -> None:
        said.append(text)
        if len(said) == 2:
            twice.set()

    monkeypatch.setattr(progress, "say", say)
    with doing("mosec", every_seconds=0.001):
        assert twice.wait(60)
    assert all(text.startswith("  ... mosec, ") for text in said)


def test_a_short_step_reports_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with doing("mosec"):
        pass
    assert capsys.readouterr().err == ""
