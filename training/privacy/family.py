"""The private classifier: a linear layer on fixed features, trained by DP-SGD, or without privacy to compare.

Tramer and Boneh 2021: at small epsilons such a model is better than a convolutional network. It has few
parameters, so that the noise is small, and no batch normalisation, which would mix the images of a batch.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from service.models.manifest import TensorSpec
from training.cards.card import Card, make_card
from training.datasets.splits import SIDE, Splits
from training.errors import PrivacyError
from training.evaluation.classification import classification
from training.export.publish import Model, publish
from training.families.classifier import PARITY_TOLERANCE, Classifier, Serving, preprocess_for, validate
from training.families.tensors import to_tensors
from training.privacy.guarantee import Guarantee, check_delta, read_guarantee, write_guarantee
from training.privacy.scattering import FEATURES, Scattering
from training.runs.averaging import averaged
from training.runs.finished import load_weights, read_history, read_hyperparameters, recorded
from training.runs.run import Precision, Run, Stateful
from training.versions import Target

if TYPE_CHECKING:
    from training.privacy.sgd import Sgd


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed and, if `noise` is secret, the noise.

    privacy: "none" trains the same network in the same way without clipping and noise.
    epsilon, delta: the guarantee at the end of the last epoch, for one image added or removed.
    accountant: see training/privacy/accounting.py.
    clip_norm: the bound on the norm of each image's gradient.
    noise: "secret" draws samples and noise from a seed of the operating system that nobody records; "seeded"
        draws them from the run's seed, for tests: whoever knows the seed can subtract the noise.
    batch_size: the expected size of a Poisson sample.
    learning_rate: of gradients in multiples of `clip_norm`.
    ema_decay: per step, of the averaged weights, which are validated and exported. An average of private
        weights is private (De et al. 2022).
    """

    privacy: Literal["dp-sgd", "none"]
    epsilon: float
    delta: float
    accountant: Literal["prv", "rdp"]
    clip_norm: float
    noise: Literal["secret", "seeded"]
    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    ema_decay: float
    precision: Precision = "32-true"


# Chosen by the accuracy on the validation images in a coarse search: nineteen settings at epsilon 1, 8 and
# without privacy, one seed each, which tells no difference of a tenth of a point.
CONFIG = Config(
    privacy="dp-sgd",
    epsilon=8.0,
    delta=1e-5,
    accountant="prv",
    clip_norm=1.0,
    noise="secret",
    epochs=8,
    batch_size=1024,
    learning_rate=0.3,
    momentum=0.9,
    ema_decay=0.99,
)


def build() -> Classifier:
    """First-order scattering, which has no parameters, and a linear layer with 8,340 on its 833 features."""
    return Classifier(nn.Sequential(Scattering()), FEATURES)


@torch.no_grad()
def features_of(classifier: Classifier, images: Tensor) -> Tensor:
    """The features of images, (n, 833) float32; they depend on no other image.

    images: (n, 1, 28, 28) uint8.
    """
    return torch.cat([classifier.body(part.float() / 255) for part in torch.split(images, 500)])


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged weights of the best epoch.

    With privacy, guarantee.json holds what the steps cost, and no loss of training images is logged, because
    it would not be private. The choice of the best epoch sees only validation images, so it costs nothing.
    Raises PrivacyError if the run cannot be private, or without the extra `privacy`.
    """
    device = run.fabric.device
    images, labels = to_tensors(splits.train, device)
    validation = to_tensors(splits.validation, device)
    _check(config, run, len(labels))
    classifier = build().to(device)
    ema = averaged(classifier, config.ema_decay)
    generator = torch.Generator(device)
    sgd = make_sgd(config, classifier.head, len(labels), generator)
    features = features_of(classifier, images)
    state: dict[str, Stateful] = {"model": classifier, "optimizer": sgd, "ema": ema}
    run.restore(state)
    for epoch in run.epochs():
        losses = []
        for step in run.steps(epoch, steps_per_epoch(config, len(labels))):
            generator.manual_seed(seed_of(config, run.key(epoch, step)))
            losses.append(sgd.step(features, labels))
            run.check_loss(epoch, step, losses[-1])
            ema.update_parameters(classifier)
        validated = validate(ema.module, *validation)
        metrics = {f"validation_{name}": value for name, value in validated.items()}
        if config.privacy == "none":
            metrics["train_loss"] = float(torch.stack(losses).mean())
        else:
            guarantee = guarantee_of(config, sgd, len(labels))
            write_guarantee(run.folder, guarantee)
            metrics["epsilon"] = guarantee.epsilon
        run.end_epoch(epoch, state, metrics, score=_score(metrics), best=ema.module)
    run.finish()


def _score(metrics: Mapping[str, float]) -> float:
    return metrics["validation_accuracy"] - metrics["validation_loss"]


def _check(config: Config, run: Run, images: int) -> None:
    if run.fabric.world_size > 1:
        raise PrivacyError(f"{run.fabric.world_size} processes, expected one: each would add its own noise")
    if config.precision != "32-true":
        raise PrivacyError(f"precision is {config.precision}, expected 32-true: norms are bounded in float32")
    if config.batch_size > images:
        raise PrivacyError(f"batch size {config.batch_size} does not fit {images} images")


def steps_per_epoch(config: Config, images: int) -> int:
    """The number of steps in which each image is drawn once on average."""
    return images // config.batch_size


def seed_of(config: Config, key: int) -> int:
    """The seed of a step's sample and noise: `key`, or a secret of the operating system.

    Each step has its own, because torch's generator for CPUs uses only 32 bits of a seed: those of one seed
    for all steps could be tried out.
    """
    return key if config.noise == "seeded" else secrets.randbits(63)


def make_sgd(config: Config, model: nn.Module, images: int, generator: torch.Generator) -> "Sgd":
    """SGD as the configuration asks for it. Raises PrivacyError without the extra `privacy`."""
    try:
        from training.privacy.accounting import noise_for
        from training.privacy.sgd import PrivateSgd, Sgd
    except ImportError as error:
        raise PrivacyError(f"private training needs the extra `privacy`: {error}") from error
    common: dict[str, Any] = {"images": images, "generator": generator}
    common |= {name: getattr(config, name) for name in ("batch_size", "learning_rate", "momentum")}
    if config.privacy == "none":
        return Sgd(model, **common)
    check_delta(config.delta, images)
    noise = noise_for(
        config.epsilon,
        config.delta,
        config.batch_size / images,
        config.epochs * steps_per_epoch(config, images),
        config.accountant,
    )
    return PrivateSgd(model, noise_multiplier=noise, clip_norm=config.clip_norm, **common)


def guarantee_of(config: Config, sgd: "Sgd", images: int) -> Guarantee:
    """What the private steps made so far guarantee."""
    from training.privacy.accounting import epsilon_of
    from training.privacy.sgd import PrivateSgd

    assert isinstance(sgd, PrivateSgd)
    by_rdp = epsilon_of(sgd.history, config.delta, "rdp")
    by_prv = config.accountant == "prv"
    return Guarantee(
        epsilon=epsilon_of(sgd.history, config.delta, "prv") if by_prv else by_rdp,
        delta=config.delta,
        accountant=config.accountant,
        epsilon_rdp=by_rdp,
        steps=sum(count for _, _, count in sgd.history),
        images=images,
        sampling_rate=sgd.sampling_rate,
        noise_multiplier=sgd.history[0][0],
        clip_norm=config.clip_norm,
        noise=config.noise,
    )


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run's best weights as models/<name>/<version>, with its guarantee."""
    config = recorded(Config, read_hyperparameters(run_dir))
    classifier = build()
    load_weights(classifier, run_dir)
    guarantee = None if config.privacy == "none" else read_guarantee(run_dir)
    facts = {} if guarantee is None else {"privacy": str(guarantee)}
    model = Model(
        name=name,
        task="classification",
        network=Serving(classifier).eval(),
        inputs=[TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE))],
        outputs=Serving.outputs,
        preprocess=preprocess_for(splits),
        keep=["logits", "features"],
        parity_inputs={"images": splits.test.images},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: classification(path, splits.test) | facts,
        card=_card(config, guarantee, sum(w.numel() for w in classifier.parameters()), read_history(run_dir)),
    )
    (folder,) = publish([model], splits=splits, run_dir=run_dir, target=target)
    return folder


def _card(
    config: Config, guarantee: Guarantee | None, parameters: int, history: Sequence[Mapping[str, float]]
) -> Card:
    template = "private-none" if guarantee is None else "private-dp"
    best = max(history, key=_score)
    return make_card(
        "private", template, config=config, guarantee=guarantee, parameters=parameters, best=best
    )
