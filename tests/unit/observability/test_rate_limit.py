"""How many lines of a kind are logged, on a clock of the test's own."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.rate_limit import MAX_KINDS, RateLimit, RateLimitedLog, RateLimitFilter


@given(st.lists(st.tuples(st.floats(0, 5), st.sampled_from("ab")), max_size=60), st.integers(1, 4))
def test_no_line_is_uncounted_and_no_window_has_more_than_its_lines(
    events: list[tuple[float, str]], lines: int
) -> None:
    limit, now = RateLimit(lines, 3.0), 0.0
    admitted: dict[str, list[float]] = {"a": [], "b": []}
    open_counts = {"a": 0, "b": 0}
    for pause, kind in events:
        now += pause
        suppressed = limit.admit(kind, now)
        if suppressed is None:
            open_counts[kind] += 1
        else:
            assert suppressed == open_counts[kind]
            open_counts[kind] = 0
            admitted[kind].append(now)
    for times in admitted.values():
        for first, later in zip(times, times[2 * lines :], strict=False):
            assert later - first >= 3.0  # two neighbouring windows hold no more than 2 * lines


def test_kinds_without_end_take_bounded_memory() -> None:
    limit = RateLimit(1, 1.0)
    for kind in range(3 * MAX_KINDS):
        assert limit.admit(kind, 0.0) == 0
    assert len(limit._kinds) <= MAX_KINDS


def test_a_line_after_suppressed_ones_says_how_many_they_were(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = RateLimitedLog(logging.getLogger("test"), RateLimit(2, 10.0), lambda: now)
    for _ in range(5):
        log.warning("malformed", "a request is malformed: %s", "no host")
    log.warning("timeout", "a client was too slow")
    now = 10.0
    log.warning("malformed", "a request is malformed: %s", "no host")
    assert caplog.messages == [
        "a request is malformed: no host",
        "a request is malformed: no host",
        "a client was too slow",
        "a request is malformed: no host (3 more were not logged)",
    ]


def test_the_filter_limits_warnings_of_one_place_and_nothing_below() -> None:
    kept = RateLimitFilter(RateLimit(2, 10.0), lambda: 0.0)

    def admitted(level: int, line: int) -> int:
        made = [logging.LogRecord("asyncio", level, "a.py", line, f"{n}", (), None) for n in range(5)]
        return sum(map(kept.filter, made))

    assert admitted(logging.ERROR, 1) == 2
    assert admitted(logging.ERROR, 2) == 2
    assert admitted(logging.INFO, 1) == 5
