"""The open-loop generator against real sockets."""

import socketserver
import threading

import numpy as np
import pytest

from loadtests.generator import Outcome, Plan, arrivals, generate
from loadtests.open_loop import summarise
from tests.support.answering import ANSWER, answering

REQUEST = b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody"


def answer_in_two_parts(handler: socketserver.BaseRequestHandler) -> bool:
    handler.request.sendall(ANSWER[:20])
    handler.request.sendall(ANSWER[20:])
    return True


@pytest.mark.slow
def test_requests_are_sent_while_earlier_ones_are_unanswered() -> None:
    enough = threading.Event()
    count = 0
    lock = threading.Lock()

    def hold(handler: socketserver.BaseRequestHandler) -> bool:
        nonlocal count
        with lock:
            count += 1
            if count == 40:
                enough.set()
        enough.wait(20)
        return answer_in_two_parts(handler)

    with answering(hold, len(REQUEST)) as port:
        outcome = generate(Plan(port, REQUEST, rate=300, seconds=0.5, connections=512, patience_seconds=20))
    assert (outcome.status == 200).all()
    assert outcome.connections >= 40
    # The first request is timed from its due time until the server stops stalling.
    assert outcome.done[0] - outcome.due[0] >= outcome.due[39] - outcome.due[0]


@pytest.mark.slow
def test_without_a_rate_it_is_a_closed_loop() -> None:
    with answering(answer_in_two_parts, len(REQUEST)) as port:
        outcome = generate(Plan(port, REQUEST, rate=None, seconds=0.3, connections=4))
    assert outcome.connections == 4
    assert len(outcome.status) > 4
    assert (outcome.status == 200).all()


@pytest.mark.slow
def test_requests_wait_for_a_connection_when_all_are_busy() -> None:
    with answering(answer_in_two_parts, len(REQUEST)) as port:
        outcome = generate(Plan(port, REQUEST, rate=5_000, seconds=0.2, connections=1, patience_seconds=20))
    assert outcome.connections == 1
    assert outcome.waited.any()
    assert (outcome.status == 200).all()
    assert (outcome.sent >= outcome.due).all()


@pytest.mark.slow
def test_a_broken_connection_fails_only_its_own_request() -> None:
    broken = threading.Event()

    def break_once(handler: socketserver.BaseRequestHandler) -> bool:
        if broken.is_set():
            return answer_in_two_parts(handler)
        broken.set()
        return False

    with answering(break_once, len(REQUEST)) as port:
        outcome = generate(Plan(port, REQUEST, rate=200, seconds=0.3, connections=8))
    assert (outcome.status == 0).sum() == 1
    assert (outcome.status == 200).sum() == len(outcome.status) - 1


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(rate=1000, seconds=20, seed=1)
    gaps = np.diff(times)
    assert times.min() >= 0
    assert times.max() <= 20
    # 20,000 events give the mean and the spread of the gaps to 0.7 %; five times that is accepted.
    assert gaps.mean() == pytest.approx(1e-3, rel=0.035)
    assert gaps.std() == pytest.approx(1e-3, rel=0.035)


def test_goodput_counts_only_responses_within_the_deadline_of_their_due_time() -> None:
    outcome = Outcome(
        due=np.array([0.0, 0.1, 0.2, 0.3, 0.4]),
        sent=np.array([0.0, 0.15, 0.2, 0.3, np.nan]),
        done=np.array([0.05, 0.25, 0.4, 0.302, np.nan]),
        waited=np.array([False, True, False, False, True]),
        status=np.array([200, 200, 200, 429, 0], np.int16),
        seconds=1.0,
        connections=2,
        cpu_share=0.1,
    )
    point = summarise(2.0, outcome, deadline_seconds=0.12)
    assert (point.offered, point.sent, point.answered, point.goodput) == (5, 4, 3, 1)
    assert (point.rejected, point.failed, point.waited) == (1, 1, 2)
    assert point.rejected_p99_seconds == pytest.approx(0.002)
    assert point.p50_seconds == pytest.approx(0.15)
    assert point.late_p99_seconds == 0  # the server, not the generator, causes the wait for a connection
    assert not point.generator_saturated
