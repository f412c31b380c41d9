"""The queue's decisions; time is a number here and nothing runs."""

import itertools
import math
import weakref

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.batching.items import Item
from service.batching.low_share import (
    LOW_SHARE,
    QUIET_BATCHES,
    SMALL_RECENTLY_SECONDS,
    LowShare,
)
from service.batching.pace import DEADLINE_SHARE
from service.batching.queue import SMALL_FRACTION, BatchQueue
from service.batching.request import Priority
from service.errors import DeadlineExceeded, DeadlineUnreachable, QueueFull


def item(rows: int, enqueued: float = 0.0, deadline: float = math.inf, priority: Priority = "normal") -> Item:
    return Item((np.zeros((rows, 1)),), rows, enqueued, deadline, lambda _: None, priority)


def note(queue: BatchQueue, rows: int, started: float, ended: float) -> None:
    queue.pace.note_batch(rows, started, ended, queue.rows)


def taken(queue: BatchQueue) -> list[tuple[Item, int, int]]:
    return [(part.item, part.start, part.stop) for part in queue.take().parts]


def test_requests_leave_in_the_order_they_came() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    items = [item(1) for _ in range(6)]
    for each in items:
        queue.push(each)
    assert [part[0] for part in taken(queue)] == items[:4]
    assert [part[0] for part in taken(queue)] == items[4:]
    assert taken(queue) == []


def test_a_batch_may_be_asked_to_be_smaller() -> None:
    queue = BatchQueue(max_batch_size=16, max_queue_rows=100)
    large = item(20)
    queue.push(large)
    queue.push(item(1))
    assert [queue.take(4).rows, queue.take(100).rows, queue.take(4).rows] == [4, 16, 1]
    assert queue.rows == 0


@given(
    st.lists(
        st.tuples(st.integers(1, 64), st.sampled_from(["normal", "low"]), st.booleans(), st.booleans()),
        max_size=30,
    ),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_batches_are_short_while_small_requests_arrive(
    sent: list[tuple[int, Priority, bool, bool]], mixed_rows: int, low_rows: int
) -> None:
    """At this queue or at another one of the device."""
    share = LowShare()
    queue, other = (BatchQueue(16, 10_000, low_share=share) for _ in range(2))
    queue.mixed_rows, queue.low_rows = mixed_rows, low_rows
    now = last_small = 0.0
    for rows, priority, take, elsewhere in sent:
        now += 0.3
        (other if elsewhere else queue).push(item(rows, enqueued=now, priority=priority))
        if rows <= 16 // SMALL_FRACTION and priority == "normal":
            last_small = now
        mixed = queue._large.rows or queue._low.rows
        recently = last_small and now < last_small + SMALL_RECENTLY_SECONDS
        alone = queue._low.rows == queue.rows
        most = mixed_rows if alone or (mixed and recently) else 16
        if take and queue.rows:
            others, low = queue.rows - queue._low.rows, queue._low.rows
            most_low = min(most, low_rows) if recently else most
            batch = queue.take(now=now)
            assert batch.rows == min(most, others + min(low, most_low))
            taken_low = sum(part.stop - part.start for part in batch.parts if part.item.priority == "low")
            assert taken_low == min(low, most_low, max(0, most - others))
    left = queue.rows
    assert sum(iter(lambda: queue.take(now=now).rows, 0)) == left


def test_rows_of_two_batches_in_flight_both_count() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10_000)
    for _ in range(100):  # a row takes 0.25 s, learnt in tenths
        queue.push(item(4))
        queue.take()
        note(queue, 4, 0.0, 1.0)
    queue.push(item(8))
    assert [queue.take().rows, queue.take().rows] == [4, 4]
    assert queue.check_admission(1, seconds=2.9 / DEADLINE_SHARE) is not None  # behind 8 rows, and not 4
    assert queue.check_admission(1, seconds=3.1 / DEADLINE_SHARE) is None
    note(queue, 4, 3.0, 4.0)
    assert queue.check_admission(1, seconds=1.9 / DEADLINE_SHARE) is not None
    assert queue.check_admission(1, seconds=2.1 / DEADLINE_SHARE) is None
    note(queue, 4, 4.0, 5.0)
    assert queue.check_admission(1, seconds=0.001) is None


@pytest.mark.parametrize("priority", ["normal", "low"])
@given(
    st.lists(st.tuples(st.sampled_from(["runs", "leaves", "leaves later", "expires"]), st.floats(0, 3600)))
)
def test_time_in_which_nothing_waits_does_not_count_as_the_pace(
    priority: Priority, rounds: list[tuple[str, float]]
) -> None:
    """Also if the rows that waited were cancelled or expired. A row takes 1 ms, and at most 0.25 ms more."""
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    queue.low_rows, queue.low_seconds = 4, 0.004
    now = 1.0
    for fate, pause in rounds:
        first, second = (item(4, now, now + 0.0045, priority) for _ in range(2))
        queue.push(first, admitted=True)
        queue.push(second, admitted=True)
        assert queue.take(now=now).rows == 4
        if fate == "leaves":
            queue.remove(second, now)
        now += 0.004
        note(queue, 4, now - 0.004, now)
        if fate == "leaves later":
            queue.remove(second, now)
        if fate == "expires":
            assert queue.expire(now + 0.001) == [second]
        if fate == "runs":
            assert queue.take(now=now).rows == 4
            now += 0.004
            note(queue, 4, now - 0.004, now)
        now += pause
        assert max(queue.pace.row_seconds, queue._low_pace.row_seconds) <= 0.00125 + 1e-9


@pytest.mark.parametrize("leaves", ["cancelled", "expired"])
def test_time_in_which_rows_waited_in_vain_counts_as_the_pace(leaves: str) -> None:
    """Requests expire because the event loop has so much to do: the next ones have to be refused in time."""
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    now = 1.0
    for _ in range(100):
        queue.push(item(4, now, now + 1), admitted=True)
        second = item(4, now, now + 0.5)
        queue.push(second, admitted=True)
        queue.take(now=now)
        now += 0.004
        note(queue, 4, now - 0.004, now)
        now += 0.496
        if leaves == "cancelled":
            queue.remove(second, now)
        else:
            assert queue.expire(now) == [second]
    assert queue.pace.row_seconds == pytest.approx(0.5 / 4, rel=0.01)
    assert queue.pace.mean_row_seconds == pytest.approx(0.5 / 4, rel=0.06)


def test_overlapping_batches_are_timed_from_the_previous_end() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10_000)
    for turn in range(100):  # two under way: each takes 2 s from its beginning, one ends each second
        queue.push(item(4))
        queue.take()
        if turn:
            note(queue, 4, turn - 1.0, turn + 1.0)
    assert queue.check_admission(1, seconds=1.9 / DEADLINE_SHARE) is not None  # (4 + 4) rows of 0.25 s
    assert queue.check_admission(1, seconds=2.1 / DEADLINE_SHARE) is None


def test_the_time_between_batches_counts_while_rows_are_queued() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10_000)
    for _ in range(100):
        queue.push(item(1))
        queue.take()
        note(queue, 1, started=0.0, ended=0.001)  # nothing waits: what passes in between is nobody's
    assert queue.check_admission(1, seconds=0.0001) is None  # nothing waits or runs: it is tried
    queue.push(item(1))
    assert queue.check_admission(1, seconds=0.0019 / DEADLINE_SHARE) is not None
    assert queue.check_admission(1, seconds=0.0021 / DEADLINE_SHARE) is None
    queue.take()
    assert queue.check_admission(1, seconds=0.0019 / DEADLINE_SHARE) is not None  # behind the batch that runs
    note(queue, 1, started=0.0, ended=0.001)
    for _ in range(1000):
        queue.push(item(1))
    for index in range(200):
        queue.take()
        note(queue, 4, started=index * 0.4 + 0.3, ended=index * 0.4 + 0.304)
    assert queue.rows == 200
    assert queue.check_admission(1, seconds=25.6) is None
    refusal = queue.check_admission(1, seconds=25.4)
    assert refusal is not None
    assert refusal.why == (
        "a response would take 20.400 s, expected at most 20.320 s, because the deadline is in 25.400 s"
    )
    with pytest.raises(QueueFull):
        queue.push(item(1, enqueued=100.0, deadline=125.4))
    queue.push(item(1, enqueued=100.0, deadline=125.6))


def test_a_rejection_is_noted_until_a_batch_is_formed() -> None:
    queue = BatchQueue(max_batch_size=2, max_queue_rows=4)
    for _ in range(2):
        queue.push(item(2))
    assert not queue.refused_since_batch
    with pytest.raises(QueueFull):
        queue.push(item(1))
    assert queue.refused_since_batch
    assert queue.take().rows == 2
    assert not queue.refused_since_batch


@given(st.lists(st.integers(1, 12), max_size=12), st.integers(1, 30), st.floats(0, 10))
def test_asking_for_admission_changes_nothing(pushed: list[int], rows: int, seconds: float) -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=40, max_queue_requests=8)
    for each in pushed:
        if queue.check_admission(each) is None:
            queue.push(item(each))
    queue.take()
    before = vars(queue).copy(), vars(queue.pace).copy(), vars(queue._retries).copy()
    answers = {queue.check_admission(rows, seconds) for _ in range(3)}
    assert len(answers) == 1
    assert (vars(queue), vars(queue.pace), vars(queue._retries)) == before


@given(
    st.lists(st.tuples(st.integers(1, 12), st.floats(-1, 5)), min_size=1, max_size=12),
    st.floats(0, 6),
    st.integers(1, 12),
)
def test_rows_whose_deadline_has_passed_are_never_handed_out(
    sent: list[tuple[int, float]], now: float, most: int
) -> None:
    """Whether the device was idle or not, and whether the timer that expires requests was late or not."""
    queue = BatchQueue(max_batch_size=8, max_queue_rows=1000)
    accepted = []
    for rows, deadline in sent:
        if deadline <= 0.0:
            with pytest.raises(DeadlineExceeded):
                queue.push(item(rows, enqueued=0.0, deadline=deadline), admitted=True)
        else:
            accepted.append(item(rows, enqueued=0.0, deadline=deadline))
            queue.push(accepted[-1])
    handed_out = []
    while (batch := queue.take(most, now)).parts:
        handed_out += [part.item for part in batch.parts]
    assert all(each.deadline > now for each in handed_out)
    expired = queue.expire(now)
    assert all(each.deadline <= now for each in expired)
    assert len({*map(id, handed_out), *map(id, expired)}) == len(accepted)
    assert queue.rows == queue.requests == 0


def test_what_was_admitted_is_not_asked_again() -> None:
    queue = BatchQueue(max_batch_size=2, max_queue_rows=2)
    queue.push(item(2))
    assert queue.check_admission(1) is not None
    queue.push(item(1), admitted=True)
    assert queue.rows == 3


def test_low_priority_gets_the_space_that_the_others_leave() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    low, first, second = item(6, priority="low"), item(1), item(5)
    for each in (low, first, second):
        queue.push(each)
    assert taken(queue) == [(first, 0, 1), (second, 0, 3)]
    assert taken(queue) == [(second, 3, 5), (low, 0, 2)]
    assert taken(queue) == [(low, 2, 6)]


def test_a_batch_of_low_priority_alone_is_short() -> None:
    queue = BatchQueue(max_batch_size=16, max_queue_rows=100)
    queue.mixed_rows = 4
    low = item(20, priority="low")
    queue.push(low)
    assert taken(queue) == [(low, 0, 4)]
    large = item(9)
    queue.push(large)
    assert taken(queue) == [(large, 0, 9), (low, 4, 11)]


def test_rows_of_low_priority_delay_only_their_like() -> None:
    queue = BatchQueue(max_batch_size=8, max_queue_rows=100)
    queue.push(item(20, priority="low"))
    queue.push(item(3))
    assert (queue.rows_ahead(1), queue.rows_ahead(5), queue.rows_ahead(5, "low")) == (0, 3, 23)


def test_requests_are_bounded_as_rows_are() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100, max_queue_requests=2)
    first, second = item(1), item(9)
    queue.push(first)
    queue.push(second)
    with pytest.raises(QueueFull, match="2 requests are queued, expected fewer than 2"):
        queue.push(item(1))
    queue.take()  # the small one, and some of the large one's rows
    queue.push(item(1))
    with pytest.raises(QueueFull):
        queue.push(item(1))
    queue.remove(second, now=0.0)
    queue.push(item(1))
    assert queue.requests == 2


def test_small_requests_wait_only_for_small_ones() -> None:
    queue = BatchQueue(max_batch_size=16, max_queue_rows=100)
    for each in (item(2), item(1), item(10)):
        queue.push(each)
    assert (queue.rows_ahead(1), queue.rows_ahead(10)) == (3, 13)
    queue.take()
    assert (queue.rows_ahead(1), queue.rows_ahead(10)) == (0, 0)
    leaving = item(2)
    queue.push(leaving)
    queue.remove(leaving, now=0.0)
    assert (queue.rows_ahead(1), queue.rows) == (0, 0)


def test_an_oversized_request_is_split_over_batches() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    large = item(10)
    queue.push(large)
    assert [taken(queue) for _ in range(4)] == [[(large, 0, 4)], [(large, 4, 8)], [(large, 8, 10)], []]


def test_small_requests_get_half_of_a_batch_beside_large_ones() -> None:
    queue = BatchQueue(max_batch_size=16, max_queue_rows=1000)
    large, small = item(100), [item(2) for _ in range(8)]
    queue.push(large)
    for each in small:
        queue.push(each)
    assert taken(queue) == [*[(each, 0, 2) for each in small[:4]], (large, 0, 8)]


def test_a_batch_is_filled_by_either_kind_alone() -> None:
    queue = BatchQueue(max_batch_size=16, max_queue_rows=1000)
    queue.push(item(3))
    for _ in range(20):
        queue.push(item(1))
    assert queue.take().rows == 16
    assert queue.take().rows == 7


def test_large_requests_take_turns_batch_by_batch() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=1000)
    first, second = item(12), item(4)
    queue.push(first)
    queue.push(second)
    order = [taken(queue)[0][0] for _ in range(4)]
    assert order == [first, second, first, first]


def test_the_rest_of_a_request_that_fits_in_one_batch_comes_next() -> None:
    queue = BatchQueue(max_batch_size=8, max_queue_rows=1000)
    small, first, second = item(1), item(8), item(8)
    for each in (small, first, second):
        queue.push(each)
    assert taken(queue) == [(small, 0, 1), (first, 0, 7)]
    assert taken(queue) == [(first, 7, 8), (second, 0, 7)]


def test_rejected_rows_leave_the_queue_unchanged() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10)
    queue.push(item(8))
    with pytest.raises(QueueFull, match="8 rows are queued and 3 more were sent, expected at most 10"):
        queue.push(item(3))
    queue.push(item(2))
    assert queue.rows == 10


def test_a_removed_request_leaves_its_place_to_others() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10)
    first, second, third = item(1), item(1), item(1)
    for each in (first, second, third):
        queue.push(each)
    queue.remove(second, now=0.0)
    queue.remove(second, now=0.0)
    assert queue.rows == 2
    assert [part[0] for part in taken(queue)] == [first, third]


def test_an_empty_queue_keeps_nothing() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    items = [item(1), item(9), item(2), item(1, priority="low")]
    for each in items:
        queue.push(each)
    rows = [weakref.ref(each.inputs[0]) for each in items]
    for each in reversed(items):
        queue.remove(each, now=0.0)
    del each, items
    assert [ref() for ref in rows] == [None] * 4


def test_only_the_waiting_rows_of_a_half_run_request_are_removed() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=10)
    large = item(10)
    queue.push(large)
    queue.take()
    queue.remove(large, now=0.0)
    assert queue.rows == 0
    assert taken(queue) == []


def test_expired_requests_leave_and_the_next_deadline_is_known() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    soon, later = item(1, deadline=1.0), item(9, deadline=5.0)
    queue.push(later)
    queue.push(soon)
    assert queue.next_deadline == 1.0
    assert queue.expire(0.5) == []
    assert queue.expire(1.0) == [soon]
    assert (queue.rows, queue.next_deadline) == (9, 5.0)
    assert queue.expire(5.0) == [later]
    assert (queue.rows, queue.next_deadline) == (0, math.inf)


@given(
    st.lists(st.floats(0.0001, 0.03), min_size=20, max_size=60),
    st.integers(1, 8),
    st.sampled_from([0.0005, 0.002]),
    st.booleans(),
)
def test_rows_of_low_priority_take_a_share_while_small_requests_arrive(
    gaps: list[float], low_rows: int, low_seconds: float, elsewhere: bool
) -> None:
    """elsewhere: the small requests come to another queue of the device."""
    share = LowShare()
    queue, other = (BatchQueue(64, 10_000, low_share=share) for _ in range(2))
    queue.low_rows, queue.low_seconds = low_rows, low_seconds
    busy = other if elsewhere else queue
    queue.push(item(5_000, priority="low"))
    ran: list[tuple[float, int]] = []
    small: list[float] = []
    now = 0.0
    for gap in gaps:
        now += gap
        small.append(now)
        busy.push(item(1, enqueued=now))
        for source in (busy, queue):
            while source.release_at(now) <= now:
                batch = source.take(now=now)
                low = sum(part.stop - part.start for part in batch.parts if part.item.priority == "low")
                if low:
                    ran.append((now, low))
                assert batch.rows
                now += 1e-6  # a batch takes time
    for (began, rows), (then, _) in itertools.pairwise(ran):
        assert rows <= low_rows
        seconds = low_seconds * rows / low_rows
        quiet = then - max(came for came in small if came <= then) >= QUIET_BATCHES * seconds - 1e-9
        assert quiet or then - began >= seconds / LOW_SHARE - 1e-9
    now += SMALL_RECENTLY_SECONDS
    while queue.rows:  # nobody else comes: nothing waits
        assert queue.release_at(now) == -math.inf
        assert queue.take(now=now).rows
        now += 1e-6


def test_rows_of_low_priority_that_took_longer_than_expected_wait_for_longer() -> None:
    queue = BatchQueue(256, 10_000)
    queue.low_rows, queue.low_seconds = 1, 0.001
    queue.push(item(5, priority="low"))
    queue.push(item(1))
    batch = queue.take(now=0.0)
    assert (batch.rows, batch.low_rows) == (2, 1)
    queue.note_low_ended(batch, 0.0, 0.004)  # half of it is of the row of low priority
    turn = 0.002 / LOW_SHARE
    queue.push(item(1, enqueued=turn - 0.01))
    assert queue.take(now=turn - 0.01).low_rows == 0
    assert queue.release_at(turn - 0.01) == turn


def test_with_a_delay_normal_rows_wait_for_it_beside_low_ones_that_wait_for_their_turn() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100, max_batch_delay_seconds=0.00125)
    queue.low_rows, queue.low_seconds = 2, 0.0005
    queue.push(item(9, enqueued=1.0, priority="low"))
    queue.push(item(1, enqueued=1.0))
    assert queue.release_at(1.0) == -math.inf  # they fill a batch
    assert queue.take(now=1.0).rows == 3
    quiet = QUIET_BATCHES * 0.0005
    assert queue.release_at(1.0) == min(1.0 + 0.0005 / LOW_SHARE, 1.0 + quiet)
    queue.push(item(1, enqueued=1.001))
    turn = min(1.0 + 0.0005 / LOW_SHARE, 1.001 + quiet)
    assert queue.release_at(1.001) == 1.001 + 0.00125 < turn
    assert queue.take(now=1.0023).rows == 1
    assert queue.release_at(1.0023) == turn
    assert queue.take(now=1.0024).rows == 0
    assert queue.take(now=turn).rows == 2


def test_without_a_delay_rows_are_due_at_once() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100)
    assert queue.release_at(0.0) == math.inf
    queue.push(item(1, enqueued=7.0))
    assert queue.release_at(0.0) == -math.inf
    assert queue.take().reason == "idle"


def test_with_a_delay_rows_wait_for_it_or_for_a_full_batch() -> None:
    queue = BatchQueue(max_batch_size=4, max_queue_rows=100, max_batch_delay_seconds=0.5)
    queue.push(item(1, enqueued=7.0))
    queue.push(item(1, enqueued=7.2))
    assert queue.release_at(0.0) == 7.5
    queue.push(item(2, enqueued=7.3))
    assert queue.release_at(0.0) == -math.inf
    assert queue.take().reason == "full"
    queue.push(item(1, enqueued=8.0))
    assert queue.take().reason == "delay"


@given(
    st.integers(1, 16),
    st.lists(
        st.one_of(st.integers(1, 40), st.integers(-40, -1), st.just("take"), st.just("remove")), max_size=60
    ),
)
def test_every_row_is_handed_out_once_and_in_order(max_batch_size: int, steps: list[int | str]) -> None:
    """A positive number adds a request of so many rows, a negative one a request of low priority."""
    queue = BatchQueue(max_batch_size, max_queue_rows=10_000)
    items: list[Item] = []
    seen: dict[int, int] = {}
    removed: set[int] = set()

    def take() -> int:
        batch = queue.take()
        assert batch.rows == sum(part.stop - part.start for part in batch.parts) <= max_batch_size
        for part in batch.parts:
            assert id(part.item) not in removed
            assert part.start == seen.get(id(part.item), 0)
            seen[id(part.item)] = part.stop
        return batch.rows

    for step in steps:
        if isinstance(step, int):
            items.append(item(abs(step), priority="normal" if step > 0 else "low"))
            queue.push(items[-1])
        elif step == "take":
            assert take() == 0 or items
        elif items:
            queue.remove(items[len(items) // 2], now=0.0)
            removed.add(id(items[len(items) // 2]))
        waiting = [each for each in items if id(each) not in removed]
        left = [each for each in waiting if each.rows > seen.get(id(each), 0)]
        assert queue.rows == sum(each.rows - seen.get(id(each), 0) for each in left)
        assert queue.requests == len(left)
        most = max(1, max_batch_size // SMALL_FRACTION)
        small = [each for each in left if each.rows <= most and each.priority == "normal"]
        assert queue.rows_ahead(1) == sum(each.rows - seen.get(id(each), 0) for each in small)
    while queue.rows:
        assert take() > 0
    assert all(seen[id(each)] == each.rows for each in items if id(each) not in removed)


@pytest.mark.parametrize(("gap", "accepted"), [(0.005, 5), (1.0, 8), (math.inf, 8)])
def test_rows_of_low_priority_are_accepted_if_their_turns_come_in_time(gap: float, accepted: int) -> None:
    """Eight requests, which have 30 s each. gap: seconds between two small requests.

    A row takes 2 ms. Beside steady small requests, the rows of a request take 4.8 s.
    """
    rows_each = round(4.8 * LOW_SHARE / 0.002)
    queue = BatchQueue(256, 10_000)
    queue.low_rows, queue.low_seconds = 1, 0.002
    now = small_at = 0.0
    coming = [0.5 * turn for turn in range(8)]
    errors: list[QueueFull] = []
    while coming or queue.rows:
        if small_at <= now:
            queue.push(item(1, enqueued=now))
            small_at += gap
        if coming and coming[0] <= now:
            coming.pop(0)
            try:
                queue.push(item(rows_each, enqueued=now, deadline=now + 30, priority="low"))
            except DeadlineUnreachable as error:
                errors.append(error)
        assert queue.expire(now) == []
        rows = queue.take(now=now).rows
        if rows:
            note(queue, rows, now, now + 0.002)
        now += 0.002
    assert len(errors) == 8 - accepted
    assert all(1 <= error.retry_seconds <= 5 for error in errors)


def test_whoever_is_next_is_not_refused_because_the_turns_were_slow_before() -> None:
    queue = BatchQueue(256, 10_000)
    queue.low_rows, queue.low_seconds = 1, 0.002
    for turn in range(100):
        queue.push(item(1, enqueued=0.08 * turn))
        queue.push(item(2, enqueued=0.08 * turn, priority="low"))
        queue.take(now=0.08 * turn)
    while queue.rows:
        queue.take(now=100.0)
    assert queue.check_admission(1000, 30.0, "low") is None
