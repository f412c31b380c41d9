import dataclasses
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor

from tests.support.tiny_runs import CNN, FLOW, GAN, VAE, Workshop, new_run
from training.errors import TrainingError
from training.families import classifier, flow, gan, vae
from training.hyperparameters import idle
from training.runs.finished import read_weights

TAUGHT: dict[str, Any] = {"teacher": "runs/flow", "solver": "euler", "stride": 3}
FAMILIES: dict[str, tuple[ModuleType, Any, dict[str, Any]]] = {
    "classifier": (classifier, CNN, {}),
    "classifier-taught": (classifier, CNN, {"teacher": "models/cnn/1"}),
    "gan": (gan, GAN, {"discriminator_channels_28": 3, "class_weight": 0.1, "r2_gamma": 0.1}),
    "vae": (vae, VAE, {}),
    "flow-read": (flow, FLOW, {"coupling": 4, "reader": "models/cnn/1", "drawn": 8}),
    "flow-taught": (flow, FLOW, TAUGHT),
    "flow-taught-and-judged": (flow, FLOW, TAUGHT | {"adversary_weight": 0.1}),
}

# They act on the samples, on the epoch that is kept, or on the run, which the test makes itself.
NOT_ON_WEIGHTS = {"guidance", "judge_interval", "precision", "sample_interval", "solver", "stride", "warp"}


def another(kind: Any, value: Any) -> Any:
    """Another value for a hyperparameter; the same one if it names a folder."""
    if get_origin(kind) is Literal:
        return next(each for each in get_args(kind) if each != value)
    if kind is int:
        return value + 2
    return value / 100 or 0.25 if kind is float else value


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_hyperparameter_changes_the_weights_unless_it_is_idle(
    name: str, tmp_path: Path, workshop: Workshop
) -> None:
    family, config, changes = FAMILIES[name]
    folders = {
        each: str(workshop.runs.parent / value) for each, value in changes.items() if "/" in str(value)
    }
    config = dataclasses.replace(config, **(changes | folders | {"epochs": 1}))

    def trained(field: str, value: Any) -> dict[str, Tensor]:
        changed = dataclasses.replace(config, **{field: value})
        family.train(changed, workshop.splits, new_run(tmp_path / field, changed))
        return read_weights(tmp_path / field)

    before = trained("epochs", 1)
    same = set()
    for field, kind in get_type_hints(type(config)).items():
        value = another(kind, getattr(config, field))
        if field == "epochs" or field in NOT_ON_WEIGHTS or value == getattr(config, field):
            continue
        with suppress(TrainingError):  # it is refused
            after = trained(field, value)
            if before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before):
                same.add(field)
    assert same == idle(config).keys() - NOT_ON_WEIGHTS
