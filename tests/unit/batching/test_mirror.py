"""What a worker takes the engine's queue to be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.items import Item
from service.batching.mirror import Mirror, QueueState
from service.batching.queue import BatchQueue
from service.batching.request import Priority


def item(rows: int, priority: Priority) -> Item:
    return Item((np.zeros((rows, 1)),), rows, 0.0, math.inf, lambda _: None, priority)


requests = st.tuples(st.integers(1, 40), st.sampled_from(["normal", "low"]))


@given(st.lists(requests, max_size=12), st.integers(0, 3), requests, st.floats(0.01, 100.0))
def test_it_refuses_at_once_what_the_queue_refuses(
    queued: list[tuple[int, Priority]], taken: int, asked: tuple[int, Priority], seconds: float
) -> None:
    queue = BatchQueue(16, 100, max_queue_requests=8)
    queue.push(item(4, "normal"))
    queue.take()
    queue.pace.note_batch(4, 0.0, 1.0, 0)
    for rows, priority in queued:
        if queue.check_admission(rows, math.inf, priority) is None:
            queue.push(item(rows, priority))
    for turn in range(taken):
        queue.take(now=100.0 * turn)
    rows, priority = asked
    mirror = Mirror(QueueState.of(queue), 50.0, sharers=2)
    assert mirror.check_admission(rows, seconds, priority, 50.0) == queue.check_admission(
        rows, seconds, priority
    )


@pytest.fixture
def mirror() -> Mirror:
    """Of a queue of 80 rows in as many requests, and 20 rows in a batch; a row takes 0.1 s."""
    return Mirror(QueueState(16, 100, 80, 80, 0, 0, 80, 20, 0.1, 0.1, 0.0), 50.0, sharers=4)


def test_a_queue_that_is_not_heard_of_is_taken_to_empty_itself(mirror: Mirror) -> None:
    assert mirror.check_admission(1, math.inf, "normal", 50.0) is not None
    assert mirror.check_admission(1, math.inf, "normal", 50.3) is None
    assert mirror.check_admission(1, 5.0, "normal", 50.3) is not None  # behind 97 rows
    assert mirror.check_admission(1, 5.0, "normal", 58.0) is None
    assert mirror.check_admission(90, math.inf, "normal", 60.0) is None


def test_what_was_sent_from_here_counts_until_the_next_state(mirror: Mirror) -> None:
    mirror.update(QueueState(16, 100, 80, 0, 0, 0, 1, 20, 0.1, 0.1, 0.0), 60.0)
    assert mirror.check_admission(1, math.inf, "normal", 60.0) is None
    for _ in range(79):
        mirror.note_sent(1, "normal")
    assert mirror.check_admission(1, math.inf, "normal", 60.0) is not None
    mirror.update(QueueState(16, 100, 80, 0, 0, 0, 1, 20, 0.1, 0.1, 0.0), 60.0)
    assert mirror.check_admission(1, math.inf, "normal", 60.0) is None


def test_rows_of_low_priority_that_were_sent_from_here_delay_only_their_like(mirror: Mirror) -> None:
    mirror.update(QueueState(16, 100, 80, 0, 0, 0, 0, 0, 0.1, 0.1, 1.0), 60.0)
    mirror.note_sent(10, "low")
    assert mirror.check_admission(1, 1.0, "normal", 60.0) is None
    assert mirror.check_admission(1, 10.0, "low", 60.0) is not None  # each of the 11 takes 1 s
    assert mirror.check_admission(1, 14.0, "low", 60.0) is None


def test_a_time_to_return_is_promised_as_if_the_others_promised_as_much(mirror: Mirror) -> None:
    alone = Mirror(QueueState(16, 100, 80, 80, 0, 0, 80, 20, 0.1, 0.1, 0.0), 50.0, sharers=1)
    waits = []
    for each in (alone, mirror):
        refusal = each.check_admission(10, math.inf, "normal", 50.0)
        assert refusal is not None
        waits.append(sum(each.note_rejection(refusal, 10, 50.0) for _ in range(10)))
    assert waits[1] > 1.5 * waits[0]
