"""What a privacy study found: tables on stdout, report.md, report.json, and two pictures."""

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import opacus
import torch

from training.cards.card import table
from training.datasets.splits import Splits
from training.files import write_atomically
from training.privacy.attack import LOW_RATES, Curve
from training.privacy.guarantee import Guarantee, bound_on_attacks
from training.privacy.pictures import plot_accuracy, plot_attacks
from training.privacy.plan import Level, Plan
from training.provenance.commit import commit
from training.terminal import command_line

JSON_FILE = "report.json"
PAGE_FILE = "report.md"
ACCURACY_FILE = "accuracy.png"
ATTACKS_FILE = "attacks.png"


@dataclass(frozen=True)
class Trained:
    """A run at one level, of the averaged weights of its best epoch. seconds: of the clock."""

    seed: int
    guarantee: Guarantee | None
    validation_accuracy: float
    test_accuracy: float
    seconds: float


@dataclass(frozen=True)
class Attacked:
    """What the attacks found on the models of one level.

    curves: of each attack, over the scores of all models together. areas: of each attack, model by model.
    """

    accuracy_on_members: float
    accuracy_on_others: float
    curves: Mapping[str, Curve]
    areas: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Outcome:
    """One level's runs and attacked models."""

    level: Level
    trained: Sequence[Trained]
    attacked: Attacked


def report(plan: Plan, splits: Splits, outcomes: Sequence[Outcome]) -> None:
    """Print the tables, and write the files into the study's folder."""
    content = {
        "command": command_line(),
        "commit": commit() or None,
        "opacus": opacus.__version__,
        "torch": torch.__version__,
        "record": plan.record(),
        "levels": [_plain(plan, each) for each in outcomes],
    }
    write_atomically(plan.folder / JSON_FILE, (json.dumps(content, indent=2) + "\n").encode())
    plot_accuracy(
        [(each.level, [run.test_accuracy for run in each.trained]) for each in outcomes],
        plan.folder / ACCURACY_FILE,
    )
    plot_attacks([(each.level, each.attacked.curves) for each in outcomes], plan.folder / ATTACKS_FILE)
    page = _page(plan, splits, outcomes)
    write_atomically(plan.folder / PAGE_FILE, page.encode())
    print(page, end="")


def _page(plan: Plan, splits: Splits, outcomes: Sequence[Outcome]) -> str:
    config, half = plan.config, plan.pool // 2
    return "\n".join(
        [
            f"# Private training on {splits.name}",
            "",
            f"{len(splits.train):,} training images, {config.epochs} epochs, runs per level: {plan.seeds}.",
            "",
            table([("", *ACCURACY_COLUMNS), ("---",) * (1 + len(ACCURACY_COLUMNS))]),
            table(_accuracy_row(each) for each in outcomes),
            "",
            f"![accuracy against epsilon]({ACCURACY_FILE})",
            "",
            "# Membership inference",
            "",
            f"{plan.models} models per level, each trained on about {half:,} of {plan.pool:,} images for "
            f"{plan.attacked_epochs} epochs. TPR: the rate of true positives at a rate of false positives.",
            "",
            table([("", *ATTACK_COLUMNS), ("---",) * (1 + len(ATTACK_COLUMNS))]),
            table(row for each in outcomes for row in _attack_rows(plan, each)),
            "",
            f"![curves of the attacks]({ATTACKS_FILE})",
            "",
        ]
    )


ACCURACY_COLUMNS = ("epsilon", "by RDP", "noise", "steps", "validation", "test", "time")
ATTACK_COLUMNS = (
    *("attack", "accuracy on members", "on others", "AUC"),
    *(f"TPR at {rate:.1%}" for rate in LOW_RATES),
    f"bound at {LOW_RATES[-1]:.1%}",
)


def _accuracy_row(outcome: Outcome) -> list[str]:
    first = outcome.trained[0].guarantee
    facts = ["", "", "", ""]
    if first is not None:
        facts = [f"{first.epsilon:.3f}", f"{first.epsilon_rdp:.3f}"]
        facts += [f"{first.noise_multiplier:.4f}", f"{first.steps:,}"]
    return [
        str(outcome.level),
        *facts,
        _percent([run.validation_accuracy for run in outcome.trained]),
        _percent([run.test_accuracy for run in outcome.trained]),
        f"{statistics.mean(run.seconds for run in outcome.trained):.0f} s",
    ]


def _attack_rows(plan: Plan, outcome: Outcome) -> list[list[str]]:
    seen = outcome.attacked
    return [
        [
            str(outcome.level),
            name,
            f"{seen.accuracy_on_members:.2%}",
            f"{seen.accuracy_on_others:.2%}",
            f"{seen.curves[name].area:.3f} ± {statistics.stdev(areas):.3f}",
            *(f"{seen.curves[name].at(rate):.2%}" for rate in LOW_RATES),
            f"{_bound(plan, outcome.level, LOW_RATES[-1]):.1%}",
        ]
        for name, areas in seen.areas.items()
    ]


def _bound(plan: Plan, level: Level, rate: float) -> float:
    return 1.0 if level.epsilon is None else bound_on_attacks(level.epsilon, plan.config.delta, rate)


def _percent(values: Sequence[float]) -> str:
    """The mean in percent, with the deviation if there are several."""
    text = f"{statistics.mean(values):.2%}"
    return text if len(values) == 1 else f"{text} ± {100 * statistics.stdev(values):.2f}"


def _plain(plan: Plan, outcome: Outcome) -> dict[str, Any]:
    seen = outcome.attacked
    return {
        "level": outcome.level.name,
        "epsilon": outcome.level.epsilon,
        "runs": [dataclasses.asdict(run) for run in outcome.trained],
        "attacks": {
            name: {
                "area": each.area,
                "areas_by_model": list(seen.areas[name]),
                "true_positives_at": {f"{rate:g}": each.at(rate) for rate in LOW_RATES},
                "bound_at": {f"{rate:g}": _bound(plan, outcome.level, rate) for rate in LOW_RATES},
            }
            for name, each in seen.curves.items()
        },
        "accuracy_on_members": seen.accuracy_on_members,
        "accuracy_on_others": seen.accuracy_on_others,
    }
