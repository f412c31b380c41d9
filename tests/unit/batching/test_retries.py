"""When rejected requests are told to return; time is a number here."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.retries import MAX_RETRY_SECONDS, SPREAD, Refusal, Retries
from service.errors import DeadlineUnreachable, QueueFull
from service.http.error_responses import whole_seconds

SECONDS = st.floats(0, 1000)


def test_each_rejected_request_is_told_to_return_behind_the_one_before() -> None:
    retries = Retries()
    told = [
        retries.promise(100.0, backlog_seconds=2.0, work_seconds=0.5, allowed_seconds=1.0) for _ in range(4)
    ]
    assert told == pytest.approx([1.0 + SPREAD * 0.5 * index for index in range(4)])
    # A second later a second of the work is done.
    assert math.isclose(retries.promise(101.0, 2.0, 0.5, 1.0), 1.0 + SPREAD * 2.0 - 1.0)
    assert retries.promise(500.0, 2.0, 0.5, 1.0) == 1.0  # all have returned, or never will
    for _ in range(100):
        retries.promise(501.0, 2.0, 0.5, 1.0)
    retries.forget()  # they returned sooner, and were served
    assert retries.promise(501.0, 2.0, 0.5, 1.0) == 1.0


@given(st.lists(st.tuples(st.floats(0, 10), SECONDS, SECONDS, SECONDS), min_size=1, max_size=30))
def test_a_wait_is_bounded_whatever_was_rejected(
    rejections: list[tuple[float, float, float, float]],
) -> None:
    retries, now = Retries(), 0.0
    for passed, backlog, work, allowed in rejections:
        now += passed
        assert 0.0 <= retries.promise(now, backlog, work, allowed) <= MAX_RETRY_SECONDS


@given(st.floats(0, MAX_RETRY_SECONDS), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_rounded_to_a_neighbouring_second_and_never_to_none(seconds: float, chance: float) -> None:
    told = whole_seconds(seconds, chance)
    assert told >= 1
    assert told == 1 or seconds - 1 < told <= seconds + 1


@given(st.floats(1, MAX_RETRY_SECONDS))
def test_rounding_keeps_the_average(seconds: float) -> None:
    told = [whole_seconds(seconds, (index + 0.5) / 1000) for index in range(1000)]
    assert math.isclose(sum(told) / len(told), seconds, abs_tol=0.002)


def test_a_refusal_becomes_an_error_that_says_when_to_return() -> None:
    assert type(Refusal("why").error(3.5)) is QueueFull
    late = Refusal("why", late=True).error(3.5)
    assert type(late) is DeadlineUnreachable
    assert (str(late), late.retry_seconds) == ("why", 3.5)
