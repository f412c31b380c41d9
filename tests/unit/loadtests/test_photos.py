"""The bars of the table of photos, and with them the exit code of the nightly check."""

from collections import Counter

import pytest

from loadtests.photos.__main__ import missed_bars


@pytest.mark.parametrize(
    ("outcomes", "missed"),
    [
        ({"right": 60, "rejected": 35, "wrong": 3, "surely wrong": 2}, []),
        (
            {"right": 60, "rejected": 34, "wrong": 4, "surely wrong": 2},
            ["94.0% are right or rejected, expected at least 95%"],
        ),
        ({"right": 97, "surely wrong": 3}, ["3.0% are surely wrong, expected at most 2%"]),
        (
            {"right": 90, "surely wrong": 10},
            [
                "90.0% are right or rejected, expected at least 95%",
                "10.0% are surely wrong, expected at most 2%",
            ],
        ),
    ],
)
def test_situation_misses_each_bar_it_does_not_reach(outcomes: dict[str, int], missed: list[str]) -> None:
    assert missed_bars(Counter(outcomes)) == missed
