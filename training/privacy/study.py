"""The command `private`: trains at each epsilon, attacks models of each, and reports."""

import json

import torch

from training.datasets.splits import Splits
from training.errors import PrivacyError
from training.families.classifier import validate
from training.families.tensors import to_tensors
from training.files import write_atomically
from training.privacy.attack import curve, likelihood_ratio, loss_threshold
from training.privacy.attacked import check_attack, observe, plan_members
from training.privacy.family import build, train
from training.privacy.guarantee import check_delta, read_guarantee
from training.privacy.plan import Level, Plan
from training.privacy.report import Attacked, Outcome, Trained, report
from training.runs.finished import load_weights
from training.runs.inputs import record_of
from training.runs.run import Run
from training.terminal import notice

RECORD_FILE = "record.json"


def study(plan: Plan, splits: Splits) -> None:
    """Do what of the plan is not done yet, then print and write the report.

    Raises PrivacyError if the folder holds a study of something else.
    """
    check_attack(plan, len(splits.train))
    check_delta(plan.config.delta, plan.pool // 2)
    _check_unchanged(plan)
    trained = [[_train(plan, level, seed, splits) for seed in range(plan.seeds)] for level in plan.levels]
    attacked = [_attack(plan, level, splits) for level in plan.levels]
    outcomes = [Outcome(*each) for each in zip(plan.levels, trained, attacked, strict=True)]
    report(plan, splits, outcomes)


def _check_unchanged(plan: Plan) -> None:
    path, record = plan.folder / RECORD_FILE, plan.record()
    if path.exists():
        seen = json.loads(path.read_text())
        changed = [
            f"{name} is {record.get(name)!r}, was {seen.get(name)!r}"
            for name in sorted({*record, *seen})
            if record.get(name) != seen.get(name)
        ]
        if changed:
            raise PrivacyError(
                f"{plan.folder} holds another study: {'; '.join(changed)}: give another --study-dir"
            )
    plan.folder.mkdir(parents=True, exist_ok=True)
    write_atomically(path, (json.dumps(record, indent=2) + "\n").encode())


def _train(plan: Plan, level: Level, seed: int, splits: Splits) -> Trained:
    config, folder = plan.configure(level), plan.run_folder(level, seed)
    notice(f"{level}, seed {seed}: {folder}")
    run = Run(
        folder,
        record_of("private", splits.digest, config),
        epochs=config.epochs,
        seed=seed,
        device=plan.device,
        resume=True,
    )
    if len(run.history) < config.epochs:
        train(config, splits, run)
    classifier = build()
    load_weights(classifier, folder)
    cpu = torch.device("cpu")
    return Trained(
        seed=seed,
        guarantee=None if level.epsilon is None else read_guarantee(folder),
        validation_accuracy=validate(classifier, *to_tensors(splits.validation, cpu))["accuracy"],
        test_accuracy=validate(classifier, *to_tensors(splits.test, cpu))["accuracy"],
        seconds=sum(line["seconds"] for line in run.history),
    )


def _attack(plan: Plan, level: Level, splits: Splits) -> Attacked:
    cuda = torch.cuda.is_available() and plan.device != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    seen, right = observe(plan, level, splits.train, device)
    members = plan_members(plan)
    scores = {"loss threshold": loss_threshold(seen), "likelihood ratio": likelihood_ratio(seen, members)}
    return Attacked(
        accuracy_on_members=float(right[members].mean()),
        accuracy_on_others=float(right[~members].mean()),
        curves={name: curve(each, members) for name, each in scores.items()},
        areas={
            name: [curve(*pair).area for pair in zip(each, members, strict=True)]
            for name, each in scores.items()
        },
    )
