"""The planner's arithmetic, and a short measurement of a real pod with a tiny model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import capacity
from loadtests.capacity import RESULT, capacity_at, plan, predicted_p99
from loadtests.machine import cores
from loadtests.measured_pod import Step
from loadtests.plan_check import FACTOR
from loadtests.simulation.calibration import CALLERS
from loadtests.simulation.costs import load_costs


def test_a_pod_is_given_the_lesser_of_its_capacity_and_its_utilisation() -> None:
    by_utilisation = plan(100_000, 3000, 4000, utilisation=0.6, spare=0)
    assert by_utilisation.pod_rate == 2400
    assert by_utilisation.replicas == 42  # ceil(41.67)
    by_latency = plan(100_000, 2000, 4000, utilisation=0.6, spare=0)
    assert by_latency.pod_rate == 2000
    assert by_latency.replicas == 50
    assert by_latency.utilisation == pytest.approx(0.5)


def test_a_spare_pod_keeps_the_utilisation_when_one_is_lost() -> None:
    answer = plan(9000, 3000, 5000, utilisation=0.6)
    assert (answer.base_replicas, answer.replicas) == (3, 4)
    assert answer.utilisation == pytest.approx(9000 / 4 / 5000)
    assert answer.utilisation_after_a_loss == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("zones", "replicas", "after"),
    [
        (1, 11, 10),
        (2, 20, 10),  # either of two zones carries all
        (3, 15, 10),  # two of three do
        (4, 16, 12),  # four in each: three zones of ceil(10 / 3)
    ],
)
def test_all_zones_but_one_carry_the_rate(zones: int, replicas: int, after: int) -> None:
    answer = plan(30_000, 3000, 5000, utilisation=0.6, zones=zones)
    assert answer.replicas == replicas
    assert answer.utilisation_after_a_loss == pytest.approx(30_000 / after / 5000)


def test_nodes_gpus_and_cost_follow_from_the_replicas() -> None:
    answer = plan(
        30_000,
        3000,
        5000,
        utilisation=0.6,
        pods_per_node=4,
        gpus_per_replica=2,
        pod_cost_per_hour=0.25,
    )
    assert (answer.replicas, answer.nodes, answer.gpus) == (11, 3, 22)
    assert answer.cost_per_hour == pytest.approx(2.75)
    assert plan(30_000, 3000, 5000, utilisation=0.6).cost_per_hour is None


@pytest.mark.parametrize("wrong", [{"utilisation": 1.0}, {"zones": 0}, {"spare": -1}, {"pods_per_node": 0}])
def test_impossible_arguments_are_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        plan(1000, 3000, 5000, **{"utilisation": 0.6, **wrong})  # type: ignore[arg-type]


def test_the_capacity_is_the_highest_step_that_met_the_latency_without_loss() -> None:
    steps = [
        Step(1000, 1000, 0, 0, 0.001, 0.010, 0.0),
        Step(2000, 2000, 0, 0, 0.002, 0.045, 0.0),
        Step(2500, 2400, 3, 0, 0.002, 0.040, 0.0),  # fast, but it shed requests
        Step(3000, 2900, 0, 0, 0.010, 0.200, 0.0),
    ]
    measured = [step.__dict__ for step in steps]
    assert capacity_at(measured, 0.05) == 2000
    assert capacity_at(measured, 0.02) == 1000
    with pytest.raises(ValueError, match=r"no measured step has a p99 of at most 0\.001 s"):
        capacity_at(measured, 0.001)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_plan_follows_from_a_measured_pod(
    tmp_path: Path,
    add_classifier: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_classifier("mlp")
    output = tmp_path_factory.mktemp("results") / "capacity.json"
    flags = ["--models-dir", str(tmp_path), "--seconds", "0.6", "--p99", "5", "--output", str(output)]
    assert capacity.main(["measure", *flags]) == 0
    result = json.loads(output.read_text())
    answering, refusing = result["answering"], result["refusing"]
    assert len(answering) == len(CALLERS) == len(result["batches_on_the_loop"])
    for spent in answering:
        assert spent["answered"] > spent["refused"] == 0
        assert spent["padded_rows"] >= spent["rows"] >= spent["batches"] > 0
        ticks = 0.05  # five ticks of 10 ms, in which the kernel counts CPU time
        assert 0 < spent["main_cpu_seconds"] <= spent["cpu_seconds"] + ticks
    rows = [spent["rows"] / spent["batches"] for spent in answering]
    assert rows[0] == 1
    assert rows[-1] > rows[0]
    assert result["largest_batch"] == 256
    assert refusing["answered"] > 0  # a tiny model may be too fast for any rejection
    assert all(0 <= share <= 1 for share in result["batches_on_the_loop"])
    assert result["model_saturation_rate"] > 10
    assert result["saturation_rate"] > 10
    assert all(step["failed"] == 0 for step in result["steps"])
    placement, costs = result["placement"], load_costs(output)
    assert len(placement["generator_cores"]) == 1
    assert costs.cores == len(placement["service_cores"]) == max(1, cores() - 1)
    assert costs.start_seconds > 0
    assert min(costs.request_seconds, costs.refuse_seconds) > 0
    capsys.readouterr()
    target = ["--rate", "100000", "--p99", "5", "--pod-cost-per-hour", "1", "--measured", str(output)]
    assert capacity.main(["plan", *target]) == 0
    assert "per million requests" in capsys.readouterr().out
    assert capacity.main(["plan", "--rate", "1", "--p99", "1e-9", "--measured", str(output)]) == 1
    assert "no measured step" in capsys.readouterr().err


def at(rate: float, p99_seconds: float, shed: int = 0) -> Step:
    return Step(rate, rate, shed, 0, 0.001, p99_seconds, 0.0)


def test_the_p99_between_two_measured_rates_is_their_geometric_mean() -> None:
    steps = [at(3000, 0.008), at(1000, 0.002), at(3500, 0.001, shed=1)]
    assert predicted_p99(steps, 2000) == pytest.approx(0.004)
    assert predicted_p99(steps, 3000) == pytest.approx(0.008)
    assert predicted_p99(steps, 10) == pytest.approx(0.002)
    assert predicted_p99(steps, 3100) == float("inf")  # no step without a loss went so far


def test_each_published_load_is_predicted_by_the_others() -> None:
    steps = [Step(**step) for step in json.loads(RESULT.read_text())["steps"]]
    whole = sorted((step for step in steps if not step.shed), key=lambda step: step.offered_rate)
    inner = whole[1:-1]
    ratios = [
        step.p99_seconds / predicted_p99([other for other in whole if other is not step], step.offered_rate)
        for step in inner
    ]
    assert len(ratios) >= 3
    assert all(1 / FACTOR <= ratio <= FACTOR for ratio in ratios), ratios


def test_a_plan_takes_milliseconds_and_tells_the_p99(capsys: pytest.CaptureFixture[str]) -> None:
    assert capacity.main(["plan", "--rate", "100000", "--p99-ms", "50"]) == 0
    in_milliseconds = capsys.readouterr().out
    assert capacity.main(["plan", "--rate", "100000", "--p99", "0.05"]) == 0
    assert capsys.readouterr().out == in_milliseconds
    assert "(between measured loads)" in in_milliseconds
    with pytest.raises(SystemExit):
        capacity.main(["plan", "--rate", "1", "--p99", "0.05", "--p99-ms", "50"])
