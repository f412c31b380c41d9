"""The model of one pod: which requests it rejects, and what waits for what."""

from dataclasses import replace

import pytest
import simpy

from loadtests.simulation.costs import PodCosts
from loadtests.simulation.pod import RequestPod
from loadtests.simulation.tally import Tally
from service.settings import Settings

COSTS = PodCosts(
    batch_seconds=0.001,
    row_seconds=0.0001,
    turn_seconds=0.0,
    request_seconds=0.0002,
    refuse_seconds=0.0001,
    overhead_seconds=0.0,
    start_seconds=1.0,
    cores=2,
    max_batch_size=64,
    on_loop_seconds=0.005,
    brief_seconds=0.005,
)
"""Batches of up to 40 rows take at most 5 ms, and run inline."""

QUICK = replace(COSTS, row_seconds=0.00005, max_batch_size=256)
"""Batches of up to 80 rows fit into 5 ms, and larger ones are cut."""


def sent(costs: PodCosts, *arrivals: tuple[float, int]) -> Tally:
    """The results of these numbers of one-row requests at these times."""
    env, tally = simpy.Environment(), Tally()
    pod = RequestPod(env, costs, tally)
    for at, count in arrivals:
        for _ in range(count):
            env.timeout(at).callbacks.append(lambda _: pod.send())
    env.run(until=60)
    assert pod.waiting == 0
    assert tally.arrived == tally.answered + tally.shed + tally.expired
    return tally


def slowest(tally: Tally) -> object:
    """The longest latency, to compare with a value within one bin."""
    return pytest.approx(tally.latencies.quantile(1.0), rel=0.025)


def test_the_limits_are_the_services() -> None:
    defaults = Settings(_env_file=None)
    costs = PodCosts(0.0, 0.001, 0.0, 0.001, 0.001, 0.0, 1.0)
    assert costs.max_batch_size == defaults.max_batch_size
    assert costs.max_queue_rows == defaults.max_queue_rows
    assert costs.max_queue_requests == defaults.max_queue_requests
    assert costs.deadline_seconds == defaults.request_timeout_seconds


def test_a_batch_is_padded_as_the_service_pads_it() -> None:
    assert [round(1e4 * COSTS.device_seconds(rows)) for rows in (1, 8, 9, 17, 33, 64)] == [
        11, 18, 20, 30, 50, 74,
    ]  # fmt: skip


def test_short_batches_and_all_batches_on_one_core_block_the_loop() -> None:
    assert COSTS.blocks_loop(40)
    assert not COSTS.blocks_loop(41)
    assert replace(COSTS, cores=1).blocks_loop(64)
    assert replace(COSTS, on_loop_seconds=0.01).blocks_loop(64)


def test_a_loop_that_can_run_large_batches_cuts_all_batches_to_fit() -> None:
    assert (QUICK.on_loop_rows, QUICK.full_batch) == (80, 80)
    assert QUICK.saturation_rate == pytest.approx(1 / (0.0002 + 0.005 / 80))
    assert slowest(sent(QUICK, (0.0, 80))) == 160 * 0.0001 + 0.005
    assert (COSTS.on_loop_rows, COSTS.full_batch) == (40, 64)


def test_with_inline_batches_a_request_costs_the_loop_its_part_of_a_batch_too() -> None:
    share = 0.0074 / 64
    assert COSTS.saturation_rate == pytest.approx(
        1 / 0.0002
    )  # the device, in parallel to the loop, is faster
    assert replace(COSTS, row_seconds=0.001).saturation_rate == pytest.approx(64 / 0.065)
    assert replace(COSTS, cores=1).saturation_rate == pytest.approx(1 / (0.0002 + share))
    few = replace(COSTS, cores=1, max_queue_requests=8)
    assert few.saturation_rate == pytest.approx(1 / (0.0002 + 0.0018 / 8))


def test_an_iteration_costs_the_same_for_any_number_of_responses() -> None:
    costs = replace(COSTS, turn_seconds=0.0005)
    assert slowest(sent(costs, (0.0, 1))) == 0.0013 + 0.0005
    assert slowest(sent(costs, (0.0, 8))) == 8 * 0.0002 + 0.0018 + 0.0005
    assert slowest(sent(costs, (0.0, 1), (0.0005, 1))) == 2 * 0.0018 - 0.0005
    per_request = 0.0005 / 64
    assert costs.saturation_rate == pytest.approx(1 / (0.0002 + per_request))
    assert replace(costs, cores=1).saturation_rate == pytest.approx(1 / (0.0002 + 0.0074 / 64 + per_request))


EIGHT = replace(COSTS, max_batch_size=8)
"""A batch of eight takes 1.8 ms."""


@pytest.mark.parametrize(
    ("requests", "batches"),
    [
        (16, 1),  # are read within 1.6 ms, less than a batch takes
        (24, 2),  # 2.4 ms
        (64, 3),  # 6.4 ms, but an iteration may run batches for 5
    ],
)
def test_batches_use_half_of_the_loop(requests: int, batches: int) -> None:
    tally = sent(EIGHT, (0.0, requests))
    first = requests * 0.0001 + batches * 0.0018 + 0.0001
    assert tally.latencies.quantile(0.001) == pytest.approx(first, rel=0.025)
    assert slowest(tally) == requests * 0.0002 + requests / 8 * 0.0018


def test_idle_time_does_not_count_as_loop_time() -> None:
    tally = sent(EIGHT, (0.0, 1), (1.0, 16))
    assert tally.latencies.quantile(2 / 17) == pytest.approx(0.0016 + 0.0018 + 0.0001, rel=0.05)


def test_after_a_rejection_the_next_batch_is_cut_further() -> None:
    """A batch cut to 64 rows takes 4.2 ms of the 5 per iteration, so that another batch follows."""
    costs = replace(QUICK, max_queue_requests=100)
    assert (costs.max_on_loop_rows(refusing=False), costs.max_on_loop_rows(refusing=True)) == (80, 64)
    assert COSTS.max_on_loop_rows(refusing=True) is None
    first = [sent(costs, (0.0, count)).latencies.quantile(0.001) for count in (100, 101)]
    taken, refusing = 0.01 + 0.005 + 0.0001, 0.0101 + 0.0042 + 0.003 + 0.0001
    assert first == pytest.approx([taken, refusing], rel=0.025)


def test_a_request_that_arrives_during_an_inline_batch_is_read_after_its_responses() -> None:
    """Half of 0.2 ms, a batch of 1.1 ms and half of 0.2 ms; the second request arrives after 0.5 ms."""
    assert slowest(sent(COSTS, (0.0, 1))) == 0.0013
    assert slowest(sent(COSTS, (0.0, 1), (0.0005, 1))) == 2 * 0.0013 - 0.0005


def test_requests_are_read_while_a_batch_runs_on_the_thread() -> None:
    """64 requests are read until 6.4 ms, run until 13.8 and answered until 20.2; another comes at 8 ms.

    With the batch on the thread it is read meanwhile, its own batch follows at once, and its response comes
    after the others: 12.3 ms. With an inline batch it is read after them: 13.5 ms. The first of the 64 takes
    13.9 ms.
    """
    arrivals = (0.0, 64), (0.008, 1)
    on_thread = sent(COSTS, *arrivals).latencies.quantile(0.001)
    inline = sent(replace(COSTS, cores=1), *arrivals).latencies.quantile(0.001)
    assert (on_thread, inline) == pytest.approx((0.0123, 0.0135), rel=0.02)


def test_a_full_queue_rejects_at_the_cost_of_a_rejection() -> None:
    costs = replace(COSTS, max_queue_requests=8)
    tally = sent(costs, (0.0, 100))
    assert (tally.answered, tally.shed) == (8, 92)
    assert slowest(tally) == 8 * 0.0001 + 92 * 0.0001 + 0.0018 + 8 * 0.0001


def test_a_request_that_would_be_late_is_rejected_at_once() -> None:
    """The pod has measured 0.267 ms per row: 11 rows, not 12, are done within 4/5 of 3.75 ms."""
    costs = replace(COSTS, request_seconds=1e-7, refuse_seconds=1e-7, deadline_seconds=0.00375)
    learn = [(0.1 * number, 6) for number in range(100)]  # batches of 1.6 ms
    assert sent(costs, *learn).shed == 0
    tally = sent(costs, *learn, (20.0, 40))
    assert (tally.shed, tally.expired) == (40 - 11, 0)


def test_a_caller_that_disconnects_before_its_response_counts_as_expired() -> None:
    tally = sent(replace(COSTS, deadline_seconds=0.0012), (0.0, 1))
    assert (tally.answered, tally.expired) == (0, 1)


def test_the_model_queues_as_many_requests_as_the_service() -> None:
    assert COSTS.max_queued == 512
    assert replace(COSTS, max_queue_rows=100).max_queued == 100
    row = 1 / COSTS.device_rate
    assert replace(COSTS, deadline_seconds=50 * row).max_queued == pytest.approx(21)
    assert replace(COSTS, deadline_seconds=250 * row).max_queued == pytest.approx(200 - 2 * 64 + 1)
