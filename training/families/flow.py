"""The class-conditional flow: hyperparameters, network, loss, loop, from top to bottom.

A flow carries noise to images along a velocity field: x' = v(x, t, label), from x(0) = z ~ N(0, 1) to an
image x(1). The field is trained by conditional flow matching (Lipman et al. 2023) on the straight paths of
rectified flow (Liu et al. 2023): at x_t = (1 - t) z + t x the network regresses x - z. The exported graph
holds all steps of the solver, so it is used like any other generator: z and label in, images out.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.content.latents import draw_latents
from service.models.manifest import MANIFEST_FILE, TensorSpec
from training.cards.card import Card, make_card
from training.datasets.splits import CLASSES, SIDE, Splits
from training.errors import SourceError
from training.evaluation.epochs import JUDGE, epoch_quality
from training.evaluation.generation import draw, generation
from training.evaluation.judge import latest_judge
from training.export.publish import Model, publish
from training.families.adversary import Adversary, Discriminator, Rules, veiled
from training.families.classifier import Classifier, published
from training.families.coupling import coupled
from training.families.grids import grid_labels, save_grid
from training.families.layers import one_cycle
from training.families.samples import chosen_epoch, draw_samples
from training.families.solver import Solver, integrate, merged_steps_loss, step_times
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
from training.runs.run import CONFIG_FILE, Precision, Run
from training.versions import Target, read_verified

SAMPLES_FILE = "samples.png"

NO_SOURCE = NO_READER = NO_TEACHER = "none"

# The size of z: a value for each pixel.
LATENT = SIDE * SIDE

# The channels of a group of the normalisation, if they divide so.
GROUP_CHANNELS = 8

# Frequencies of t, in radians per unit of time: the slowest turns once in the whole flow's time, the fastest
# tells two of 64 times apart.
FREQUENCIES = 16
SLOWEST, FASTEST = 1.0, 64.0

INPUTS = (
    TensorSpec(name="z", datatype="FP32", shape=(-1, LATENT)),
    TensorSpec(name="label", datatype="INT64", shape=(-1,)),
)
OUTPUTS = (TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE)),)

# As of the GAN: the largest accepted difference of a pixel between torch and onnxruntime, in grey levels.
PARITY_TOLERANCE = 1.0
PARITY_SEED = 0
# A sample costs several passes of the network: parity is checked on fewer rows than there are images.
PARITY_ROWS = 2000


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed.

    steps: from noise to image.
    solver: how each of them follows from the velocities, see `training.families.solver`.
    channels_14, channels_7: channels of the U-Net's maps of 14x14 and 7x7 pixels.
    blocks: residual blocks on 7x7 pixels; there is one before and one after them on 14x14.
    embedding: the size of the vector that holds t and the label.
    warm_up: the fraction of the steps in which the learning rate rises to `learning_rate`, before it falls
        to zero on a cosine.
    ema_decay: per step, of the averaged weights.
    coupling: how many images of a class exchange their noise before an epoch, to shorten the paths; 1: none.
    warp: how much smaller the first steps are than the last ones, see `step_times`; 1: all are equal.
    guidance: how far each step is pushed from what all classes have towards what its own has, see `Guided`;
        0: not at all; below 0: the other way, for samples that vary more and are less surely of their class.
    judge: the folder of the published classifier that judges the samples of each epoch, or `none`. It only
        chooses the epoch.
    source: the folder of an earlier run or of a published version, whose weights this run begins with, or
        `none`.
    reader: the folder of a published classifier that reads what the run draws, see `misread`, or `none`. It
        is not the judge.
    reader_weight: the weight of its loss, next to that of the flow.
    drawn: how many images are drawn for it at each step.
    clip_norm: the largest norm of the gradients of a step, in a run with a reader or a teacher.
    teacher: the folder of an earlier run or of a published version, whose steps this run learns to merge, or
        `none`. Without a source the run begins with its weights.
    stride: how many of the steps one pass of the network takes.
    adversary_weight: the weight of a discriminator's loss, next to that of the teacher. The discriminator
        learns along, to tell the training images from those that the run draws. With 0 there is none.
    adversary_class_weight: the weight of its cross-entropy for the classes, within its loss.
    adversary_rate: its learning rate.
    """

    epochs: int
    batch_size: int
    steps: int
    channels_14: int
    channels_7: int
    blocks: int
    embedding: int
    learning_rate: float
    weight_decay: float
    warm_up: float
    ema_decay: float
    coupling: int
    precision: Precision
    warp: float = 1.5
    guidance: float = 0.25
    judge: str = JUDGE
    source: str = NO_SOURCE
    reader: str = NO_READER
    reader_weight: float = 2.0
    drawn: int = 64
    clip_norm: float = 0.3
    teacher: str = NO_TEACHER
    stride: int = 1
    solver: Solver = "euler"
    adversary_weight: float = 0.0
    adversary_class_weight: float = 0.0
    adversary_rate: float = 3e-4


# Samples of 5,000 validation labels, epoch 20, Frechet distance / read as their label / recall: equal steps
# without guidance 0.77 / 98.1 % / 0.89; warp 1.5 0.69 / 98.1 % / 0.90; guidance 0.5 0.43 / 99.2 % / 0.83;
# warp 1.5 with guidance 0.25 0.37 / 99.0 % / 0.87, with 0.35 0.36 / 99.0 % / 0.86; warp 2 with guidance 0.35
# 0.37 / 99.0 % / 0.86. All of these with eight Euler steps.

# The loss around step 140 of batches of 128, bfloat16, one seed, no coupling: 0.239 as it is. Without the
# normal distribution under it, a network that gives the expected image had 0.383, and 0.393 with a learning
# rate of 0.001; one that gives the velocity had 0.427 with that.
CONFIG = Config(
    epochs=20,
    batch_size=128,
    steps=5,
    solver="adams-bashforth",
    channels_14=64,
    channels_7=128,
    blocks=2,
    embedding=128,
    learning_rate=2e-3,
    weight_decay=0.01,
    warm_up=0.1,
    ema_decay=0.999,
    coupling=512,
    precision="32-true",
)

# One step, taught by a run of two, which in turn was taught by a run of `flow` with eight Euler steps.
DISTILLED = replace(
    CONFIG,
    epochs=10,
    batch_size=64,
    steps=8,
    solver="euler",
    learning_rate=1e-3,
    guidance=0.0,
    teacher="runs/flow-2-passes",
    stride=8,
)

# The discriminator has the channels of the published GAN's, and its Adam has the same betas.
ADVERSARY = Rules(pairing="none", class_weight=0.5, r1_gamma=0.1, r2_gamma=0.0, r1_interval=16)
ADVERSARY_CHANNELS_28, ADVERSARY_CHANNELS, ADVERSARY_FEATURES = 32, 64, 256
ADVERSARY_BETAS = (0.5, 0.999)
# The standard deviation of the noise that is added to all images that it sees. Pixels are in -1..1.
ADVERSARY_NOISE = 0.1

FAMILY = "flow", "flow-distilled"
"""The models that can be the source or the teacher of a run."""


class Modulation(nn.Module):
    """Group normalisation whose channels the condition scales and shifts: (n, c, h, w) to the same shape.

    The condition is (n, embedding) (Perez et al. 2018, FiLM). The normalisation is of one image (Wu and He
    2018), so an image does not depend on its batch.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.norm = _norm(channels)
        self.condition = nn.Linear(embedding, 2 * channels)

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Maps of the same shape."""
        scale, shift = self.condition(condition).unsqueeze(2).unsqueeze(3).chunk(2, 1)
        modulated: Tensor = self.norm(maps) * (1 + scale) + shift
        return modulated


class Block(nn.Module):
    """Two 3x3 convolutions around a residual connection, (n, c, h, w) to the same shape.

    The condition, (n, embedding), modulates the maps between them. The second convolution starts at zero, and
    the block as the identity.
    """

    def __init__(self, channels: int, embedding: int) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1))
        self.modulation = Modulation(channels, embedding)
        self.after = nn.Sequential(nn.SiLU(), _zero(nn.Conv2d(channels, channels, 3, padding=1)))

    def forward(self, maps: Tensor, condition: Tensor) -> Tensor:
        """Maps of the same shape."""
        change: Tensor = self.after(self.modulation(self.before(maps), condition))
        return maps + change


class Velocity(nn.Module):
    """The field v(x, t, label): that of a normal distribution, corrected by a U-Net.

    The normal distribution has each class's own mean and variance of each pixel, which `fit` takes from the
    training images. Its field has a closed form, so a fresh network, whose last layer is zero, already
    follows it, and learns what is missing; compare the preconditioning of Karras et al. 2022 (EDM). The
    network sees x_t, and next to it the image that the normal distribution expects: convolutions alone know a
    place only by the padding around it.

    Four pixels make one place of a 14x14 map, because the layers on 28x28 would cost most and hold least
    (Hoogeboom et al. 2023, "simple diffusion").

    A label outside 0..9 is not an error in the graph: it has no embedding and the distribution of all images,
    and gives an image of no particular digit. An index out of range would fail the whole batch.
    """

    labels: Tensor
    frequencies: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, config: Config) -> None:
        super().__init__()
        wide, deep, embedding = config.channels_14, config.channels_7, config.embedding
        self.register_buffer("labels", torch.arange(CLASSES), persistent=False)
        frequencies = torch.logspace(math.log10(SLOWEST), math.log10(FASTEST), FREQUENCIES)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.register_buffer("mean", torch.zeros(CLASSES + 1, 1, SIDE, SIDE))
        self.register_buffer("variance", torch.ones(CLASSES + 1, 1, SIDE, SIDE))
        self.condition = nn.Sequential(
            nn.Linear(CLASSES + 2 * FREQUENCIES, embedding),
            nn.SiLU(),
            nn.Linear(embedding, embedding),
            nn.SiLU(),
        )
        self.head = nn.Conv2d(8, wide, 3, padding=1)
        self.down = Block(wide, embedding)
        self.to_7 = nn.Conv2d(wide, deep, 3, stride=2, padding=1)
        self.middle = nn.ModuleList([Block(deep, embedding) for _ in range(config.blocks)])
        self.to_14 = nn.Conv2d(deep, wide, 1)
        self.up = Block(wide, embedding)
        self.modulation = Modulation(wide, embedding)
        self.tail = nn.Sequential(nn.SiLU(), _zero(nn.Conv2d(wide, 4, 3, padding=1)))

    def fit(self, images: Tensor, labels: Tensor) -> None:
        """Take each class's mean and variance of each pixel from images (n, 1, 28, 28), -1..1, float32.

        The last are those of all images, which a class without images has too.
        """
        self.mean[:], self.variance[:] = images.mean(0), images.var(0, correction=0)
        for label in sorted(set(labels.tolist())):
            own = images[labels == label]
            self.mean[label], self.variance[label] = own.mean(0), own.var(0, correction=0)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """From x_t (n, 1, 28, 28) float32, t (n,) in 0..1 without 1 and labels (n,) int64 to v, as x_t."""
        one_hot = (labels.unsqueeze(1) == self.labels).to(x.dtype)
        time = t.view(-1, 1, 1, 1)
        normal = self.normal(x, t, labels)
        angles = t.unsqueeze(1) * self.frequencies
        condition = self.condition(torch.cat([one_hot, angles.sin(), angles.cos()], 1))
        seen = torch.cat([x, x + (1 - time) * normal], 1)
        return normal + self._correction(functional.pixel_unshuffle(seen, 2), condition).float()

    def normal(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The field of the normal distribution alone; arguments and result are those of `forward`."""
        row = torch.where((labels < 0) | (labels >= CLASSES), CLASSES, labels)
        return normal_velocity(x, t.view(-1, 1, 1, 1), self.mean[row], self.variance[row])

    def _correction(self, seen: Tensor, condition: Tensor) -> Tensor:
        """From (n, 8, 14, 14) and the condition (n, embedding) to (n, 1, 28, 28)."""
        maps = self.down(self.head(seen), condition)
        deep = self.to_7(maps)
        for block in self.middle:
            deep = block(deep, condition)
        maps = self.up(maps + functional.interpolate(self.to_14(deep), scale_factor=2.0), condition)
        return functional.pixel_shuffle(self.tail(self.modulation(maps, condition)), 2)


def normal_velocity(x: Tensor, t: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """The field of images whose pixels are independent and normal: E[x_1 - z | x_t], of the shape of x.

    x_1 - z and x_t = (1 - t) z + t x_1 are jointly normal, so it is the regression of one on the other.
    """
    slope = (t * variance - (1 - t)) / (t.square() * variance + (1 - t).square())
    return mean + slope * (x - t * mean)


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // math.gcd(channels, GROUP_CHANNELS), channels)


def _zero(convolution: nn.Conv2d) -> nn.Conv2d:
    """The convolution, with weights and biases of zero."""
    for weights in convolution.parameters():
        nn.init.zeros_(weights)
    return convolution


def flow_loss(velocity: nn.Module, images: Tensor, noise: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    """The mean of |v(x_t, t) - (x - z)|^2 per pixel (Lipman et al. 2023, eq. 14; Liu et al. 2023, eq. 1).

    images, noise: x and z, (n, 1, 28, 28) float32. t: (n,), in 0..1 without 1. labels: (n,) int64.
    Lipman's path with its sigma_min = 0 is Liu's.
    """
    share = t.view(-1, 1, 1, 1)
    predicted: Tensor = velocity((1 - share) * noise + share * images, t, labels)
    return functional.mse_loss(predicted, images - noise)


class Guided(nn.Module):
    """A field that is pushed towards the class: v(x, t, label) + guidance (n(x, t, label) - n(x, t)).

    n is the field of the normal distributions in closed form, of the class and of all images. Classifier-free
    guidance (Ho and Salimans 2022) takes a network's own difference, and so needs two passes for each step.
    """

    def __init__(self, velocity: Velocity, guidance: float) -> None:
        super().__init__()
        self.velocity = velocity
        self.guidance = guidance

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """As `Velocity`."""
        if not self.guidance:
            unguided: Tensor = self.velocity(x, t, labels)
            return unguided
        every = torch.full_like(labels, CLASSES)
        push = self.velocity.normal(x, t, labels) - self.velocity.normal(x, t, every)
        guided: Tensor = self.velocity(x, t, labels) + self.guidance * push
        return guided


def times_of(config: Config) -> list[float]:
    """Return where the passes of a configuration's network begin, and then 1."""
    return [*step_times(config.steps, config.warp)[: -1 : config.stride], 1.0]


Objective = Callable[[Guided, Tensor, torch.Generator], tuple[Tensor, Tensor | None]]
"""The loss of a field for some rows of the training images, and the images with the labels of these rows that
were drawn for it, if any; the generator is the step's."""


def matching(config: Config, levels: Tensor, labels: Tensor, generator: torch.Generator) -> Objective:
    """The flow's own loss in one epoch: on the paths from noise to the training images (n, 1, 28, 28)."""
    noise = coupled(levels, labels, generator, config.coupling)

    def loss(guided: Guided, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, None]:
        t = draw_times(len(rows), config.steps, generator)
        return flow_loss(guided.velocity, levels[rows], noise[rows], t, labels[rows]), None

    return loss


@dataclass(frozen=True)
class Teacher:
    """The field of an earlier `flow`, where its steps begin, and then 1, and their solver."""

    field: Guided
    times: Sequence[float]
    solver: Solver

    def merging(self, config: Config, labels: Tensor) -> Objective:
        """The loss of a run whose steps replace several of the teacher's. labels: of the training images."""
        times = times_of(config)

        def loss(guided: Guided, rows: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
            z = torch.randn(len(rows), 1, SIDE, SIDE, generator=generator, device=labels.device)
            return merged_steps_loss(guided, self.field, z, labels[rows], times, self.times, self.solver)

        return loss


def misread(
    velocity: nn.Module,
    reader: nn.Module,
    z: Tensor,
    labels: Tensor,
    times: Sequence[float],
    step: int,
    solver: Solver,
) -> Tensor:
    """How badly the images that the field expects after some of its own steps are read as their labels.

    The loss of the flow only knows the way from noise to training images. A drawn image strays from it, by
    the errors of the network and of the steps, and some end between two digits. So the network also
    learns on its own way: the cross-entropy of the reader for x_t + (1 - t) v(x_t, t, label), where x_t is
    drawn in the graph's steps. No gradient goes through these, so it costs little more than their passes.

    reader: from images (n, 1, 28, 28) float in 0..1 to logits (n, 10). Its own weights get no gradient.
    z: (n, 1, 28, 28) float32. labels: (n,) int64. times, solver: as of `integrate`.
    step: how many of the steps are taken before, less than all.
    """
    with torch.no_grad():
        x = integrate(velocity, z, labels, times[: step + 1], solver)
    expected = integrate(velocity, x, labels, [times[step], 1.0])
    return functional.cross_entropy(reader((expected + 1) / 2), labels)


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged network of the best epoch.

    That is the one whose samples have the smallest Frechet distance to the validation images, because the
    loss is mostly the variance of paths that cross; without a judge it is the last. Samples of fixed z are
    drawn to samples.png after every epoch.
    """
    device = run.fabric.device
    images, labels = to_tensors(splits.train, device)
    levels = images.float() / 127.5 - 1
    quality = epoch_quality(config.judge, splits)
    # channels_last: oneDNN's bfloat16 convolutions want it; a training step took 229 ms instead of 301.
    model = Velocity(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.fit(levels, labels)
    teacher = None if config.teacher == NO_TEACHER else teacher_of(config, splits, device)
    if (source := source_of(config)) != NO_SOURCE:
        begin_with(model, Path(source), splits)
    reader = None if config.reader == NO_READER else reader_of(config, splits).to(device)
    ema = averaged(model, config.ema_decay)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    steps = config.epochs * (len(labels) // config.batch_size)
    scheduler = one_cycle(optimizer, config.learning_rate, steps, config.warm_up)
    wrapped, wrapped_optimizer = run.fabric.setup(model, optimizer)
    guided, times = Guided(cast("Velocity", wrapped), config.guidance), times_of(config)
    state = {"model": wrapped, "optimizer": wrapped_optimizer, "scheduler": scheduler, "ema": ema}
    adversary = adversary_of(config, run) if config.adversary_weight else None
    if adversary is not None:
        state |= adversary.state
    run.restore(state)
    drawing = Drawing(cast("Velocity", ema.module), config)
    for epoch in run.epochs():
        if teacher is None:
            objective = matching(config, levels, labels, run.generator(epoch))
        else:
            objective = teacher.merging(config, labels)
        losses, readings, judgements = [], [], []
        for step, rows in run.batches(epoch, len(labels), config.batch_size):
            with run.fabric.autocast():
                loss, drawn = objective(guided, rows, run.generator(epoch, step))
            losses.append(loss.detach())
            if adversary is not None and drawn is not None:
                random = run.generator(epoch, step, 2)
                noise = ADVERSARY_NOISE * torch.randn(2, *drawn.shape, generator=random, device=device)
                real, fake = veiled(levels[rows], noise[0]), veiled(drawn, noise[1])
                with_r1 = step % ADVERSARY.r1_interval == 0
                judgements.append(adversary.train(real, fake, labels[rows], with_r1))
                opposing, classes = adversary.losses(real, fake, labels[rows])
                loss = loss + config.adversary_weight * (opposing + config.adversary_class_weight * classes)
            if reader is not None:
                z, wanted, taken = draw_start(config, run.generator(epoch, step, 1))
                reading = misread(guided, reader, z, wanted, times, taken, config.solver)
                readings.append(reading.detach())
                loss = loss + config.reader_weight * reading
            wrapped_optimizer.zero_grad()
            run.fabric.backward(loss)
            run.check_loss(epoch, step, loss)
            if reader is not None or teacher is not None:
                # With a reader the norm is 0.3 in most steps, and up to 26 where some images are misread.
                # Such steps lowered the recall of validation images to 0.84; clipped to 0.3, it was 0.88.
                run.fabric.clip_gradients(wrapped, wrapped_optimizer, max_norm=config.clip_norm)
            wrapped_optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
        del objective  # and the noise with it
        metrics = {
            "train_loss": run.mean(torch.stack(losses).mean()),
            "learning_rate": float(scheduler.get_last_lr()[0]),
        }
        if readings:
            metrics["train_reading"] = run.mean(torch.stack(readings).mean())
        for name in ("real_probability", "fake_probability") if judgements else ():
            metrics[name] = run.mean(torch.stack([each[name] for each in judgements]).mean())
        score = float(epoch)
        with run.fabric.autocast():
            if quality is not None:
                samples = draw_samples(drawing, quality.labels, LATENT, device)
                metrics |= {name: run.mean(value) for name, value in quality(samples).items()}
                score = -metrics["validation_distance"]
            if run.leads:
                save_samples(drawing, device, run.folder / SAMPLES_FILE)
        run.end_epoch(epoch, state, metrics, score=score, best=ema.module)
    run.finish()


def source_of(config: Config) -> str:
    """The folder of the run whose weights a run begins with, or `none`."""
    return config.teacher if config.source == NO_SOURCE else config.source


def begin_with(velocity: Velocity, folder: Path, splits: Splits) -> None:
    """Load the weights of an earlier `flow`.

    Raises what `earlier` raises, and SourceError if its network has other layers.
    """
    weights = earlier(folder, splits)[0].state_dict()
    take_earlier(velocity, weights, folder, "channels, blocks and embedding")


def earlier(folder: Path, splits: Splits) -> tuple[Velocity, Config]:
    """The network of a finished run or of a published version, and its configuration.

    Raises ExportError, EvaluationError, RepositoryError or SourceError unless the folder holds one of a
    `flow` of the same data.
    """
    published = (folder / MANIFEST_FILE).is_file()
    if published and not (folder / CONFIG_FILE).is_file():
        raise SourceError(
            f"{folder} has no {CONFIG_FILE}, because it was published before export wrote one: expected a "
            "later version, or the folder of a run"
        )
    check_model(folder, *FAMILY)
    check_data(folder, splits)
    config = config_of(read_hyperparameters(folder))
    velocity = Velocity(config)
    if published:
        read_verified(folder)
        take_weights(Drawing(velocity, config), folder)
    else:
        load_weights(velocity, folder)
    return velocity, config


def teacher_of(config: Config, splits: Splits, device: torch.device) -> Teacher:
    """The earlier `flow` whose steps a run learns to merge.

    Raises what `earlier` raises, and SourceError if the steps of this run are not Euler's, or do not each
    begin where one of the teacher's does, and are fewer.
    """
    if config.solver != "euler":
        raise SourceError(
            f"solver is {config.solver}, expected euler: a step that replaces others is straight"
        )
    velocity, taught = earlier(Path(config.teacher), splits)
    times, finer = times_of(config), times_of(taught)
    if not set(times) < set(finer):
        raise SourceError(
            f"the steps of {config.teacher} begin at {_listed(finer)}, and those of this run at "
            f"{_listed(times)}: expected some of the former, with the same steps and warp and a larger stride"
        )
    return Teacher(Guided(velocity, taught.guidance).eval().to(device), finer, taught.solver)


def adversary_of(config: Config, run: Run) -> Adversary:
    """A fresh discriminator of the images that a run draws.

    Raises SourceError if the run has no teacher, and so draws none.
    """
    if config.teacher == NO_TEACHER:
        raise SourceError(
            f"adversary_weight is {config.adversary_weight:g}, expected 0 without a teacher: only a run with "
            "a teacher draws whole images as it learns"
        )
    network = Discriminator(ADVERSARY_CHANNELS, ADVERSARY_CHANNELS_28, ADVERSARY_FEATURES, with_classes=True)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=config.adversary_rate, betas=ADVERSARY_BETAS, fused=True
    )
    return Adversary(network, optimizer, ADVERSARY, run.fabric)


def _listed(times: Sequence[float]) -> str:
    return ", ".join(f"{time:.3g}" for time in times[:-1])


def reader_of(config: Config, splits: Splits) -> Classifier:
    """The classifier that reads what a run draws.

    Raises SourceError if it is the judge, and what `published` raises.
    """
    if config.reader == config.judge:
        raise SourceError(
            f"reader and judge are both {config.reader}, expected two classifiers: what a network has "
            "learned to please cannot judge it"
        )
    return published(Path(config.reader), splits)


def draw_start(config: Config, generator: torch.Generator) -> tuple[Tensor, Tensor, int]:
    """Draw what `misread` begins with: z (n, 1, 28, 28), labels (n,) and the number of steps before."""
    count, device = config.drawn, generator.device
    z = torch.randn(count, 1, SIDE, SIDE, generator=generator, device=device)
    labels = torch.randint(CLASSES, (count,), generator=generator, device=device)
    taken = torch.randint(len(times_of(config)) - 1, (), generator=generator, device=device)
    return z, labels, int(taken)


def draw_times(count: int, steps: int, generator: torch.Generator) -> Tensor:
    """Draw times for training, (count,): evenly from 0 to the beginning of the last step.

    No later time is ever asked for.
    """
    return torch.rand(count, generator=generator, device=generator.device) * (1 - 1 / steps)


class Drawing(nn.Module):
    """The graph that is exported: all steps, and the images as bytes."""

    def __init__(self, velocity: Velocity, config: Config) -> None:
        super().__init__()
        self.velocity = Guided(velocity, config.guidance).eval()
        self.times, self.solver = times_of(config), config.solver

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """From z (n, 784) float32 and label (n,) int64 to images (n, 28, 28) uint8; ink is 255."""
        images = integrate(self.velocity, z.view(-1, 1, SIDE, SIDE), label, self.times, self.solver)
        levels = (images.squeeze(1) + 1) * 127.5
        return levels.round().clamp(0, 255).to(torch.uint8)


@torch.no_grad()
def save_samples(drawing: Drawing, device: torch.device, path: Path) -> None:
    """Draw ten samples of each digit, from the same z every time."""
    labels = torch.from_numpy(grid_labels())
    z = torch.randn(len(labels), LATENT, generator=torch.Generator().manual_seed(0))
    save_grid(drawing(z.to(device), labels.to(device)).cpu().numpy(), path)


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run's averaged network, with its steps, as models/<name>/<version>.

    Raises EvaluationError if models_dir holds no judge of its samples.
    """
    judge = latest_judge(target.models_dir, splits)
    config = config_of(read_hyperparameters(run_dir))
    velocity = Velocity(config)
    load_weights(velocity, run_dir)
    history, labels = read_history(run_dir), splits.test.labels[:PARITY_ROWS]
    model = Model(
        name=name,
        task="generation",
        network=Drawing(velocity, config).eval(),
        inputs=INPUTS,
        outputs=OUTPUTS,
        parity_inputs={"z": draw_latents(PARITY_SEED, len(labels), LATENT), "label": labels},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: generation(path, splits, judge),
        card=_card(config, velocity, history),
        pictures={SAMPLES_FILE: lambda path, picture: save_grid(draw(path, grid_labels()), picture)},
    )
    (folder,) = publish([model], splits=splits, run_dir=run_dir, target=target)
    return folder


def _card(config: Config, velocity: nn.Module, history: Sequence[Mapping[str, float]]) -> Card:
    count = len(times_of(config)) - 1
    steps, shared, passes = "one Euler step", "", "one pass"
    if count > 1:
        kind = "Euler steps" if config.solver == "euler" else "steps of the two-step Adams-Bashforth method"
        steps = f"{count} {kind}, which the graph holds; they grow with the power {config.warp:g}"
        shared, passes = ", which all steps share", f"{count} passes"
    merged = beginning = guided = reading = opposing = clipping = ""
    if config.teacher != NO_TEACHER:
        merged = ", in one step" if count == 1 else f", in {count} steps"
    if (source := source_of(config)) != NO_SOURCE:
        beginning = f"The run begins with the best weights of an earlier one, `{source}`. "
    if config.guidance:
        way = "towards" if config.guidance > 0 else "away from"
        guided = (
            f"Each step is pushed {way} the class by {abs(config.guidance):g} times the difference of two "
            "fields in closed form, those of normal distributions of the class and of all images. "
        )
    if config.reader != NO_READER:
        reading = (
            f" A second loss, with weight {config.reader_weight:g}, is the cross-entropy of a published "
            f"classifier, `{config.reader}`. It reads what the network expects of {config.drawn} images at "
            "each step, which the network has drawn itself up to one of the graph's steps."
        )
    if config.adversary_weight:
        weight = config.adversary_class_weight
        classes = f" and the classes' cross-entropy (weight {weight:g})" if weight else ""
        ordinal = "third" if reading else "second"
        opposing = (
            f" A {ordinal} loss, with weight {config.adversary_weight:g}, is the non-saturating one{classes} "
            "against a projection discriminator. This learns along to tell the training images from those "
            f"that the network draws, both under noise of {ADVERSARY_NOISE:g} (learning rate "
            f"{config.adversary_rate:g}, R1 with gamma {ADVERSARY.r1_gamma:g} every {ADVERSARY.r1_interval} "
            "steps)."
        )
    if config.reader != NO_READER or config.teacher != NO_TEACHER:
        clipping = f" Gradients are clipped to a norm of {config.clip_norm:g}."
    return make_card(
        "flow",
        config=config,
        parameters=sum(weights.numel() for weights in velocity.parameters()),
        steps=steps,
        shared=shared,
        passes=passes,
        merged=merged,
        objective=_objective(config),
        beginning=beginning,
        guided=guided,
        reading=reading,
        opposing=opposing,
        clipping=clipping,
        epochs=len(history),
        chosen=chosen_epoch(history),
    )


def _objective(config: Config) -> str:
    if config.teacher != NO_TEACHER:
        return (
            "Progressive distillation (Salimans and Ho 2022): each step learns to arrive where several steps "
            f"of `{config.teacher}` do"
        )
    pairing = "each image meets its own noise"
    if config.coupling > 1:
        pairing = (
            f"up to {config.coupling} images of a class exchange their noise before each epoch, which "
            "shortens the paths (Tong et al. 2024)"
        )
    return (
        "Conditional flow matching (Lipman et al. 2023) on straight paths (Liu et al. 2023), with t drawn "
        f"evenly from the times that the steps ask for; {pairing}"
    )


def config_of(hyperparameters: Mapping[str, Any]) -> Config:
    """The configuration that a run recorded."""
    return recorded(Config, hyperparameters)
