"""Loads on a pod that stands still for a while."""

import os
import socketserver
import time
from itertools import count

import pytest

from loadtests.measured_pod import ATTEMPTS, MeasuredPod, post_request
from loadtests.service_process import Service
from tests.support.answering import ANSWER, answering

SECONDS = 0.1
REQUEST_BYTES = len(post_request(65535, rows=1))  # ports that the system chooses have five digits


def pod(port: int) -> MeasuredPod:
    return MeasuredPod(Service(f"http://127.0.0.1:{port}", port, os.getpid(), 0.0), "mlp", SECONDS)


@pytest.mark.slow
@pytest.mark.parametrize("still", range(1, ATTEMPTS + 1))
def test_a_closed_loop_is_offered_again_while_it_gets_no_answer_in_its_time(still: int) -> None:
    """still: for how many loads the pod stands still; the first is the warm-up."""
    requests = count()

    def answer(handler: socketserver.BaseRequestHandler) -> bool:
        time.sleep(2 * SECONDS if next(requests) < still else 0)
        handler.request.sendall(ANSWER)
        return True

    with answering(answer, REQUEST_BYTES) as port:
        assert pod(port).closed(rows=1, connections=1).answered_rate > 0


@pytest.mark.slow
def test_a_pod_that_never_answers_in_time_is_an_error() -> None:
    def answer(handler: socketserver.BaseRequestHandler) -> bool:
        time.sleep(2 * SECONDS)
        handler.request.sendall(ANSWER)
        return True

    with (
        answering(answer, REQUEST_BYTES) as port,
        pytest.raises(ValueError, match="got no response 200 in their time"),
    ):
        pod(port).closed(rows=1, connections=1)
