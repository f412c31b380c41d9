"""The models that are attacked: trained on halves of one pool, and what they say about each image.

Each model's answer is a file of its own, so that an interrupted study goes on where it stopped.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from training.datasets.splits import Dataset, spread
from training.errors import PrivacyError
from training.families.tensors import to_tensors
from training.files import write_atomically
from training.privacy.attack import Booleans, Floats, confidences, memberships
from training.privacy.family import Config, build, features_of, make_sgd, seed_of, steps_per_epoch
from training.privacy.plan import Level, Plan
from training.runs.averaging import averaged
from training.terminal import notice

# Of the halves of the pool, which are the same for every level.
MEMBERSHIP_SEED = 0

FEWEST_MODELS = 4


def check_attack(plan: Plan, images: int) -> None:
    """Raise PrivacyError if the plan's attacks cannot be made on so many training images."""
    if plan.models < FEWEST_MODELS or plan.models % 2:
        raise PrivacyError(
            f"{plan.models} attacked models, expected an even number of at least {FEWEST_MODELS}"
        )
    if plan.pool > images:
        raise PrivacyError(f"a pool of {plan.pool} images does not fit {images} training images")
    if plan.pool % 2:
        raise PrivacyError(f"a pool of {plan.pool} images, expected an even number")
    if plan.attacked_batch_size > plan.pool // 2:
        raise PrivacyError(
            f"batch size {plan.attacked_batch_size} does not fit models that are trained on half of "
            f"{plan.pool} images"
        )


def plan_members(plan: Plan) -> Booleans:
    """Which image of the pool is a training image of which model, (models, pool)."""
    return memberships(plan.models, plan.pool, np.random.default_rng(MEMBERSHIP_SEED))


def observe(plan: Plan, level: Level, train: Dataset, device: torch.device) -> tuple[Floats, Booleans]:
    """The confidences of a level's models in the images of the pool, and whether these were right.

    Both (models, pool). Trains the models that have not been trained yet.
    """
    rows = spread(len(train), plan.pool)
    pool, members = Dataset(train.images[rows], train.labels[rows]), plan_members(plan)
    images, labels = to_tensors(pool, device)
    features = features_of(build().to(device), images)
    plan.attack_folder(level).mkdir(parents=True, exist_ok=True)
    seen = []
    for number in range(plan.models):
        path = plan.attack_folder(level) / f"{number:02d}.npy"
        if not path.exists():
            mine = torch.from_numpy(members[number]).to(device)
            logits = _train(plan.attacked(level), features, labels, mine, number)
            _write(path, np.stack([confidences(logits, pool.labels), logits.argmax(1) == pool.labels]))
            notice(f"{level}: attacked model {number + 1} of {plan.models} is trained")
        seen.append(np.load(path))
    stacked = np.stack(seen)
    return stacked[:, 0], stacked[:, 1] == 1


def _train(
    config: Config, features: torch.Tensor, labels: torch.Tensor, members: torch.Tensor, number: int
) -> Floats:
    """Train on the members, and return the logits of all images, (images, 10)."""
    torch.manual_seed(number)
    head = build().head.to(features.device)
    ema = averaged(head, config.ema_decay)
    generator = torch.Generator(features.device)
    mine, labels_of_mine = features[members], labels[members]
    sgd = make_sgd(config, head, len(mine), generator)
    keys = np.random.default_rng(number).integers(
        2**31, size=config.epochs * steps_per_epoch(config, len(mine))
    )
    for key in keys.tolist():
        generator.manual_seed(seed_of(config, key))
        sgd.step(mine, labels_of_mine)
        ema.update_parameters(head)
    with torch.no_grad():
        logits: Floats = ema.module(features).double().cpu().numpy()
    return logits


def _write(path: Path, array: Floats) -> None:
    buffer = BytesIO()
    np.save(buffer, array)
    write_atomically(path, buffer.getvalue())
