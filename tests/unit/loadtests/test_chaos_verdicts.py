"""What chaos decides about figures, and how it reports them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.chaos import report
from loadtests.chaos.kills import Event, recovery_seconds
from loadtests.chaos.verdicts import Row, percentile, ratio, slope

FINITE = st.floats(-1e6, 1e6)


@pytest.mark.parametrize(
    ("figure", "passed"), [(0, True), (2.0, True), (2.01, False), (None, False), (math.nan, False)]
)
def test_a_figure_passes_only_if_it_is_known_and_within_its_bar(figure: float | None, passed: bool) -> None:
    row = Row("a", "b", {"lost": figure, "other": 9}, {"lost": 2})
    assert row.passed is passed
    assert row.misses == ([] if passed else ["lost"])


def test_a_bar_without_its_figure_is_missed() -> None:
    assert Row("a", "b", {}, {"lost": 0}).misses == ["lost"]


@given(st.lists(FINITE, min_size=1), st.floats(0.01, 1))
def test_a_percentile_is_the_smallest_value_that_covers_its_fraction(
    values: list[float], part: float
) -> None:
    value = percentile(values, part)
    assert sum(each <= value for each in values) >= part * len(values) - 1e-9
    assert sum(each < value for each in values) < part * len(values) + 1e-9


@given(st.integers(-50, 50), st.integers(-1000, 1000), st.sets(st.integers(-100, 100), min_size=2))
def test_the_slope_of_a_line_is_its_own(rise: int, base: int, places: set[int]) -> None:
    assert slope([(x, base + rise * x) for x in places]) == pytest.approx(rise, abs=1e-6)


def test_a_slope_or_percentile_of_nothing_is_unknown() -> None:
    assert math.isnan(slope([]))
    assert math.isnan(slope([(1, 2), (1, 3)]))
    assert math.isnan(percentile([], 0.99))
    assert ratio(1, 0) == math.inf


def test_recovery_lasts_from_the_first_failure_to_the_last() -> None:
    assert recovery_seconds([]) == 0
    assert recovery_seconds([Event(0, 5.0, 503), Event(4, 4.5, 0), Event(5, 5.25, 503)]) == 0.75


def test_new_rows_replace_those_of_the_same_scenario_and_server() -> None:
    old = [Row("a", "x", {"n": 1}), Row("b", "x", {"n": 2}), Row("a", "y", {"n": 3})]
    new = [Row("b", "x", {"n": 4}), Row("b", "z", {"n": 5}), Row("c", "x", {"n": 6})]
    assert [(*row.key, row.figures["n"]) for row in report.merged(old, new)] == [
        ("a", "x", 1),
        ("a", "y", 3),
        ("b", "x", 4),
        ("b", "z", 5),
        ("c", "x", 6),
    ]


def test_a_row_survives_its_file() -> None:
    row = Row("a", "b", {"n": 1, "s": 0.5, "unknown": None}, {"n": 0.0}, "a note", {"scale": 1})
    assert report.from_json(report.to_json(row)) == row
    assert report.to_json(Row("a", "b", {"s": math.inf}))["figures"] == {"s": None}


def test_the_table_shows_figures_bars_misses_and_what_was_before() -> None:
    row = Row("a", "b", {"lost": 3, "asked": 12345, "dead at the end": 0}, {"lost": 0, "s": 1}, "why | not")
    lines = report.table([row], {("a", "b"): Row("a", "b", {"lost": 96}, {"lost": 0})}).splitlines()
    assert lines[2] == (
        "| a | b | lost 96 | lost 3, asked 12,345 (why / not) | lost 0, s <= 1 | **miss**: lost, s |"
    )


def test_the_table_gets_its_place_in_the_page() -> None:
    page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
    once = report.put_into(page, r"new \1")
    assert once == f"before\n{report.BEGIN}\n\nnew \\1\n{report.END}\nafter\n"
    assert report.put_into(once, r"new \1") == once
    with pytest.raises(ValueError, match="expected both"):
        report.put_into("no place", "new")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234567, "1,234,567"),
        (0.0123, "0.012"),
        (12.345, "12.3"),
        (123.4, "123"),
        (None, "unknown"),
    ],
)
def test_figures_are_shown_with_three_digits(value: float | None, shown: str) -> None:
    assert report.number(value) == shown
