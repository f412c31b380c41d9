"""The class-conditional DCGAN: hyperparameters, networks, losses, loop, from top to bottom.

The exported generator is an exponential moving average of the weights, with frozen batch normalisation,
so an image depends only on its own z and label, not on the rest of its batch.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from service.content.latents import draw_latents
from service.models.manifest import MANIFEST_FILE, TensorSpec
from training.cards.card import Card, make_card
from training.datasets.splits import CLASSES, SIDE, Splits
from training.evaluation.epochs import JUDGE, epoch_quality
from training.evaluation.generation import draw, generation
from training.evaluation.judge import latest_judge
from training.export.publish import Model, publish
from training.families.adversary import Adversary, Discriminator, Pairing, Rules, initialise, veiled
from training.families.batch_norm import fold_batch_norm
from training.families.grids import grid_labels, save_grid
from training.families.samples import chosen_epoch, draw_samples
from training.families.source import take_earlier, take_weights
from training.families.tensors import to_tensors
from training.runs.averaging import averaged
from training.runs.finished import (
    check_data,
    check_model,
    load_weights,
    read_history,
    read_hyperparameters,
    recorded,
)
from training.runs.graphs import GraphedStep, make_capturable, set_rate
from training.runs.run import Precision, Run
from training.sources import GENERATORS, check_source
from training.versions import Target, read_verified

SAMPLES_FILE = "samples.png"
SAMPLES_FOLDER = "samples"

# The largest accepted difference of a pixel between torch and onnxruntime, in grey levels: float32 sums
# are taken in another order, so a value half-way between two levels may be rounded either way.
PARITY_TOLERANCE = 1.0
PARITY_SEED = 0

NO_SOURCE = "none"

WHITE = 255


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed.

    latent: the size of z ~ N(0, 1). embedding: the size of a digit's vector, which is appended to z.
    hidden: the width between z and the first feature map.
    channels_7 ... channels_28: channels of the generator's maps of 7x7, 14x14 and 28x28 pixels.
    discriminator_channels: channels of the discriminator's 14x14 map; the 7x7 map has twice as many.
    discriminator_channels_28: channels of its first map, of 28x28 pixels; then there is a second
        convolution at 14x14 too. With 0, as in older runs, there is neither.
    features: the size of the discriminator's vector on which the digit is projected.
    learning_rate: falls along a line to learning_rate_end times its value in the last step.
    rate_ratio: the discriminator's learning rate as a multiple of this (Heusel et al. 2017, TTUR).
    warm_up: the fraction of the steps in which only the discriminator learns.
    beta1, beta2: of Adam.
    pairing: "none" judges each image by itself; "relativistic" judges a real and a generated image of the
        same digit against each other (Jolicoeur-Martineau 2019).
    r1_gamma: the weight of R1, as gamma / 2 * penalty. r2_gamma: of the same penalty at generated images.
    r1_interval: the number of steps between two with R1 and R2, and the factor by which they are multiplied
        then.
    ema_decay: per step, of the averaged weights.
    sample_interval: the number of steps between two grids of samples; it changes nothing else.
    judge: the folder of the published classifier that judges the samples of each epoch, or `none`. It only
        chooses the epoch.
    judge_interval: the number of epochs between two that are judged. The last one always is.
    class_weight: the weight of the classes' cross-entropy in both losses (Odena et al. 2017, AC-GAN). The
        discriminator learns the classes from real images only, so it cannot agree with the generator on
        wrong ones. With 0 it has no output for them.
    class_ratio: the weight in the discriminator's loss as a multiple of this.
    noise: the standard deviation of the noise that is added to all images that the discriminator sees. Pixels
        are in -1..1.
    contrast: by which the generator's tanh is multiplied. What is then outside -1..1 is clipped, so that
        black and white, the levels of most training pixels, need no saturated tanh.
    source: the folder of an earlier run or of a published version, whose weights this run begins with, or
        `none`. Their batch normalisation is folded, so this run has none.
    kept: the epoch whose averaged weights are exported: the one whose samples are closest to the validation
        images, or the last one. Between good generators that distance tells little; see docs/models.md.
    """

    epochs: int
    batch_size: int
    latent: int
    embedding: int
    hidden: int
    channels_7: int
    channels_14: int
    channels_28: int
    discriminator_channels: int
    features: int
    learning_rate: float
    beta1: float
    beta2: float
    r1_gamma: float
    r1_interval: int
    ema_decay: float
    sample_interval: int
    precision: Precision
    judge: str = JUDGE
    discriminator_channels_28: int = 0
    learning_rate_end: float = 1.0
    pairing: Pairing = "none"
    r2_gamma: float = 0.0
    judge_interval: int = 1
    class_weight: float = 0.0
    class_ratio: float = 1.0
    rate_ratio: float = 1.0
    warm_up: float = 0.0
    noise: float = 0.0
    contrast: float = 1.0
    source: str = NO_SOURCE
    kept: Literal["closest", "last"] = "closest"


# z, Adam, the batch and the initialisation are those of Radford et al. 2016 (DCGAN). Lazy
# regularisation every 16 steps is Karras et al. 2020 (StyleGAN2): a step with R1 costs 1.7 plain ones. Their
# correction of Adam (rate and betas by 16/17) is for steps of R1 alone beside the others; here R1 is added to
# a step's loss, so there are no more steps, and nothing is corrected.
# r1_gamma: after 2,000 steps the Frechet distance to the validation images was 23 with 0.1 (the
# discriminator wins), 3.4 with 1 and 3.4 with 5; after 3,000, 1.7 with 1 and 1.9 with 5.
CONFIG = Config(
    epochs=8,
    batch_size=64,
    latent=100,
    embedding=32,
    hidden=256,
    channels_7=64,
    channels_14=64,
    channels_28=16,
    discriminator_channels=64,
    features=256,
    learning_rate=2e-4,
    beta1=0.5,
    beta2=0.999,
    r1_gamma=1.0,
    r1_interval=16,
    ema_decay=0.999,
    sample_interval=500,
    precision="32-true",
)


class Generator(nn.Module):
    """From z (n, latent) float and labels (n,) int64 to images (n, 1, 28, 28) in -1..1.

    The printed text's generator never upsamples; this one goes 7 -> 14 -> 28. The transposed
    convolutions are 4x4 with stride 2: the stride divides the size, so every pixel is covered equally
    often, without a checkerboard (Odena et al. 2016).

    A label outside 0..9 is not an error in the graph: it has no embedding, and gives an image of no
    particular digit. An index out of range would fail the whole batch.
    """

    labels: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        first, second, third = config.channels_7, config.channels_14, config.channels_28
        self.embedding = nn.Parameter(torch.randn(CLASSES, config.embedding))
        self.register_buffer("labels", torch.arange(CLASSES), persistent=False)
        self.dense = nn.Sequential(
            nn.Linear(config.latent + config.embedding, config.hidden, bias=False),
            nn.BatchNorm1d(config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, first * 7 * 7, bias=False),
            nn.Unflatten(1, (first, 7, 7)),
        )
        self.body = nn.Sequential(
            *(nn.BatchNorm2d(first), nn.ReLU()),
            nn.ConvTranspose2d(first, second, 4, stride=2, padding=1, bias=False),
            *(nn.BatchNorm2d(second), nn.ReLU()),
            nn.ConvTranspose2d(second, third, 4, stride=2, padding=1, bias=False),
            *(nn.BatchNorm2d(third), nn.ReLU()),
            nn.Conv2d(third, 1, 3, padding=1),
            nn.Tanh(),
        )
        self.apply(initialise)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """Images, (n, 1, 28, 28), -1..1."""
        one_hot = (labels.unsqueeze(1) == self.labels).to(z.dtype)
        images: Tensor = self.body(self.dense(torch.cat([z, one_hot @ self.embedding], 1)))
        return images


def initial(config: Config, splits: Splits) -> Generator:
    """The generator that a run begins with: a fresh one, or that of the source.

    Raises SourceError, ExportError or RepositoryError unless the source is a `gan` of the same data and
    network.
    """
    generator = untrained(config)
    if config.source != NO_SOURCE:
        folder = Path(config.source)
        if (folder / MANIFEST_FILE).is_file():
            check_source(read_verified(folder), splits, GENERATORS)
            take_weights(Drawing(generator, config.contrast), folder)
        else:
            check_model(folder, "gan")
            check_data(folder, splits)
            weights = finished(folder).state_dict()
            take_earlier(generator, weights, folder, "latent, embedding, hidden and channels")
    return generator.train()


def untrained(config: Config) -> Generator:
    """A run's generator, with weights of no use. With a source it has no batch normalisation."""
    generator = Generator(config)
    return generator if config.source == NO_SOURCE else folded(generator)


def finished(run_dir: Path) -> Generator:
    """The averaged generator of a run, without batch normalisation. Raises ExportError."""
    generator = untrained(config_of(read_hyperparameters(run_dir)))
    load_weights(generator, run_dir)
    return folded(generator)


class Adversaries:
    """The two networks with their optimisers, set up on the run's devices, and one step of each.

    generator: the network that the run begins with.
    """

    def __init__(self, config: Config, run: Run, generator: Generator) -> None:
        self._config = config
        self._fabric = run.fabric
        self._plain_generator = generator
        discriminator = Discriminator(
            config.discriminator_channels,
            config.discriminator_channels_28,
            config.features,
            with_classes=config.class_weight > 0,
        )
        self.ema = averaged(self._plain_generator.to(run.fabric.device), config.ema_decay)
        self._generator, self._generator_optimizer = run.fabric.setup(
            self._plain_generator, self._optimizer(self._plain_generator)
        )
        rules = Rules(
            config.pairing,
            config.class_ratio * config.class_weight,
            config.r1_gamma,
            config.r2_gamma,
            config.r1_interval,
        )
        self.adversary = Adversary(discriminator, self._optimizer(discriminator), rules, run.fabric)
        self.state = {
            "generator": self._generator,
            "generator_optimizer": self._generator_optimizer,
            "ema": self.ema,
        } | self.adversary.state

    def make_capturable(self) -> None:
        """Prepare `step` for a CUDA graph, once a checkpoint is loaded."""
        for optimizer in (self._generator_optimizer, self.adversary.optimizer):
            make_capturable(optimizer, self._fabric.device)

    def set_rate(self, progress: float) -> float:
        """Set both learning rates for a step at this fraction of the run, and return the generator's."""
        config = self._config
        rate = config.learning_rate * (1 + progress * (config.learning_rate_end - 1))
        set_rate(self.adversary.optimizer, config.rate_ratio * rate)
        rate = rate if progress >= config.warm_up else 0.0
        set_rate(self._generator_optimizer, rate)
        return rate

    def train_generator(self, real: Tensor, fake: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """A step on images (n, 1, 28, 28) that the generator drew, and real ones of the same labels (n,)."""
        loss, classes = self.adversary.losses(real, fake, labels)
        self._generator_optimizer.zero_grad()
        self._fabric.backward(loss + self._config.class_weight * classes)
        self._generator_optimizer.step()
        self.ema.update_parameters(self._plain_generator)
        return {"generator_loss": loss.detach()}

    def step(
        self, real: Tensor, labels: Tensor, z: Tensor, noise: Tensor | None = None, *, with_r1: bool
    ) -> dict[str, Tensor]:
        """One step of each network on the same generated images, which have the labels of the real ones.

        noise: (2, n, 1, 28, 28), for the real and for the generated images.
        """
        fake = (self._config.contrast * self._generator(z, labels)).clamp(-1, 1)
        if noise is not None:
            real, fake = veiled(real, noise[0]), veiled(fake, noise[1])
        metrics = self.adversary.train(real, fake, labels, with_r1)
        return metrics | self.train_generator(real, fake, labels)

    def _optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(
            network.parameters(),
            lr=self._config.learning_rate,
            betas=(self._config.beta1, self._config.beta2),
            fused=True,
        )


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged generator of the best epoch.

    That is the one whose samples have the smallest Frechet distance to the validation images, because the
    losses of a GAN do not measure its samples; without a judge, or as `kept` says, it is the last. Samples of
    fixed z are drawn to samples.png after every epoch, and to the folder `samples` every `sample_interval`
    steps of the whole run, for a person to look at.
    """
    device = run.fabric.device
    images, labels = to_tensors(splits.train, device)
    quality = epoch_quality(config.judge, splits)
    adversaries = Adversaries(config, run, initial(config, splits))
    run.restore(adversaries.state)
    if run.cuda_graphs:
        adversaries.make_capturable()
    plain, regularised = graphed_steps(adversaries, images, labels, enabled=run.cuda_graphs)
    steps_per_epoch = len(labels) // config.batch_size
    for epoch in run.epochs():
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for step, rows in run.batches(epoch, len(labels), config.batch_size):
            random = run.generator(epoch, step)
            inputs = [rows, torch.randn(len(rows), config.latent, generator=random, device=device)]
            if config.noise:
                shape = (2, len(rows), 1, SIDE, SIDE)
                inputs.append(config.noise * torch.randn(shape, generator=random, device=device))
            before = epoch * steps_per_epoch + step
            rate = adversaries.set_rate(before / (config.epochs * steps_per_epoch))
            metrics = (regularised if step % config.r1_interval == 0 else plain)(*inputs)
            run.check_loss(epoch, step, torch.stack(list(metrics.values())))
            for name, value in metrics.items():
                sums[name] = sums.get(name, torch.zeros((), device=device)) + value
                counts[name] = counts.get(name, 0) + 1
            if run.leads and (before + 1) % config.sample_interval == 0:
                save_samples(adversaries.ema.module, config, step_file(run.folder, before + 1))
        means = {name: run.mean(total / counts[name]) for name, total in sums.items()}
        means["learning_rate"] = rate
        score = float(epoch) if quality is None or config.kept == "last" else None
        if quality is not None and judged_after(epoch, config):
            drawing = Drawing(adversaries.ema.module, config.contrast)
            drawn = draw_samples(drawing, quality.labels, config.latent, device)
            means |= {name: run.mean(value) for name, value in quality(drawn).items()}
            if config.kept == "closest":
                score = -means["validation_distance"]
        run.end_epoch(epoch, adversaries.state, means, score=score, best=adversaries.ema.module)
        if run.leads:
            save_samples(adversaries.ema.module, config, run.folder / SAMPLES_FILE)
    run.finish()


def graphed_steps(
    adversaries: Adversaries, images: Tensor, labels: Tensor, *, enabled: bool
) -> tuple[GraphedStep, GraphedStep]:
    """A step without R1 and one with it, to metrics.

    Each is from rows of the images (n,) int64, z (n, latent) and, if the discriminator sees any, noise (2, n,
    1, 28, 28).
    """

    def step(rows: Tensor, *drawn: Tensor, with_r1: bool) -> dict[str, Tensor]:
        return adversaries.step(images[rows].float() / 127.5 - 1, labels[rows], *drawn, with_r1=with_r1)

    plain = GraphedStep(partial(step, with_r1=False), enabled=enabled)
    return plain, GraphedStep(partial(step, with_r1=True), enabled=enabled)


def judged_after(epoch: int, config: Config) -> bool:
    """Whether the samples of this epoch, counted from 0, are judged."""
    return (epoch + 1) % config.judge_interval == 0 or epoch + 1 == config.epochs


def step_file(folder: Path, step: int) -> Path:
    """The file of the samples that a run draws after this many steps."""
    return folder / SAMPLES_FOLDER / f"step-{step:06d}.png"


class Drawing(nn.Module):
    """The graph that is exported: a frozen generator, and its images as bytes, with this contrast."""

    def __init__(self, generator: nn.Module, contrast: float) -> None:
        super().__init__()
        self.generator = generator.eval()
        self.scale = WHITE / 2 * contrast

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """From z (n, latent) float32 and label (n,) int64 to images (n, 28, 28) uint8; ink is 255."""
        levels: Tensor = self.scale * self.generator(z, label).squeeze(1) + WHITE / 2
        return levels.round().clamp(0, WHITE).to(torch.uint8)


def folded(generator: Generator) -> Generator:
    """The same function in eval mode, with batch normalisation merged into the layers before it.

    The first normalisation of the body belongs to the last layer of `dense`. With it in the graph, two of
    7.8 million pixels differed by three grey levels in float16; without, none does by more than two.
    """
    generator = copy.deepcopy(generator).eval()
    generator.dense = fold_batch_norm(nn.Sequential(*generator.dense, *generator.body))
    generator.body = nn.Sequential()
    return generator


@torch.no_grad()
def save_samples(generator: nn.Module, config: Config, path: Path) -> None:
    """Draw ten samples of each digit, from the same z every time."""
    labels = torch.from_numpy(grid_labels())
    z = torch.randn(len(labels), config.latent, generator=torch.Generator().manual_seed(0))
    device = next(generator.parameters()).device
    path.parent.mkdir(parents=True, exist_ok=True)
    save_grid(Drawing(generator, config.contrast)(z.to(device), labels.to(device)).cpu().numpy(), path)


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run's averaged generator as models/<name>/<version>.

    Raises EvaluationError if models_dir holds no CNN to judge its samples.
    """
    judge = latest_judge(target.models_dir, splits)
    config = config_of(read_hyperparameters(run_dir))
    generator = untrained(config)
    load_weights(generator, run_dir)
    history, labels = read_history(run_dir), splits.test.labels
    model = Model(
        name=name,
        task="generation",
        network=Drawing(folded(generator), config.contrast).eval(),
        inputs=[
            TensorSpec(name="z", datatype="FP32", shape=(-1, config.latent)),
            TensorSpec(name="label", datatype="INT64", shape=(-1,)),
        ],
        outputs=[TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE))],
        parity_inputs={"z": draw_latents(PARITY_SEED, len(labels), config.latent), "label": labels},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: generation(path, splits, judge),
        card=_card(config, generator, history),
        pictures={SAMPLES_FILE: lambda path, picture: save_grid(draw(path, grid_labels()), picture)},
    )
    (folder,) = publish([model], splits=splits, run_dir=run_dir, target=target)
    return folder


def _card(config: Config, generator: nn.Module, history: Sequence[Mapping[str, float]]) -> Card:
    return make_card(
        "gan",
        config=config,
        tanh="tanh" if config.contrast == 1 else f"tanh, times {config.contrast:g} and clipped",
        beginning=beginning_words(config),
        loss=loss_words(config),
        rate=rate_words(config),
        discriminator=discriminator_words(config),
        parameters=sum(weights.numel() for weights in generator.parameters()),
        epochs=len(history),
        chosen="the last epoch" if config.kept == "last" else chosen_epoch(history),
    )


def loss_words(config: Config) -> str:
    """The loss and its penalties, for the card."""
    loss = "Relativistic loss" if config.pairing == "relativistic" else "Non-saturating loss"
    if config.class_weight:
        loss += f" and the classes' cross-entropy (weight {config.class_weight:g})"
    names, gammas = ("R1", f"{config.r1_gamma:g}")
    if config.r2_gamma:
        names, gammas = ("R1 and R2", f"{gammas} and {config.r2_gamma:g}")
    return f"{loss} with {names} (gamma {gammas}, every {config.r1_interval} steps)"


def rate_words(config: Config) -> str:
    """The learning rate and its schedule, for the card."""
    rate, end = f"{config.learning_rate:g}", config.learning_rate_end
    return rate if end == 1 else f"{rate}, falling along a line to {end:g} times that"


def beginning_words(config: Config) -> str:
    """A sentence about the source, for the card."""
    if config.source == NO_SOURCE:
        return ""
    return f"The run began with the weights of `{config.source}`, whose batch normalisation is folded. "


def discriminator_words(config: Config) -> str:
    """Sentences about what the discriminator has of its own, for the card."""
    words = ""
    if config.rate_ratio != 1:
        words += f"The discriminator's learning rate is {config.rate_ratio:g} times the generator's. "
    if config.class_ratio != 1:
        words += (
            f"The discriminator's weight of the classes is {config.class_ratio:g} times the generator's. "
        )
    if config.warm_up:
        words += f"The discriminator learns alone in the first {100 * config.warm_up:g} % of the steps. "
    if config.noise:
        words += f"The discriminator sees all images under noise of {config.noise:g}. "
    return words


def config_of(hyperparameters: Mapping[str, Any]) -> Config:
    """The configuration that a run recorded."""
    return recorded(Config, hyperparameters)
