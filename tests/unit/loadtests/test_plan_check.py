"""The comparison of a plan with loads that it was not given: its verdict, and a short run on a real pod."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from loadtests import plan_check
from loadtests.measured_pod import Step
from loadtests.plan_check import GIVEN, HELD_OUT, RESULT, Prediction, predictions, table
from loadtests.service_process import ROOT


def at(load: float, p99_seconds: float) -> Step:
    return Step(1000 * load, 1000 * load, 0, 0, 0.001, p99_seconds, 0.0)


def test_the_medians_of_the_given_loads_predict_those_of_the_others() -> None:
    rounds = [
        {load: at(load, factor * 0.01 * 10**load) for load in (*GIVEN, *HELD_OUT)} for factor in (1, 2, 9)
    ]
    found = predictions(rounds)
    assert [each.load for each in found] == list(HELD_OUT)
    for each in found:
        assert each.ratio == pytest.approx(1.0)
        assert each.measured_seconds == pytest.approx(0.02 * 10**each.load)
        assert each.highest_seconds == pytest.approx(9 * each.lowest_seconds)


def test_a_load_that_differs_too_much_does_not_agree() -> None:
    ratios = {
        ratio: Prediction(0.4, 400.0, 0.01, 0.01 * ratio, 0.01, 0.1).agrees for ratio in (0.6, 0.7, 1.4, 1.6)
    }
    assert ratios == {0.6: False, 0.7: True, 1.4: True, 1.6: False}


def test_the_table_has_the_range() -> None:
    row = table([Prediction(0.4, 1000.0, 0.01, 0.014, 0.007, 0.09)]).splitlines()[2]
    assert row == "| 40.0% | 1,000 | 10.0 | 14.0 (7.0 to 90.0) | 1.40 | yes |"


def test_no_load_is_predicted_from_itself() -> None:
    assert not set(GIVEN) & set(HELD_OUT)
    assert min(GIVEN) < min(HELD_OUT) < max(HELD_OUT) < max(GIVEN)


def test_the_docs_have_the_published_table() -> None:
    published = json.loads(RESULT.read_text())
    rounds = [{float(load): Step(**step) for load, step in steps.items()} for steps in published["rounds"]]
    assert table(predictions(rounds)) in (ROOT / "docs" / "scaling.md").read_text()


@pytest.mark.slow
def test_a_short_run_writes_what_it_prints(
    tmp_path: Path,
    add_classifier: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add_classifier("mlp")
    output = tmp_path_factory.mktemp("results") / "plan-check.json"
    flags = ["--models-dir", str(tmp_path), "--seconds", "0.3", "--rounds", "1", "--output", str(output)]
    code = plan_check.main(flags)
    result = json.loads(output.read_text())
    assert [each["load"] for each in result["predictions"]] == list(HELD_OUT)
    (steps,) = result["rounds"]
    assert sorted(map(float, steps)) == sorted((*GIVEN, *HELD_OUT))
    assert all(step["p99_seconds"] > 0 for step in steps.values())
    assert code == any(not 1 / 1.5 <= each["ratio"] <= 1.5 for each in result["predictions"])
    assert capsys.readouterr().out.count("\n| ") == len(HELD_OUT)
