"""What a study found: a table on stdout, study.json, and two pictures."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from training.files import write_atomically
from training.tuning.pictures import plot_history, plot_importance
from training.tuning.plan import Plan
from training.tuning.study import finished, is_default

JSON_FILE = "study.json"
HISTORY_FILE = "history.png"
IMPORTANCE_FILE = "importance.png"

SHOWN = 5

# PED-ANOVA compares the best trials with all. Its authors advise at least 5 among the best; a small study
# has fewer, so that the best are never more than half of all.
BEST_TRIALS = 5
FEWEST_TRIALS = 6


def report(plan: Plan, study: Study) -> None:
    """Print the table, and write the files into the study's folder."""
    trials = finished(study)
    ranked = _ranked(plan, trials)
    importance = _importance(study, ranked)
    _write_json(plan, study, importance)
    if not ranked:
        print(f"{plan.model}: no complete trial, {len(trials)} pruned")
        return
    plot_history(plan, trials, plan.folder / HISTORY_FILE)
    if importance:
        plot_importance(importance, plan.folder / IMPORTANCE_FILE)
    print("\n".join(_text(plan, trials, ranked, importance)))


def trial_line(plan: Plan, trial: FrozenTrial) -> str:
    """A finished trial in one line."""
    end = f"{plan.space.metric} {trial.value:.5g}" if trial.value is not None else "no value"
    if trial.state == TrialState.PRUNED:
        last = max(trial.intermediate_values, default=0)
        end = f"pruned after epoch {last} of {plan.config.epochs}"
        end = "diverged: the loss is not finite" if "reason" in trial.user_attrs else end
    return f"trial {trial.number}: {end}  {' '.join(trial.user_attrs.get('changes', []))}"


def _ranked(plan: Plan, trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The complete trials, the best first."""
    complete = [(trial.value, trial) for trial in trials if trial.value is not None]
    complete = [pair for pair in complete if pair[1].state == TrialState.COMPLETE]
    sign = -1 if plan.space.maximize else 1
    return [trial for _, trial in sorted(complete, key=lambda pair: (sign * pair[0], pair[1].number))]


def _importance(study: Study, ranked: Sequence[FrozenTrial]) -> dict[str, float]:
    """The share of each hyperparameter in being among the best trials; empty for too few trials."""
    if len(ranked) < FEWEST_TRIALS:
        return {}
    # Half a trial less, because Optuna rounds quantile * trials up.
    evaluator = PedAnovaImportanceEvaluator(target_quantile=(_best(ranked) - 0.5) / len(ranked))
    return get_param_importances(study, evaluator=evaluator)


def _best(ranked: Sequence[FrozenTrial]) -> int:
    """How many of the complete trials count as the best: 5, a tenth, or half of a few."""
    return min(max(BEST_TRIALS, len(ranked) // 10), len(ranked) // 2)


def _text(
    plan: Plan,
    trials: Sequence[FrozenTrial],
    ranked: Sequence[FrozenTrial],
    importance: Mapping[str, float],
) -> list[str]:
    best, pruned = ranked[0], len(trials) - len(ranked)
    lines = [
        f"{plan.model}: {len(trials)} trials of up to {plan.config.epochs} epochs, {pruned} pruned; "
        f"{plan.space.metric}, {'highest' if plan.space.maximize else 'lowest'} first:",
        *_table(plan, ranked),
        "",
        *_importance_lines(plan, ranked, importance),
        "",
    ]
    if is_default(plan, best):
        return [*lines, "No trial is better than the default configuration."]
    changes = best.user_attrs["changes"]
    return [
        *lines,
        f"Repeat trial {best.number}, with the same validation metrics:",
        f"  {plan.command(changes, short=True)}",
        "Train its hyperparameters for the model's own number of epochs:",
        f"  {plan.command(changes, short=False)}",
    ]


def _table(plan: Plan, ranked: Sequence[FrozenTrial]) -> list[str]:
    names = [name for name in ranked[0].user_attrs["best_epoch"] if name.startswith("validation_")]
    rows = [["trial", "epoch", *names, *plan.space.fields]]
    shown = [trial for i, trial in enumerate(ranked) if i < SHOWN or is_default(plan, trial)]
    for trial in shown:
        metrics = trial.user_attrs["best_epoch"]
        values = [change.partition("=")[2] for change in trial.user_attrs["changes"]]
        number = f"{trial.number}{' (default)' if is_default(plan, trial) else ''}"
        rows.append([number, str(metrics["epoch"]), *(f"{metrics[name]:.5g}" for name in names), *values])
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _importance_lines(
    plan: Plan, ranked: Sequence[FrozenTrial], importance: Mapping[str, float]
) -> list[str]:
    if not importance:
        return [f"No importance: {len(ranked)} complete trials, expected at least {FEWEST_TRIALS}."]
    width = max(len(name) for name in plan.space.fields)
    head = (
        f"Importance for being among the best {_best(ranked)} of {len(ranked)} complete trials (PED-ANOVA):"
    )
    return [head, *(f"  {name.ljust(width)}  {share:.2f}" for name, share in importance.items())]


def _write_json(plan: Plan, study: Study, importance: Mapping[str, float]) -> None:
    content = {
        "record": plan.record(),
        "fixed": plan.fixed,
        "optuna": optuna.__version__,
        "importance": importance,
        "trials": [_plain(trial) for trial in study.get_trials(deepcopy=False)],
    }
    write_atomically(plan.folder / JSON_FILE, (json.dumps(content, indent=2) + "\n").encode())


def _plain(trial: FrozenTrial) -> dict[str, Any]:
    attributes = {name: value for name, value in trial.user_attrs.items() if name != "worker"}
    return {
        "number": trial.number,
        "state": trial.state.name.lower(),
        "value": trial.value if trial.state == TrialState.COMPLETE else None,
        "by_epoch": {str(epoch): value for epoch, value in trial.intermediate_values.items()},
        **attributes,
    }
