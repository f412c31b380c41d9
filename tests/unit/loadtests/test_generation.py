"""What the load test of /generate makes of its rounds; the load itself is not for a busy machine."""

import pytest

from loadtests.generation import LARGE, SMALL, Round, Sample, reached, report


def rounds(*large: float) -> list[Round]:
    """Rounds whose services delivered this many images per second of the engine's 1,000."""
    return [
        {
            ("this checkout", LARGE): Sample(rate, 1000, 150, 120, 32, 10),
            ("this checkout", SMALL): Sample(rate / 2, 1000, 400, 120, 12.3, 5),
        }
        for rate in large
    ]


def test_what_is_reached_is_the_median_of_the_rounds() -> None:
    assert reached(rounds(900, 400, 700)) == pytest.approx(0.7)


def test_the_report_has_a_row_for_each_load() -> None:
    text = report(rounds(900, 400, 700), "gan")
    assert "| this checkout | 64 per request, 32 connections | 700 (400 to 900) |" in text
    assert "| 0.70 (0.40 to 0.90) | 150 | 120 | 32.0 | 10.0 |" in text
    assert "| 350 (200 to 450) | 0.35 (0.20 to 0.45) | 400 | 120 | 12.3 | 5.0 |" in text
    assert "0.70 of the engine's own images/s, expected 0.5 or more" in text
