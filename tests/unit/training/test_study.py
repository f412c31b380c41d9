from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from training.errors import TuningError
from training.families import vae
from training.tuning.plan import Plan
from training.tuning.space import SPACES
from training.tuning.study import ask, finished, is_default, lose_trials, only_command, open_study


def new_plan(folder: Path, trials: int = 3, seed: int = 0) -> Plan:
    return Plan(
        model="vae",
        family="training.families.vae",
        config=vae.CONFIG,
        fixed=(),
        space=SPACES["vae"],
        folder=folder,
        data_dir=folder,
        data_digest="0",
        trials=trials,
        seed=seed,
        device="cpu",
    )


def values(study: Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials()]


def search(folder: Path, orders: Iterable[int], seed: int = 0) -> list[dict[str, float]]:
    """Run commands that order so many trials in all, whose values need no training."""
    for trials in orders:
        plan = new_plan(folder, trials, seed)
        with open_study(plan) as study:
            while (trial := ask(plan, study)) is not None:
                study.tell(trial, -trial.params["learning_rate"])
            found = values(study)
    return found


@pytest.mark.slow
def test_the_first_trial_is_the_default_configuration(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    with open_study(plan) as study:
        first, second = ask(plan, study), ask(plan, study)
    assert first is not None
    assert second is not None
    assert first.params == {name: getattr(vae.CONFIG, name) for name in SPACES["vae"].fields}
    assert (is_default(plan, first), is_default(plan, second)) == (True, False)


@pytest.mark.slow
def test_running_trials_count_so_that_no_more_start_than_ordered(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, trials=3)
    with open_study(plan) as study, open_study(plan) as other:
        started = [ask(plan, each) for each in (study, other, study, other)]
    assert [trial is None for trial in started] == [False, False, False, True]


@pytest.mark.slow
def test_a_continued_study_draws_the_values_of_one_that_was_never_stopped(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "cut").mkdir()
    whole = search(tmp_path / "whole", [12])
    assert search(tmp_path / "cut", [3, 7, 12]) == whole
    assert len({trial["learning_rate"] for trial in whole}) == 12


@pytest.mark.slow
def test_another_seed_draws_other_values(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert search(tmp_path, [3])[1:] != search(tmp_path / "other", [3], seed=1)[1:]


def test_a_lost_default_trial_is_tried_again(tmp_path: Path) -> None:
    plan = new_plan(tmp_path, trials=2)
    with open_study(plan) as study:
        for worker in (1, 2):
            trial = ask(plan, study)
            assert trial is not None
            trial.set_user_attr("worker", worker)
        lose_trials(study, worker=1)
        again = ask(plan, study)
        assert again is not None
        assert is_default(plan, again)
        assert [trial.state for trial in study.trials] == [
            TrialState.FAIL,
            TrialState.RUNNING,
            TrialState.RUNNING,
        ]
        assert finished(study) == []


def test_a_trial_worse_than_the_median_is_pruned_after_a_quarter_of_its_epochs(tmp_path: Path) -> None:
    plan = replace(new_plan(tmp_path, trials=9), config=replace(vae.CONFIG, epochs=12))
    with open_study(plan) as study:
        for value in (-1.0, -2.0, -3.0, -4.0):
            steps = dict.fromkeys(range(1, 13), value)
            study.add_trial(optuna.create_trial(value=value, intermediate_values=steps))
        pruned = []
        trial = ask(plan, study)
        assert trial is not None
        for epoch in range(1, 6):
            trial.report(-2.6, epoch)
            pruned.append(trial.should_prune())
    assert pruned == [False, False, False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 1, was 0: give another --study-dir"),
        ({"data_digest": "1"}, "data_digest is '1', was '0'"),
        ({"space": SPACES["vae"].without({"latent"})}, "range of latent is None, was '16 or 32 or 64'"),
    ],
)
def test_a_study_of_something_else_is_not_continued(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    plan = new_plan(tmp_path)
    with open_study(plan):
        pass
    other = Plan(**{**vars(plan), **change})
    with pytest.raises(TuningError, match=message), open_study(other):
        pass


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("nothing of the kind" * 100)
    with pytest.raises(OSError, match=r"study\.db: file is not a database$"), open_study(new_plan(tmp_path)):
        pass


def test_a_study_has_one_command_at_a_time(tmp_path: Path) -> None:
    plan = new_plan(tmp_path)
    with (
        only_command(plan),
        pytest.raises(TuningError, match="another command works on"),
        only_command(plan),
    ):
        pass
