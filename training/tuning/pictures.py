"""The two pictures of a study: its history and the importance of its hyperparameters."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from training.figures import new_figure, save_figure
from training.tuning.plan import Plan
from training.tuning.study import is_default


def plot_history(plan: Plan, trials: Sequence[FrozenTrial], path: Path) -> None:
    """Draw each trial's value by its number, the best so far, and each trial's value by epoch."""
    figure, (left, right) = new_figure(1, 2, figsize=(10, 3.6))
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    numbers, last = [trial.number for trial in complete], max(trial.number for trial in trials)
    values = [trial.value for trial in complete if trial.value is not None]
    better = max if plan.space.maximize else min
    best = [better(values[: i + 1]) for i in range(len(values))]
    left.plot(numbers, values, "o", label="complete")
    left.step([*numbers, last], [*best, best[-1]], where="post", label="best so far")
    for trial in complete:
        if is_default(plan, trial):
            left.axhline(trial.value, color="grey", linestyle="--", linewidth=1, label="default")
    for trial in trials:
        seen = trial.intermediate_values
        pruned = trial.state == TrialState.PRUNED
        colour = "tab:red" if pruned else "tab:blue"
        right.plot(list(seen), list(seen.values()), color=colour, alpha=0.5, marker="x" if pruned else "o")
    left.set(title="complete trials", xlabel="trial", ylabel=plan.space.metric, xlim=(-0.5, last + 0.5))
    right.set(title="by epoch; red: pruned", xlabel="epoch")
    for axis in (left, right):
        axis.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize="small")
    save_figure(figure, path)


def plot_importance(importance: Mapping[str, float], path: Path) -> None:
    """Draw one bar per hyperparameter, the most important one on top."""
    figure, axis = new_figure(figsize=(5.5, 0.6 + 0.4 * len(importance)))
    axis.barh(list(importance)[::-1], list(importance.values())[::-1])
    axis.set(title="importance (PED-ANOVA)", xlim=(0, 1))
    save_figure(figure, path)
