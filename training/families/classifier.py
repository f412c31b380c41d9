"""The classifiers, MLP, CNN, vision transformer and judge: hyperparameters, networks, loss, loop.

The transformer's network is in training/families/transformer.py.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from service.models.manifest import Preprocess, TensorSpec
from training.cards.card import Card, make_card
from training.datasets.known import MNIST
from training.datasets.splits import CLASSES, SIDE, Splits
from training.errors import PruningError, SourceError
from training.evaluation.classification import classification
from training.export.publish import Model, publish
from training.families import transformer
from training.families.attention import ATTENTION_FILE, save_attention
from training.families.augment import Deformation, deform
from training.families.batch_norm import fold_batch_norm
from training.families.layers import convolution, one_cycle, widths
from training.families.noise import noise_images, noisy
from training.families.source import load_graph, take_shapes
from training.families.teacher import Teacher
from training.families.tensors import to_tensors
from training.runs.averaging import averaged
from training.runs.finished import load_weights, read_history, read_hyperparameters, recorded
from training.runs.run import Precision, Run
from training.sources import check_source
from training.versions import Target, read_verified

PIXELS = SIDE * SIDE

NO_TEACHER = NO_SOURCE = "none"

# The largest accepted difference of a probability between torch and onnxruntime, which add up to 2,048
# float32 terms in another order.
PARITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed.

    precision: as in training/runs/run.py; on a CPU without bfloat16 units bf16-mixed is 8 times slower.
    warm_up: the fraction of the steps in which the learning rate rises to `learning_rate`, before it
        falls along half a cosine to 0 (one cycle; Smith and Topin 2018, Loshchilov and Hutter 2017).
    ema_decay: per step, of the averaged weights, which are validated and exported.
    rotation_degrees ... elastic_sigma: see training/families/augment.py.
    teacher: the folder of a published classifier to imitate (distillation; Hinton, Vinyals and Dean 2015), or
        `none`. It sees every deformed image that the student sees (Beyer et al. 2022).
    teacher_weight: the part of the loss that is the teacher's; the rest is the labels'.
    temperature: by which both sides' logits are divided in the teacher's part.
    weight_decay_on: "matrices" spares the vectors, which are biases and the gains of normalisations, as in
        karpathy/nanoGPT model.py. The default is that of runs older than the field.
    source: the folder of a published version of the same network, whose weights the run begins with, or
        `none`. Its batch normalisation is folded, so the run has none, and no dropout.
    pruned: the fraction of the channels or units that is taken out of the source's layers but the last two.
    noise: the largest standard deviation of the noise that is added to the training images. The teacher sees
        them without it (Xie et al. 2020).
    noise_images: how many images of noise alone are added to each batch. Their target is the same probability
        for every class (outlier exposure; Hendrycks, Mazeika and Dietterich 2019).
    """

    network: Literal["mlp", "cnn", "vit", "judge"]
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    ema_decay: float
    label_smoothing: float
    dropout: float
    precision: Precision
    rotation_degrees: float
    scale: float
    shear: float
    translation: float
    elastic_alpha: float
    elastic_sigma: float
    teacher: str = NO_TEACHER
    teacher_weight: float = 1.0
    temperature: float = 1.0
    weight_decay_on: Literal["all", "matrices"] = "all"
    source: str = NO_SOURCE
    pruned: float = 0.0
    noise: float = 0.0
    noise_images: int = 0

    @property
    def deformation(self) -> Deformation:
        """How far the training images are deformed."""
        return Deformation(
            rotation_degrees=self.rotation_degrees,
            scale=self.scale,
            shear=self.shear,
            translation=self.translation,
            elastic_alpha=self.elastic_alpha,
            elastic_sigma=self.elastic_sigma,
        )


# Deformation as in Ciresan et al. 2010 (rotation 15 degrees, scale 15 %, alpha 36, sigma 5-6),
# whose plain MLPs reached 99.5 % with it; they underfit, so there is no other regularisation.
MLP = Config(
    network="mlp",
    epochs=90,
    batch_size=256,
    learning_rate=2e-3,
    weight_decay=0.01,
    warm_up=0.1,
    ema_decay=0.999,
    label_smoothing=0.0,
    dropout=0.0,
    precision="32-true",
    rotation_degrees=15.0,
    scale=0.15,
    shear=0.15,
    translation=1.5,
    elastic_alpha=36.0,
    elastic_sigma=5.5,
)

# A convolution needs less deformation than an MLP, and has the capacity for some dropout.
CNN = Config(
    network="cnn",
    epochs=24,
    batch_size=128,
    learning_rate=3e-3,
    weight_decay=0.02,
    warm_up=0.15,
    ema_decay=0.999,
    label_smoothing=0.0,
    dropout=0.3,
    precision="32-true",
    rotation_degrees=12.0,
    scale=0.12,
    shear=0.12,
    translation=2.0,
    elastic_alpha=20.0,
    elastic_sigma=5.0,
)

# The CNN's deformation, and five convolutions. Tried before, by the accuracy on the validation images:
# three convolutions and all tokens, 12 epochs, 99.56 %; three, of which the first has the stride, the MLP's
# deformation and 36 of 49 tokens, 14 epochs, 99.54 %.
VIT = replace(
    CNN,
    network="vit",
    epochs=16,
    learning_rate=2e-3,
    weight_decay=0.05,
    dropout=0.1,
    weight_decay_on="matrices",
)

# It publishes the figures of generators and does nothing else, so it shares neither the network nor the seed
# of the classifier that watches their training. The CNN's recipe; no other values were tried.
JUDGE = replace(CNN, network="judge", epochs=10, dropout=0.1, weight_decay_on="matrices")

# Half of the published CNN's channels, mended by distillation: trained weights need fewer epochs and smaller
# steps. Half the network has no capacity to spare for dropout. Without the noise it abstained from less
# noise than the CNN, and read fewer noisy digits rightly.
CNN_PRUNED = replace(
    CNN,
    epochs=8,
    learning_rate=1e-3,
    dropout=0.0,
    weight_decay_on="matrices",
    teacher="models/cnn-ensemble/1",
    temperature=2.0,
    source="models/cnn/1",
    pruned=0.5,
    noise=0.2,
    noise_images=8,
)


class Classifier(nn.Module):
    """A body that gives features, and a linear layer on them.

    Takes images (n, 1, 28, 28) float in 0..1, gives logits (n, 10).
    """

    def __init__(self, body: nn.Sequential, features: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(features, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, (n, 10)."""
        logits: Tensor = self.head(self.body(images))
        return logits


def build(config: Config) -> Classifier:
    """The network of a configuration, with fresh weights from torch's global seed."""
    networks = {"mlp": _mlp, "cnn": _cnn, "vit": _vit, "judge": _judge}
    return networks[config.network](config.dropout)


def initial(config: Config, splits: Splits) -> Classifier:
    """The network that a run begins with: a fresh one, or what pruning leaves of the source.

    Raises SourceError, EvaluationError, RepositoryError or PruningError.
    """
    network = build(config)
    if config.source == NO_SOURCE:
        if config.pruned:
            raise PruningError(
                f"pruned is {config.pruned:g}, but source is {NO_SOURCE}: expected source=FOLDER, "
                f"a published {config.network}"
            )
        return network
    if config.network == "vit" or config.dropout:
        raise SourceError(
            f"source is {config.source}, network {config.network} and dropout {config.dropout:g}: expected "
            "mlp, cnn or judge, and dropout 0, in a run that begins with a source"
        )
    network = folded(network)
    load_graph(network, Path(config.source), splits, PARITY_TOLERANCE)
    return without_channels(network, config.pruned)


def untrained(config: Config) -> Classifier:
    """The network of a run with weights of no use: its shape follows from the configuration alone.

    Raises PruningError.
    """
    network = build(config)
    return network if config.source == NO_SOURCE else without_channels(folded(network), config.pruned)


def folded(network: Classifier) -> Classifier:
    """Fold the network's batch normalisation and remove its dropout, as the export does, in place."""
    network.body = fold_batch_norm(network.eval().body)
    return network


def published(folder: Path, splits: Splits) -> Classifier:
    """The network of a published MLP, CNN or judge, in eval mode and without gradients for its weights.

    It may be pruned. Raises SourceError, EvaluationError or RepositoryError unless the folder holds one of
    the same data.
    """
    check_source(read_verified(folder), splits)
    refused = []
    for config in (MLP, CNN, JUDGE):
        network = folded(build(config))
        try:
            take_shapes(network, folder)
            load_graph(network, folder, splits, PARITY_TOLERANCE)
        except SourceError as error:
            refused.append(str(error))
        else:
            return network.requires_grad_(False)
    raise SourceError("; ".join(dict.fromkeys(refused)))


def without_channels(network: Classifier, fraction: float) -> Classifier:
    """Take a fraction of the network's channels out, in place; see training/families/pruning.py."""
    if fraction > 0:
        try:
            from training.families.pruning import prune
        except ImportError as error:
            raise PruningError(f"pruning needs the extra `pruning`: {error}") from error
        prune(network, network.head, torch.zeros(1, 1, SIDE, SIDE), fraction)
    return network


def _mlp(dropout: float) -> Classifier:
    """784-2048-1024-10; 3.7 M parameters. Batch normalisation is folded away at export."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in ((PIXELS, 2048), (2048, 1024)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs), nn.ReLU()]
        layers += [nn.Dropout(dropout)]
    return Classifier(nn.Sequential(*layers), 1024)


def _cnn(dropout: float) -> Classifier:
    """Two stages of two 3x3 convolutions and a 5x5 one of stride 2 that replaces pooling.

    28 -> 26 -> 24 -> 12 and 12 -> 10 -> 8 -> 4 pixels per side; 0.3 M parameters. The convolutions of
    stride 1 are not padded: the border of a digit is empty, so padding would only cost time.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 32), (32, 64)):
        layers += convolution(inputs, outputs, 3) + convolution(outputs, outputs, 3)
        layers += [*convolution(outputs, outputs, 5, stride=2, padding=2), nn.Dropout(dropout)]
    layers += [nn.Flatten(), nn.Linear(64 * 4 * 4, 128, bias=False), nn.BatchNorm1d(128), nn.ReLU()]
    return Classifier(nn.Sequential(*layers, nn.Dropout(dropout)), 128)


def _judge(dropout: float) -> Classifier:
    """Pairs of 3x3 convolutions, max-pooling between them, the mean over the last map; 0.16 M parameters.

    28, 14 and 7 pixels per side with 24, 48 and 96 channels. Unlike the CNN it pads, pools, and forgets where
    a feature was.
    """
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, 24), (24, 48), (48, 96)):
        layers += [nn.MaxPool2d(2)] if inputs > 1 else []
        layers += convolution(inputs, outputs, 3, padding=1) + convolution(outputs, outputs, 3, padding=1)
    return Classifier(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout)), 96)


def _vit(dropout: float) -> Classifier:
    """Convolutions to a 7x7 map, and three blocks of self-attention on its pixels; 0.3 M parameters."""
    return Classifier(transformer.body(dropout), transformer.WIDTH)


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged weights of the best epoch."""
    device = run.fabric.device
    images, labels = to_tensors(splits.train, device)
    validation = to_tensors(splits.validation, device)
    teacher = _teacher(config, splits, device)
    model = initial(config, splits)
    # Measured on two AVX2 cores: forward and backward of 128 images through the CNN take 113 ms with
    # channels last, 140 without.
    layout = torch.contiguous_format if config.network == "mlp" else torch.channels_last
    model = model.to(device, memory_format=layout)  # type: ignore[call-overload]
    ema = averaged(model, config.ema_decay)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.learning_rate, fused=True)
    steps = config.epochs * (len(labels) // config.batch_size)
    scheduler = one_cycle(optimizer, config.learning_rate, steps, config.warm_up)
    wrapped, wrapped_optimizer = run.fabric.setup(model, optimizer)
    state = {"model": wrapped, "optimizer": wrapped_optimizer, "scheduler": scheduler, "ema": ema}
    run.restore(state)
    for epoch in run.epochs():
        wrapped.train()
        losses = []
        for step, rows in run.batches(epoch, len(labels), config.batch_size):
            generator = run.generator(epoch, step)
            batch = deform(images[rows].float() / 255, config.deformation, generator)
            targets = None if teacher is None else teacher.targets(batch, config.temperature)
            batch = with_noise(batch, config, generator)
            logits = wrapped(batch.contiguous(memory_format=layout))
            loss = loss_of(logits.float(), labels[rows], targets, config)
            wrapped_optimizer.zero_grad()
            run.fabric.backward(loss)
            run.check_loss(epoch, step, loss)
            wrapped_optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
            losses.append(loss.detach())
        validated = validate(ema.module, *validation)
        metrics = {
            "train_loss": run.mean(torch.stack(losses).mean()),
            **{f"validation_{name}": run.mean(value) for name, value in validated.items()},
            "learning_rate": float(scheduler.get_last_lr()[0]),
        }
        run.end_epoch(epoch, state, metrics, score=_score(metrics), best=ema.module)
    run.finish()


def _teacher(config: Config, splits: Splits, device: torch.device) -> Teacher | None:
    if config.teacher == NO_TEACHER:
        return None
    return Teacher(Path(config.teacher), splits, device, tf32=config.precision != "32-true")


def _score(metrics: Mapping[str, float]) -> float:
    """Higher is better. One image in 5,000 is mostly noise; the loss breaks ties in accuracy."""
    return metrics["validation_accuracy"] - metrics["validation_loss"]


def parameter_groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """The optimiser's groups: the parameters with weight decay, and those without, if there are any."""
    spared = [w for w in model.parameters() if config.weight_decay_on == "matrices" and w.ndim < 2]
    decayed = [w for w in model.parameters() if config.weight_decay_on == "all" or w.ndim >= 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": spared, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def loss_of(logits: Tensor, labels: Tensor, targets: Tensor | None, config: Config) -> Tensor:
    """Return the mean loss of a batch, a scalar.

    logits: (n + m, 10) float32, because bfloat16 has only three digits: of n images, then of m noise images.
    labels: (n,) int64. targets: (n, 10), the teacher's probabilities at `config.temperature`.
    """
    count = len(labels)
    loss = _loss_of_digits(logits[:count], labels, targets, config)
    if len(logits) == count:
        return loss
    of_noise = -logits[count:].log_softmax(1).mean(1)
    return (count * loss + of_noise.sum()) / len(logits)


def _loss_of_digits(logits: Tensor, labels: Tensor, targets: Tensor | None, config: Config) -> Tensor:
    """The labels' part of the loss and the teacher's.

    The teacher's is multiplied by the temperature's square, because its gradient shrinks with it (Hinton,
    Vinyals and Dean 2015, section 2).
    """
    loss = functional.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    if targets is None:
        return loss
    imitation = functional.cross_entropy(logits / config.temperature, targets) * config.temperature**2
    return (1 - config.teacher_weight) * loss + config.teacher_weight * imitation


def with_noise(images: Tensor, config: Config, generator: torch.Generator) -> Tensor:
    """Return the images with noise, and the noise images behind them; see `Config`."""
    if config.noise:
        images = noisy(images, config.noise, generator)
    if not config.noise_images:
        return images
    return torch.cat([images, noise_images(config.noise_images, images.shape[-1], generator)])


@torch.no_grad()
def validate(model: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """Metrics by name, in full precision; every process computes them for the whole set.

    loss: the mean negative log-likelihood. recall_0 ... recall_9: the accuracy on each class, without
    the classes that have no images.
    """
    model.eval()
    logits = torch.cat([model(part.float() / 255) for part in torch.split(images, 500)])
    correct = (logits.argmax(1) == labels).float()
    recalls = {
        f"recall_{each}": float(correct[labels == each].mean()) for each in sorted(set(labels.tolist()))
    }
    loss = float(functional.cross_entropy(logits, labels))
    return {"loss": loss, "accuracy": float(correct.mean())} | recalls


class Serving(nn.Module):
    """The graph that is served: pre-processing, network and softmax.

    Takes images (n, 28, 28) uint8, gives probabilities (n, 10), logits (n, 10) and features (n, 128
    or 1024), all float32.
    """

    outputs: tuple[TensorSpec, ...] = (
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, CLASSES)),
    )

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.body = fold_batch_norm(classifier.body)
        self.head = classifier.head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, logits, features."""
        features = self.body(images.unsqueeze(1).float() / 255)
        logits = self.head(features)
        return logits.softmax(dim=1), logits, features


class AttentionServing(Serving):
    """The served graph of the transformer, which also gives what the class token attends to.

    attention: (n, 7, 7) float32, each summing to 1; see `transformer.rollout`.
    """

    outputs = (
        *Serving.outputs,
        TensorSpec(name="attention", datatype="FP32", shape=(-1, transformer.GRID, transformer.GRID)),
    )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Probabilities, attention, logits, features."""
        stem, encoder = self.body[:-1], cast("transformer.Encoder", self.body[-1])
        features, layers = encoder.attend(stem(images.unsqueeze(1).float() / 255))
        logits = self.head(features)
        return logits.softmax(dim=1), transformer.rollout(layers), logits, features


def serving(classifier: Classifier, config: Config) -> Serving:
    """The graph that is served for a configuration's network."""
    kind = AttentionServing if config.network == "vit" else Serving
    return kind(classifier.eval()).eval()


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run's best weights as models/<name>/<version>."""
    config = config_of(read_hyperparameters(run_dir))
    classifier = untrained(config)
    load_weights(classifier, run_dir)
    network = serving(classifier, config)
    model = Model(
        name=name,
        task="classification",
        network=network,
        inputs=[TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE))],
        outputs=network.outputs,
        preprocess=preprocess_for(splits),
        keep=["logits", "features"],
        parity_inputs={"images": splits.test.images},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: classification(path, splits.test),
        card=_card(config, classifier, read_history(run_dir)),
        pictures=_pictures(config, splits.test.images),
    )
    (folder,) = publish([model], splits=splits, run_dir=run_dir, target=target)
    return folder


def _pictures(config: Config, images: NDArray[np.uint8]) -> dict[str, Callable[[Path, Path], None]]:
    """The pictures next to the model: what a transformer attends to in the first 30 images."""
    if config.network != "vit":
        return {}
    return {ATTENTION_FILE: lambda path, picture: save_attention(path, images[:30], picture)}


def preprocess_for(splits: Splits) -> Preprocess:
    """Pictures become digits only for a model of MNIST; anyone else's images are not cropped."""
    return "mnist-digit" if splits.name == MNIST.name else "resize"


def config_of(hyperparameters: Mapping[str, Any]) -> Config:
    """The configuration that a run recorded."""
    return recorded(Config, hyperparameters)


def _card(config: Config, classifier: Classifier, history: Sequence[Mapping[str, float]]) -> Card:
    best = max(history, key=_score)
    decay = f"{config.weight_decay}"
    if config.weight_decay_on == "matrices":
        decay += " (none on biases and the gains of normalisations)"
    *first, last = widths(classifier, classifier.head)
    return make_card(
        "classifier",
        config.network,
        *(["pruned"] if config.pruned else []),
        config=config,
        weight_decay=decay,
        parameters=sum(w.numel() for w in classifier.parameters()),
        widths=f"{', '.join(map(str, first))} and {last}",
        transformer=transformer,
        best=best,
        beginning=_beginning(config),
        imitation=_imitation(config),
        noise=_noise(config),
    )


def _beginning(config: Config) -> str:
    """A sentence about the source, for the card."""
    if config.source == NO_SOURCE:
        return ""
    if not config.pruned:
        return f"It began with the weights of `{config.source}`."
    return (
        f"It began with the weights of `{config.source}`, without {config.pruned:.0%} of the channels of "
        f"each layer but the last two, those with the smallest group norm; what is left is a multiple of 8."
    )


def _noise(config: Config) -> str:
    """Sentences about the noise in training, for the card."""
    told = []
    if config.noise:
        whose = "" if config.teacher == NO_TEACHER else " of the student"
        told.append(
            f"Noise was added to every image{whose}: its standard deviation is at most {config.noise:g} of "
            "the range of a pixel."
        )
    if config.noise_images:
        told.append(
            f"{config.noise_images} images of noise alone were added to each batch. Their target was the "
            "same probability for every class, so noise is an outlier of a kind that this model has seen."
        )
    return " ".join(told)


def _imitation(config: Config) -> str:
    """A sentence about the teacher, for the card."""
    if config.teacher == NO_TEACHER:
        return ""
    rest = "" if config.teacher_weight == 1 else f" (weight {config.teacher_weight:g}), and with the labels"
    return (
        f"Distilled: the loss is the cross-entropy with the probabilities that `{config.teacher}` gives the "
        f"same deformed image, at temperature {config.temperature:g}{rest}."
    )
