"""The autoscaler's decisions, compared with the worked examples of Kubernetes' documentation."""

import pytest

from loadtests.simulation.autoscaler import SCALE_UP, Autoscaler, Policy, Rules, Spec, recommend


def scaled(autoscaler: Autoscaler, replicas: int, ratios: list[float], seconds: float = 15) -> list[int]:
    """The replicas after each sync, for a metric at these multiples of its target."""
    history = []
    for turn, ratio in enumerate(ratios):
        metrics = [ratio * autoscaler.spec.target] * replicas
        replicas = autoscaler.sync(turn * seconds, replicas, metrics, 0)
        history.append(replicas)
    return history


@pytest.mark.parametrize(
    ("current", "metric", "target", "expected"),
    [
        (4, 200, 100, 8),  # "if the current metric value is 200m, and the desired value is 100m ... doubled"
        (4, 50, 100, 2),  # "if the current value is instead 50m, you'll halve the number of replicas"
        (10, 109, 100, 10),  # "sufficiently close to 1.0 (within a configurable tolerance, 0.1 by default)"
        (10, 91, 100, 10),
        (10, 111, 100, 12),  # ceil(11.1)
        (10, 89, 100, 9),  # ceil(8.9)
        (5, 0.6, 0.3, 10),  # a ratio that floating point puts slightly above 2
        (3, 0.1 * 3, 0.1, 9),
    ],
)
def test_desired_replicas_are_the_ceiling_of_the_ratio(
    current: int, metric: float, target: float, expected: int
) -> None:
    assert recommend(current, [metric] * current, 0, target) == expected


def test_a_tolerance_of_five_percent_scales_at_six() -> None:
    assert recommend(100, [106.0] * 100, 0, 100, tolerance=0.05) == 106
    assert recommend(100, [105.0] * 100, 0, 100, tolerance=0.05) == 100


def test_starting_pods_count_as_using_nothing_when_scaling_up() -> None:
    assert recommend(4, [2.0, 2.0], 0, 1.0) == 4
    assert recommend(4, [2.0, 2.0], 2, 1.0) == 4  # four pods are needed and four are ordered: no more
    assert recommend(4, [3.0, 3.0], 2, 1.0) == 6
    assert recommend(6, [1.5, 1.5], 4, 1.0) == 6  # counting the four, the ratio reverses: no change


def test_without_metrics_the_replicas_stay() -> None:
    assert recommend(3, [], 3, 1.0) == 3


def test_scale_down_is_ten_percent_per_minute_or_four_pods() -> None:
    """ "80 replicas ... during the first step 8 ... 72, 10% is 7.2 but the number is rounded up to 8 ..."

    "When the number of replicas falls below 40 the first policy (Pods) is applied and 4 ... at a time."
    """
    down = Rules((Policy("Pods", 4, 60), Policy("Percent", 10, 60)), 0)
    autoscaler = Autoscaler(Spec(1, 100, 1.0, scale_down=down))
    history = scaled(autoscaler, 80, [0.1] * 12, seconds=60)
    assert history[:8] == [72, 64, 57, 51, 45, 40, 36, 32]
    assert history[8:12] == [28, 24, 20, 16]


def test_select_min_applies_the_smallest_policy() -> None:
    """ "To ensure that no more than 5 Pods are removed per minute ... set selectPolicy to minimum"."""
    down = Rules((Policy("Percent", 10, 60), Policy("Pods", 5, 60)), 0, select="Min")
    assert scaled(Autoscaler(Spec(1, 200, 1.0, scale_down=down)), 100, [0.1] * 3, 60) == [95, 90, 85]
    assert scaled(Autoscaler(Spec(1, 200, 1.0, scale_down=down)), 20, [0.1], 60) == [18]


def test_a_disabled_direction_never_moves() -> None:
    down = Rules((Policy("Percent", 100, 15),), 0, select="Disabled")
    assert scaled(Autoscaler(Spec(1, 10, 1.0, scale_down=down)), 8, [0.1] * 50) == [8] * 50


def test_by_default_the_replicas_double_or_grow_by_four_every_fifteen_seconds() -> None:
    autoscaler = Autoscaler(Spec(1, 1000, 1.0))
    assert scaled(autoscaler, 1, [100.0] * 6) == [5, 10, 20, 40, 80, 160]


def test_changes_within_a_policys_period_count_against_it() -> None:
    up = Rules((Policy("Pods", 4, 60),), 0)
    autoscaler = Autoscaler(Spec(1, 1000, 1.0, scale_up=up))
    assert scaled(autoscaler, 10, [100.0] * 5) == [14, 14, 14, 14, 18]


def test_scale_down_waits_for_the_highest_recommendation_of_five_minutes() -> None:
    autoscaler = Autoscaler(Spec(1, 100, 1.0))
    history = scaled(autoscaler, 10, [1.0] + [0.5] * 22)
    assert history[:20] == [10] * 20
    assert history[20] == 5  # 300 s after the last recommendation of 10


def test_a_stabilized_scale_up_takes_the_lowest_recommendation() -> None:
    up = Rules(SCALE_UP.policies, stabilization_window_seconds=60)
    autoscaler = Autoscaler(Spec(1, 100, 1.0, scale_up=up))
    assert scaled(autoscaler, 10, [1.0, 2.0, 2.0, 2.0, 2.0]) == [10, 10, 10, 10, 20]


def test_replicas_stay_within_the_bounds() -> None:
    assert scaled(Autoscaler(Spec(2, 12, 1.0)), 10, [5.0]) == [12]
    assert scaled(Autoscaler(Spec(4, 12, 1.0)), 10, [0.01] * 25)[-1] == 4
