"""The conditional VAE: hyperparameters, networks, ELBO, loop, from top to bottom.

The likelihood is Bernoulli, on pixels binarised anew for every step: each is 1 with the probability
of its grey level (dynamic binarisation; Burda et al. 2016). The ELBO is therefore a true lower bound,
in nats, on the log-probability of a binary image given its label, and comparable with the literature.

Encoder and decoder share a latent w. Its prior is a flow of z from N(0, 1), given the label (as that of
Chen et al. 2017 is, "Variational lossy autoencoder", but of couplings). Both graphs hold the flow, so that
theirs is z: the decoder's input is drawn from N(0, 1), and the encoder's `mean` is an input for the decoder.
Without layers in the flow w is z.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from service.content.latents import draw_latents
from service.models.manifest import TensorSpec
from training.cards.card import Card, make_card
from training.datasets.splits import SIDE, Splits
from training.evaluation.epochs import JUDGE, epoch_quality
from training.evaluation.generation import draw, generation
from training.evaluation.judge import Judge, latest_judge
from training.evaluation.likelihood import (
    LOG_DETERMINANT,
    W_LOG_VARIANCE,
    W_MEAN,
    bound,
    encoder_of,
    encoding,
)
from training.export.publish import Model, publish
from training.families.condition import Condition
from training.families.grids import grid_labels, save_grid
from training.families.realnvp import CouplingFlow
from training.families.samples import draw_samples
from training.families.tensors import to_tensors
from training.onnx_files import open_session, run_in_parts
from training.runs.averaging import averaged
from training.runs.finished import load_weights, read_history, read_hyperparameters, recorded
from training.runs.run import Precision, Run
from training.versions import Target

SAMPLES_FILE = "samples.png"
RECONSTRUCTIONS_FILE = "reconstructions.png"

# The largest accepted differences between torch and onnxruntime, which take float32 sums in another
# order. A grey level half-way between two may be rounded either way; means and log-variances, of up to
# about 10, are sums of 3,136 terms.
LEVEL_TOLERANCE = 1.0
ENCODING_TOLERANCE = 1e-4
PARITY_SEED = 0

IMAGES = TensorSpec(name="images", datatype="UINT8", shape=(-1, SIDE, SIDE))
LABEL = TensorSpec(name="label", datatype="INT64", shape=(-1,))


@dataclass(frozen=True)
class Config:
    """Everything that decides the result, apart from the seed.

    latent: the size of z. embedding: the size of a digit's vector, which is appended to z.
    hidden: the width of the layers between z and the feature maps.
    channels_7 ... channels_28: channels of the maps of 7x7, 14x14 and 28x28 pixels; the encoder has only
        the first two.
    blocks_7, blocks_14: residual blocks on the maps of 7x7 and 14x14 pixels, in each network.
    flow_layers, flow_hidden: couplings of the prior, and the width of their networks.
    learning_rate: falls along half a cosine to 0. warm_up: the fraction of the steps in which the KL
        term's weight rises from 0 to 1 in training; the logged ELBO always weighs it by 1.
    ema_decay: per step, of the averaged weights, which are validated and exported.
    judge: the folder of the published classifier that judges the samples of each epoch, or `none`; its
        figures are logged.
    """

    epochs: int
    batch_size: int
    latent: int
    embedding: int
    hidden: int
    channels_7: int
    channels_14: int
    channels_28: int
    learning_rate: float
    warm_up: float
    ema_decay: float
    precision: Precision
    blocks_7: int = 0
    blocks_14: int = 0
    flow_layers: int = 0
    flow_hidden: int = 128
    judge: str = JUDGE


# Conditioning on the label is Sohn et al. 2015; the KL warm-up is Sonderby et al. 2016.
CONFIG = Config(
    epochs=24,
    batch_size=128,
    latent=32,
    embedding=32,
    hidden=256,
    channels_7=64,
    channels_14=32,
    channels_28=16,
    learning_rate=1e-3,
    warm_up=0.1,
    ema_decay=0.999,
    precision="32-true",
    blocks_7=2,
    blocks_14=1,
    flow_layers=6,
)


class Block(nn.Module):
    """A residual block (He et al. 2016, "Identity mappings"): maps (n, channels, h, w) to as many.

    It has no normalisation, and at first changes nothing, because its last layer is zero.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        for weights in self.body[-1].parameters():
            nn.init.zeros_(weights)

    def forward(self, maps: Tensor) -> Tensor:
        """The maps with the block's change added."""
        changed: Tensor = maps + self.body(maps)
        return changed


class Encoder(nn.Module):
    """q(w | x, y), a diagonal Gaussian: its mean and log-variance, both (n, latent).

    From images (n, 1, 28, 28) in 0..1 and labels (n,) int64. It is trained on binary images.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            nn.Conv2d(1, config.channels_14, 4, stride=2, padding=1),
            *(Block(config.channels_14) for _ in range(config.blocks_14)),
            nn.SiLU(),
            nn.Conv2d(config.channels_14, config.channels_7, 4, stride=2, padding=1),
            *(Block(config.channels_7) for _ in range(config.blocks_7)),
            nn.SiLU(),
            nn.Flatten(),
        )
        self.condition = Condition(config.embedding)
        self.dense = nn.Sequential(
            nn.Linear(config.channels_7 * 7 * 7 + config.embedding, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, 2 * config.latent),
        )

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (n, latent) each."""
        mean, log_variance = self.dense(self.condition(self.convolutions(images), labels)).chunk(2, 1)
        return mean, log_variance


class Decoder(nn.Module):
    """p(x | w, y): the logits of the pixels, (n, 1, 28, 28), from w (n, latent) and labels (n,) int64."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.condition = Condition(config.embedding)
        self.body = nn.Sequential(
            nn.Linear(config.latent + config.embedding, config.hidden),
            nn.SiLU(),
            nn.Linear(config.hidden, config.channels_7 * 7 * 7),
            nn.SiLU(),
            nn.Unflatten(1, (config.channels_7, 7, 7)),
            *(Block(config.channels_7) for _ in range(config.blocks_7)),
            nn.ConvTranspose2d(config.channels_7, config.channels_14, 4, stride=2, padding=1),
            *(Block(config.channels_14) for _ in range(config.blocks_14)),
            nn.SiLU(),
            nn.ConvTranspose2d(config.channels_14, config.channels_28, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(config.channels_28, 1, 3, padding=1),
        )

    def forward(self, w: Tensor, labels: Tensor) -> Tensor:
        """Logits, (n, 1, 28, 28)."""
        logits: Tensor = self.body(self.condition(w, labels))
        return logits


class ConditionalVae(nn.Module):
    """The encoder, the decoder and the prior of the w that they share."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.prior = CouplingFlow(config.latent, config.flow_layers, config.embedding, config.flow_hidden)

    def forward(self, images: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The two terms of the ELBO of each image, estimated with one w: E log p(x | w, y) and KL.

        images: (n, 1, 28, 28), 0.0 or 1.0. noise: (n, latent) from N(0, 1). Both terms are (n,), in
        nats; the ELBO, a lower bound on log p(x | y), is the first minus the second.
        """
        mean, log_variance = self.encoder(images, labels)
        mean, log_variance = mean.float(), log_variance.float()
        w = reparameterise(mean, log_variance, noise)
        logits = self.decoder(w, labels).float()
        if not self.prior.couplings:
            return log_likelihood(logits, images), kl_divergence(mean, log_variance)
        # In float32 whatever the precision: a KL of some 20 nats is the small difference of large terms.
        with torch.autocast(w.device.type, enabled=False):
            z, log_determinant = self.prior.inverse(w, labels)
        return log_likelihood(logits, images), sampled_divergence(noise, log_variance, z, log_determinant)


def reparameterise(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """A sample of N(mean, exp(log_variance)) (Kingma and Welling 2014): sigma scales only the noise."""
    return mean + (log_variance / 2).exp() * noise


def kl_divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(mean, exp(log_variance)) || N(0, 1)), (n,), in nats (Kingma and Welling 2014, appendix B)."""
    return ((mean.square() + log_variance.exp() - 1 - log_variance) / 2).sum(1)


def sampled_divergence(noise: Tensor, log_variance: Tensor, z: Tensor, log_determinant: Tensor) -> Tensor:
    """An unbiased estimate of KL(q(w) || p(w)) of a flow's prior, (n,), in nats: log q(w) - log p(w).

    w is the sample of q with this noise; z and log_determinant are what `CouplingFlow.inverse` gives of w.
    """
    return ((z.square() - noise.square() - log_variance) / 2).sum(1) - log_determinant


def log_likelihood(logits: Tensor, images: Tensor) -> Tensor:
    """log p(x | w, y), (n,), in nats, of binary images under independent Bernoulli pixels."""
    return -functional.binary_cross_entropy_with_logits(logits, images, reduction="none").sum((1, 2, 3))


def binarise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw each pixel of uint8 images as 1.0 with the probability of its level / 255, else as 0.0."""
    return torch.bernoulli(images.float() / 255, generator=generator)


def kl_weight(step: int, steps: int, warm_up: float) -> float:
    """The weight of the KL term in training: from 0 to 1 over the first `warm_up` of all steps, then 1."""
    return min(1.0, step / max(1.0, warm_up * steps))


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged weights with the best ELBO.

    The ELBO measures encoder and decoder; the quality of samples alone would not see the encoder. After
    every epoch samples of fixed z and reconstructions of validation images are drawn to samples.png and
    reconstructions.png.
    """
    device = run.fabric.device
    images, labels = to_tensors(splits.train, device)
    validation = to_tensors(splits.validation, device)
    quality = epoch_quality(config.judge, splits)
    model = ConditionalVae(config)
    # Measured on one core: a step of 128 images takes 110 ms with channels last, 172 without.
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = averaged(model, config.ema_decay)
    average = cast("ConditionalVae", ema.module)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    steps_per_epoch = len(labels) // config.batch_size
    steps = config.epochs * steps_per_epoch
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    wrapped, wrapped_optimizer = run.fabric.setup(model, optimizer)
    state = {"model": wrapped, "optimizer": wrapped_optimizer, "scheduler": scheduler, "ema": ema}
    run.restore(state)
    for epoch in run.epochs():
        terms = []
        for step, rows in run.batches(epoch, len(labels), config.batch_size):
            generator = run.generator(epoch, step)
            batch = binarise(images[rows], generator)
            noise = torch.randn(len(rows), config.latent, generator=generator, device=device)
            reconstruction, kl = wrapped(batch, labels[rows], noise)
            weight = kl_weight(epoch * steps_per_epoch + step, steps, config.warm_up)
            wrapped_optimizer.zero_grad()
            loss = (weight * kl - reconstruction).mean()
            run.fabric.backward(loss)
            run.check_loss(epoch, step, loss)
            wrapped_optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
            terms.append(torch.stack([reconstruction.detach().mean(), kl.detach().mean()]))
        reconstruction, kl = torch.stack(terms).mean(0)
        metrics = {"train_elbo": run.mean(reconstruction - kl), "train_kl": run.mean(kl)}
        metrics |= validate(average, *validation, config.latent)
        if quality is not None:
            drawn = draw_samples(_images_of(average), quality.labels, config.latent, device)
            metrics |= {name: run.mean(value) for name, value in quality(drawn).items()}
        metrics["learning_rate"] = float(scheduler.get_last_lr()[0])
        run.end_epoch(epoch, state, metrics, score=metrics["validation_elbo"], best=average)
        if run.leads:
            save_samples(average, config, run.folder / SAMPLES_FILE)
            save_reconstructions(average, *validation, run.folder / RECONSTRUCTIONS_FILE)
    run.finish()


def _images_of(model: ConditionalVae) -> Callable[[Tensor, Tensor], Tensor]:
    decoding = Decoding(model)
    return lambda z, label: decoding(z, label)[0]


@torch.no_grad()
def validate(model: nn.Module, images: Tensor, labels: Tensor, latent: int) -> dict[str, float]:
    """Mean ELBO and KL in nats, in full precision; the same binary images and noise every time."""
    generator = torch.Generator(images.device).manual_seed(0)
    terms = []
    for some, their_labels in zip(images.split(500), labels.split(500), strict=True):  # type: ignore[no-untyped-call]
        noise = torch.randn(len(some), latent, generator=generator, device=images.device)
        terms.append(torch.stack(model(binarise(some, generator), their_labels, noise)))
    reconstruction, kl = torch.cat(terms, 1).mean(1).tolist()
    return {"validation_elbo": reconstruction - kl, "validation_kl": kl}


class Encoding(nn.Module):
    """The encoder's graph: images (n, 28, 28) uint8 and label (n,) int64 to the z of the decoder's graph.

    Grey levels go in as they are, as the expected value of their binary images; binary ones are bytes of 0
    and 255. The results are (n, latent) float32. Without a flow they are mean and log-variance of z. With
    one the first is the z of w's mean, and the others are inner tensors of the graph, from which evaluation
    computes the ELBO: mean and log-variance of w, and the logarithm of |dz / dw|, (n,).
    """

    def __init__(self, model: ConditionalVae) -> None:
        super().__init__()
        self.encoder, self.prior = model.encoder, model.prior

    def forward(self, images: Tensor, label: Tensor) -> tuple[Tensor, ...]:
        """Mean and log-variance of z; or the z of w's mean, mean and log-variance of w, ln |dz / dw|."""
        mean, log_variance = self.encoder(images.unsqueeze(1).float() / 255, label)
        if not self.prior.couplings:
            return mean, log_variance
        z, log_determinant = self.prior.inverse(mean, label)
        return z, mean, log_variance, log_determinant


class Decoding(nn.Module):
    """The decoder's graph: z (n, latent) float32 and label (n,) int64 to images (n, 28, 28) uint8.

    A pixel is the probability of ink times 255. The second result, the logits (n, 28, 28) float32, is
    an inner tensor of the graph, from which evaluation computes the ELBO.
    """

    def __init__(self, model: ConditionalVae) -> None:
        super().__init__()
        self.decoder, self.prior = model.decoder, model.prior

    def forward(self, z: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Images, logits."""
        logits = self.decoder(self.prior(z, label), label).squeeze(1)
        return (logits.sigmoid() * 255).round().clamp(0, 255).to(torch.uint8), logits


@torch.no_grad()
def save_samples(model: ConditionalVae, config: Config, path: Path) -> None:
    """Draw ten samples of each digit, from the same z every time."""
    labels = torch.from_numpy(grid_labels())
    z = torch.randn(len(labels), config.latent, generator=torch.Generator().manual_seed(0))
    device = next(model.parameters()).device
    images, _ = Decoding(model)(z.to(device), labels.to(device))
    save_grid(images.cpu().numpy(), path)


@torch.no_grad()
def save_reconstructions(model: ConditionalVae, images: Tensor, labels: Tensor, path: Path) -> None:
    """Draw the first 50 images in rows, each row above the same images decoded from their means."""
    images, labels = images[:50].squeeze(1), labels[:50]
    decoded, _ = Decoding(model)(Encoding(model)(images, labels)[0], labels)
    save_pairs(images.cpu().numpy(), decoded.cpu().numpy(), path)


def save_pairs(images: NDArray[np.uint8], decoded: NDArray[np.uint8], path: Path) -> None:
    """Draw rows of ten images, (n, 28, 28), each row above its reconstructions; the last row is padded."""
    padding = ((0, -len(images) % 10), (0, 0), (0, 0))
    rows = [np.pad(each, padding).reshape(-1, 10, SIDE, SIDE) for each in (images, decoded)]
    save_grid(np.stack(rows, 1).reshape(-1, SIDE, SIDE), path)


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run's decoder as models/<name>/<version>, its encoder as <name>-encoder/<version>.

    Both get the same version number, which pairs them: the requested one, or the next that is free for
    both. The encoder appears first. Returns the decoder's folder.
    Raises EvaluationError if models_dir holds no CNN to judge the samples.
    """
    judge = latest_judge(target.models_dir, splits)
    config = config_of(read_hyperparameters(run_dir))
    vae = ConditionalVae(config)
    load_weights(vae, run_dir)
    history = read_history(run_dir)
    encoder = _encoder_model(
        f"{name}-encoder",
        vae,
        config,
        splits,
        _card("vae-encoder", name, config, vae, history),
    )
    decoder = _decoder_model(name, vae, config, splits, _card("vae", name, config, vae, history), judge)
    _, folder = publish([encoder, decoder], splits=splits, run_dir=run_dir, target=target)
    return folder


def _encoder_model(name: str, vae: ConditionalVae, config: Config, splits: Splits, card: Card) -> Model:
    gaussian = not config.flow_layers
    return Model(
        name=name,
        task="encoding",
        network=Encoding(vae).eval(),
        inputs=[IMAGES, LABEL],
        outputs=[
            TensorSpec(name=each, datatype="FP32", shape=(-1, config.latent))
            for each in (["mean", "log_variance"] if gaussian else ["mean"])
        ],
        keep=[] if gaussian else [W_MEAN, W_LOG_VARIANCE, LOG_DETERMINANT],
        parity_inputs={"images": splits.test.images, "label": splits.test.labels},
        tolerance=ENCODING_TOLERANCE,
        measure=lambda path: encoding(path, splits.test),
        card=card,
    )


def _decoder_model(
    name: str, vae: ConditionalVae, config: Config, splits: Splits, card: Card, judge: Judge
) -> Model:
    labels = splits.test.labels
    return Model(
        name=name,
        task="generation",
        network=Decoding(vae).eval(),
        inputs=[TensorSpec(name="z", datatype="FP32", shape=(-1, config.latent)), LABEL],
        outputs=[IMAGES],
        keep=["logits"],
        parity_inputs={"z": draw_latents(PARITY_SEED, len(labels), config.latent), "label": labels},
        tolerance=LEVEL_TOLERANCE,
        measure=lambda path: generation(path, splits, judge) | bound(path, splits.test),
        card=card,
        pictures={
            SAMPLES_FILE: lambda path, picture: save_grid(draw(path, grid_labels()), picture),
            RECONSTRUCTIONS_FILE: lambda path, picture: _draw_reconstructions(path, splits, picture),
        },
    )


def _draw_reconstructions(decoder: Path, splits: Splits, picture: Path) -> None:
    """As `save_reconstructions`, from the two graphs, with the first 50 test images."""
    images, labels = splits.test.images[:50], splits.test.labels[:50]
    encoder = open_session(encoder_of(decoder))
    (mean,) = run_in_parts(encoder, ["mean"], {"images": images, "label": labels})
    (decoded,) = run_in_parts(open_session(decoder), ["images"], {"z": mean, "label": labels})
    save_pairs(images, decoded, picture)


def config_of(hyperparameters: Mapping[str, Any]) -> Config:
    """The configuration that a run recorded."""
    return recorded(Config, hyperparameters)


def _card(
    template: str, name: str, config: Config, vae: ConditionalVae, history: Sequence[Mapping[str, float]]
) -> Card:
    network = Decoding(vae) if template == "vae" else Encoding(vae)
    return make_card(
        template,
        "vae-training",
        config=config,
        parameters=sum(weights.numel() for weights in network.parameters()),
        best=max(history, key=lambda line: line["validation_elbo"]),
        decoder=name,
        encoder=f"{name}-encoder",
        **_words(config, name),
    )


def _words(config: Config, decoder: str) -> dict[str, str]:
    """The parts of the cards that depend on whether there are residual blocks and a flow."""
    words = dict.fromkeys(("blocks", "flow"), "")
    words["target"] = f"as a diagonal Gaussian over z, for the decoder `{decoder}`"
    words["gives"] = "the mean and the natural logarithm of the variance of z"
    if config.blocks_14 or config.blocks_7:
        words["blocks"] = (
            f"{config.blocks_14} and {config.blocks_7} residual blocks of two 3x3 convolutions on the maps "
            "of 14x14 and 7x7 pixels;"
        )
    if config.flow_layers:
        words["flow"] = (
            f"between z, of N(0, 1), and the latent w of the networks a flow of {config.flow_layers} affine "
            f"couplings of width {config.flow_hidden}, given the class (RealNVP);"
        )
        words["target"] = f"as the z from which the decoder `{decoder}` draws them again"
        words["gives"] = (
            f"the z of the mean of w. The inner tensors `{W_MEAN}` and `{W_LOG_VARIANCE}` are the parameters "
            f"of q(w | x, y), a diagonal Gaussian, and `{LOG_DETERMINANT}` is ln |dz / dw|"
        )
    return words
