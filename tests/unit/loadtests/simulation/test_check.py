"""The simulated pod next to a real one with a tiny model. Whether they agree is not tested here."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests.simulation import check
from loadtests.simulation.check import LOADS, at_speed
from loadtests.simulation.costs import PodCosts
from loadtests.simulation.service_rules import BRIEF_SECONDS

COSTS = PodCosts(0.001, 0.0001, 0.0005, 0.0002, 0.0001, 0.0003, 1.0)


def test_a_faster_machine_takes_less_time_for_everything_except_the_start() -> None:
    fast = at_speed(COSTS, 2.0)
    assert fast == PodCosts(
        0.0005,
        0.00005,
        0.00025,
        0.0001,
        0.00005,
        0.00015,
        1.0,
        on_loop_seconds=0.005,
        brief_seconds=BRIEF_SECONDS / 2,
    )
    assert fast.full_batch == COSTS.full_batch
    assert fast.saturation_rate == pytest.approx(2 * COSTS.saturation_rate)


@pytest.mark.slow
def test_model_and_pod_get_the_same_loads_at_the_same_speed(
    tmp_path: Path,
    add_classifier: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_classifier("mlp")
    output = tmp_path_factory.mktemp("results") / "check.json"
    flags = ["--models-dir", str(tmp_path), "--seconds", "0.3", "--calibrate-seconds", "0.3"]
    code = check.main([*flags, "--output", str(output)])
    result = json.loads(output.read_text())
    comparisons, saturation = result["comparisons"], PodCosts(**result["costs"]).saturation_rate
    assert [each["load"] for each in comparisons] == sorted(LOADS)
    assert code == any(each["apart"] for each in comparisons)
    for each in comparisons:
        # 0.3 s of a Poisson process with over a thousand requests per second
        assert each["real"]["offered_rate"] == pytest.approx(each["load"] * saturation, rel=0.25)
        assert each["simulated"]["offered_rate"] == pytest.approx(each["real"]["offered_rate"])
        assert each["real"]["failed"] == 0
        assert each["spent"]["answered"] > 0
        assert each["speed"] > 0
    shown = capsys.readouterr().out
    assert shown.count("\n| ") == 1 + len(LOADS)
    assert "callers got" in shown
