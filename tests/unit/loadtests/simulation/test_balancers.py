"""Each balancer, by what it must do whatever the requests are."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.service_process import ROOT
from loadtests.simulation.balance import (
    BALANCERS,
    FOLDER,
    GROWING,
    SCENARIOS,
    Balanced,
    Grown,
    balance,
    draw,
    grown_table,
    table,
)
from loadtests.simulation.balancers import (
    BLACKOUT_SECONDS,
    AgentChecked,
    Balancer,
    ClientSideWeighted,
    LeastRequest,
    RoundRobin,
    Sticky,
    Weighted,
    orca_weight,
)
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import Load

COSTS = PodCosts(0.01, 0.004, 0.001, 0.002, 0.001, 0.0, 1.0)
"""About 150 requests/s."""


def picked(balancer: Balancer | Weighted, count: int, now: float = 0.0) -> list[int]:
    return [balancer.pick(now) for _ in range(count)]


@given(st.integers(1, 9), st.integers(1, 100))
def test_round_robin_gives_each_pod_its_turn(pods: int, count: int) -> None:
    assert picked(RoundRobin(pods), count) == [turn % pods for turn in range(count)]


@pytest.mark.parametrize("distinct", [False, True])
def test_least_request_never_takes_the_busier_of_two(distinct: bool) -> None:
    queued = [0.0, 5.0, 9.0]
    balancer = LeastRequest(3, queued.__getitem__, np.random.default_rng(1), distinct=distinct)
    shares = Counter(picked(balancer, 9000))
    # Without distinct pods, a pod is drawn twice in one of nine; with them, the busiest always loses.
    expected = [2 / 3, 1 / 3, 0.0] if distinct else [5 / 9, 3 / 9, 1 / 9]
    assert [shares[pod] / 9000 for pod in range(3)] == pytest.approx(expected, abs=0.02)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_a_weighted_turn_is_never_more_than_one_request_late(weights: list[float]) -> None:
    balancer, counts, total = Weighted(weights), [0] * len(weights), sum(weights)
    for sent in range(1, 200):
        counts[balancer.pick(0.0)] += 1
        for count, weight in zip(counts, weights, strict=True):
            assert count <= sent * weight / total + 1 + len(weights) * weight / total


def test_new_weights_hold_from_the_next_request_on() -> None:
    balancer = Weighted([1.0, 1.0])
    picked(balancer, 10)
    balancer.weigh([1.0, 3.0, 4.0])
    assert Counter(picked(balancer, 800)) == pytest.approx({0: 100, 1: 300, 2: 400}, abs=2)


def test_frequent_updates_starve_no_pod() -> None:
    balancer, counts = Weighted([1.0, 10.0]), Counter[int]()
    for _ in range(1100):
        counts[balancer.pick(0.0)] += 1
        balancer.weigh([1.0, 10.0])
    assert counts[0] == pytest.approx(100, abs=2)


def test_orca_weights_are_requests_over_utilization_once_the_blackout_is_over() -> None:
    loads = [Load(0.5, 0.0, 0.0, 1000.0, 0.0), Load(0.5, 0.0, 0.0, 250.0, 0.0)]
    balancer = ClientSideWeighted(2)
    balancer.note(0.0, loads)
    assert Counter(picked(balancer, 100)) == {0: 50, 1: 50}
    balancer.note(BLACKOUT_SECONDS, loads)
    assert Counter(picked(balancer, 1000)) == pytest.approx({0: 800, 1: 200}, abs=2)


def test_a_pod_without_a_report_gets_the_usual_orca_weight() -> None:
    balancer = ClientSideWeighted(2)
    loads = [Load(0.5, 0.0, 0.0, 1000.0, 0.0)] * 2
    balancer.note(0.0, loads)
    balancer.resize(3)
    balancer.note(BLACKOUT_SECONDS, [*loads, Load()])
    assert Counter(picked(balancer, 300)) == pytest.approx({0: 100, 1: 100, 2: 100}, abs=2)


def test_errors_count_as_utilization() -> None:
    report = {"application_utilization": 0.5, "rps_fractional": 100.0, "eps": 0.0}
    assert orca_weight(report) == 200
    assert orca_weight({**report, "eps": 50.0}) == 100


def test_agent_checks_prefer_the_idle_pod_and_forget_no_pod() -> None:
    balancer = AgentChecked(2)
    for second in range(200):
        balancer.note(float(second), [Load(work=0.0), Load(work=2.0, queued=1.0)])
    counts = Counter(picked(balancer, 1030))
    assert counts == pytest.approx({0: 1000, 1: 30}, abs=3)


def test_connections_without_an_age_never_reach_a_new_pod() -> None:
    balancer = Sticky(1, 64, np.random.default_rng(1))
    balancer.resize(3)
    assert set(picked(balancer, 1000, now=1e6)) == {0}


def test_within_one_age_every_connection_is_opened_again() -> None:
    balancer = Sticky(1, 600, np.random.default_rng(1), age_seconds=10.0)
    balancer.resize(3)
    assert set(picked(balancer, 1000, now=4.9)) == {0}  # none is younger than half of the age
    picked(balancer, 20_000, now=10.0)
    shares = Counter(picked(balancer, 9000, now=10.1))
    assert [shares[pod] / 9000 for pod in range(3)] == pytest.approx([1 / 3] * 3, abs=0.06)


@pytest.mark.slow
def test_the_balancers_that_look_spare_a_slow_pod() -> None:
    costs = replace(COSTS, deadline_seconds=5.0)
    shares = {
        name: balance("one slow, 60 %", name, costs, 20.0, 1, settle_seconds=30.0).shares[-1]
        for name in ("round robin", "least request (nginx)", "ORCA weights (Envoy)", "agent checks (HAProxy)")
    }
    assert shares.pop("round robin") == pytest.approx(1 / 3, abs=0.01)
    assert all(share < 0.26 for share in shares.values()), shares


def test_the_same_seed_gives_the_same_figures() -> None:
    first, again = (balance("equal, 60 %", "sticky", COSTS, 2.0, 7, settle_seconds=1.0) for _ in range(2))
    assert first == again
    assert sum(first.shares) == pytest.approx(1)


@pytest.mark.slow
def test_the_tables_and_the_picture_have_every_balancer(tmp_path: Path) -> None:
    balanced = [
        Balanced(scenario, name, 0.01, 0.02, 0.1 if name == "round robin" else 0.0, [0.4, 0.4, 0.2])
        for scenario in SCENARIOS
        for name in BALANCERS
    ]
    grown = [Grown(name, [0.1] * 120, 0.5) for name in GROWING]
    assert "| round robin | 20 (20%, 10.0% lost) |" in table(balanced)
    assert all(f"| {name} |" in table(balanced) for name in BALANCERS)
    assert "| sticky | 10% | 10% | 10% | 500 |" in grown_table(grown)
    draw(balanced, grown, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_the_docs_have_the_published_tables() -> None:
    published = json.loads((FOLDER / "balancers.json").read_text())
    text = (ROOT / "docs" / "scaling.md").read_text()
    assert table([Balanced(**each) for each in published["balanced"]]) in text
    assert grown_table([Grown(**each) for each in published["grown"]]) in text
