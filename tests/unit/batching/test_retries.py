"""When rejected requests are told to return; time is a number here."""

import heapq
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.retries import MAX_RETRY_SECONDS, Refusal, Retries
from service.errors import DeadlineUnreachable, QueueFull
from service.http.error_responses import whole_seconds

SECONDS = st.floats(0, 1000)


def burst(
    per_second: float, queued: int, work: float, lasts: float, constant: int | None = None
) -> tuple[float, int]:
    """Serve clients that obey what they are told; returns when the last was served, and the most tries.

    work: seconds of it that arrive, evenly drawn, within `lasts` seconds. queued: requests in a full queue.
    constant: seconds that clients wait instead.
    """
    draw, retries = random.Random(1), Retries()
    arrivals = [(draw.uniform(0, lasts), 1) for _ in range(round(per_second * work))]
    heapq.heapify(arrivals)
    waiting, served, ends, tries = 0, 0.0, math.inf, Counter[int]()
    while arrivals or waiting:
        if arrivals and arrivals[0][0] < ends:
            now, attempt = heapq.heappop(arrivals)
            if waiting <= queued:
                waiting += 1
                tries[attempt] += 1
                ends = min(ends, now + 1 / per_second)
                continue
            backlog = waiting / per_second
            told = retries.promise(now, backlog, 1 / per_second, backlog)
            returns = now + (constant or told) + draw.uniform(0, 0.02)
            heapq.heappush(arrivals, (returns, attempt + 1))
        else:
            served, waiting = ends, waiting - 1
            ends = served + 1 / per_second if waiting else math.inf
    return served, max(tries)


@pytest.mark.parametrize("queued_seconds", [0.3, 0.6, 1.3, 2.6, 5.0])
@pytest.mark.parametrize("per_second", [60.0, 100.0, 250.0])
def test_clients_of_a_burst_that_obey_are_served_at_their_second_try(
    queued_seconds: float, per_second: float
) -> None:
    queued = round(queued_seconds * per_second)
    served, most = burst(per_second, queued, work=10.0, lasts=2.0)
    assert most <= 2
    assert (
        served <= (1.35 if queued_seconds < 0.5 else 1.25) * 10.0
    )  # whole seconds are long for a short queue
    assert burst(per_second, queued, work=10.0, lasts=2.0, constant=1)[1] > 2


def test_requests_rejected_at_once_are_told_to_return_at_different_times() -> None:
    retries = Retries()
    told = Counter(retries.promise(100.0, 1.0, 0.1, 1.0) for _ in range(100))
    assert len(told) > 10
    assert max(told.values()) <= math.ceil(0.6 / 0.1) + 1  # what the queue has room for
    # They have returned by then, or never will.
    assert retries.promise(500.0, 1.0, 0.1, 1.0) == min(told)


def test_a_long_overload_is_not_expected_to_last() -> None:
    retries = Retries()
    first = retries.promise(100.0, 0.1, 0.0, 0.1)
    for now in range(101, 110):
        later = retries.promise(float(now), 0.1, 0.0, 0.1)
    assert (first, later) == (3, 1)


def test_promises_that_nobody_kept_delay_nobody_else() -> None:
    retries = Retries()
    for _ in range(200):
        retries.promise(100.0, 1.0, 0.1, 1.0)
    retries.note_empty(100.5)  # a moment between two of many
    assert sum(retries._promised) > 10
    retries.note_empty(102.0)
    assert retries.promise(102.0, 1.0, 0.1, 1.0) < 5


@given(st.lists(st.tuples(st.floats(0, 10), SECONDS, SECONDS, SECONDS), min_size=1, max_size=30))
def test_a_wait_is_bounded_whatever_was_rejected(
    rejections: list[tuple[float, float, float, float]],
) -> None:
    retries, now = Retries(), 0.0
    for passed, backlog, work, allowed in rejections:
        now += passed
        assert 1 <= retries.promise(now, backlog, work, allowed) <= MAX_RETRY_SECONDS


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
