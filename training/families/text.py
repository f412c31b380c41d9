"""A byte-level text encoder and an image encoder: hyperparameters, networks, loss, loop, export.

Both give unit vectors of one space (CLIP; Radford et al. 2021). Several captions fit an image, and several
images a caption, so the loss is the sigmoid one (SigLIP; Zhai et al. 2023), which asks of each pair whether
the image shows what the caption says, instead of CLIP's, which allows one partner each.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from service.models.manifest import CAPTIONER_SUFFIX
from training.captions.attributes import FRACTION, STYLES, Thresholds
from training.captions.foreign import foreign
from training.captions.grammar import (
    MAX_BYTES,
    Meaning,
    caption,
    describe_words,
    every_meaning,
    fits,
    sample_meaning,
    to_bytes,
)
from training.cards.card import make_card
from training.datasets.splits import CLASSES, SIDE, Dataset, Splits
from training.errors import DataError
from training.evaluation.judge import latest_judge
from training.evaluation.retrieval import (
    caption_metrics,
    generator_of,
    prompted,
    search_metrics,
)
from training.export.publish import Model, publish
from training.families.augment import deform
from training.families.classifier import preprocess_for
from training.families.grids import COLUMNS, save_grid
from training.families.layers import one_cycle
from training.families.pair import REACH, Config, Pair, unit
from training.families.tensors import to_tensors
from training.families.text_graphs import IMAGES, TEXT, Captions, Search, captioning_specs, search_specs
from training.onnx_files import open_session, run_in_parts
from training.runs.averaging import averaged
from training.runs.finished import load_weights, read_history, read_hyperparameters, recorded
from training.runs.run import Run
from training.versions import Target

VALIDATION_CAPTIONS = 2000

REFUSED = 0.02
"""The fraction of the validation captions that lie below the threshold of being understood.

With 0.01, made-up validation prompts of each kind were refused at a rate of 0.72 to 0.98, with 0.02 of 0.92
to 0.99: what lies between is one form, `a seven, please`.
"""

GENERATOR = "gan/1"
"""The generator that draws for the published figures of prompts."""

# The largest accepted difference between torch and onnxruntime: probabilities and unit vectors, sums of 3,136
# float32 terms in another order, and a sigmoid of cosines times about ten.
PARITY_TOLERANCE = 1e-4

FOUND_FILE = "found.png"
SHOWN_PROMPTS = (
    *("seven", "a thin slanted seven", "a thick upright seven", "a small 2", "bold zeros", "fine nines"),
    *("a large thick four", "slanted ones", "upright ones", "a thin 5"),
)
"""The prompts whose ten nearest images are drawn next to the model, a row each."""


CONFIG = Config(
    epochs=12,
    batch_size=512,
    captions=192,
    foreign=224,
    embedding=64,
    byte_channels=32,
    text_channels=64,
    channels_14=32,
    channels_7=64,
    hidden=128,
    learning_rate=3e-3,
    weight_decay=0.02,
    warm_up=0.1,
    ema_decay=0.998,
    meaning_weight=1.0,
    rotation_degrees=8.0,
    scale=0.08,
    shear=0.1,
    translation=1.5,
    precision="32-true",
)


@dataclass(frozen=True)
class Texts:
    """Captions with what they mean, and then prompts without a meaning.

    rows: (m, length of the longest and REACH zeros) uint8. fit: (captions, images), 1.0 for an image that
    shows a caption. digits: (captions,), 10 for none; levels: (captions, 3). understood: (m,), 1.0 for
    captions.
    """

    rows: Tensor
    fit: Tensor
    digits: Tensor
    levels: Tensor
    understood: Tensor

    @classmethod
    def of(
        cls,
        meanings: Sequence[Meaning],
        texts: Sequence[str],
        labels: NDArray[np.int64],
        levels: NDArray[np.int64],
        device: torch.device,
    ) -> "Texts":
        """The texts of these meanings, then others; with images of these labels and levels."""
        digits = [CLASSES if each.digit is None else each.digit for each in meanings]
        count, rows = len(meanings), to_bytes(texts)
        return cls(
            torch.from_numpy(rows[:, : int(rows.any(0).sum()) + REACH].copy()).to(device),
            torch.from_numpy(fits(meanings, labels, levels).astype(np.float32)).to(device),
            torch.tensor(digits, device=device),
            torch.tensor([each.levels for each in meanings], device=device),
            torch.tensor([1.0] * count + [0.0] * (len(texts) - count), device=device),
        )


def loss_of(model: Pair, outputs: tuple[Tensor, ...], texts: Texts, config: Config) -> Tensor:
    """The loss of a batch, a scalar; `outputs` are those of `Pair.forward`.

    The pairs' part is the sum over all pairs by the number of those that fit: SigLIP divides by the number of
    captions, of which each fits one image there.
    """
    images, vectors, digit, styles, understood = outputs
    count = len(texts.digits)
    logits = model.pair_logits(vectors[:count], images)
    pairs = functional.binary_cross_entropy_with_logits(logits, texts.fit, reduction="sum")
    pairs = pairs / texts.fit.sum().clamp(min=1)
    meaning = functional.cross_entropy(digit[:count].float(), texts.digits)
    for index in range(len(STYLES)):
        meaning = meaning + functional.cross_entropy(styles[:count, index].float(), texts.levels[:, index])
    known = functional.binary_cross_entropy_with_logits(understood.float(), texts.understood)
    return pairs + config.meaning_weight * (meaning + known)


def train(config: Config, splits: Splits, run: Run) -> None:
    """Train to the end of the run; best.safetensors then holds the averaged weights of the best epoch.

    Raises DataError unless the classes are digits.
    """
    if splits.labels != tuple("0123456789"):
        raise DataError(
            f"the classes are {', '.join(splits.labels)}, expected digits: captions speak of those"
        )
    device = run.fabric.device
    thresholds = Thresholds.of(splits.train)
    images, _ = to_tensors(splits.train, device)
    model = Pair(config).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    ema = averaged(model, config.ema_decay)
    # SigLIP's second beta: the gradients of the first batches, whose vectors all lie together, soon fade.
    optimizer = torch.optim.AdamW(
        _groups(model, config), lr=config.learning_rate, betas=(0.9, 0.95), fused=True
    )
    steps = config.epochs * (len(splits.train) // config.batch_size)
    rates = [config.learning_rate, config.learning_rate, 5 * config.learning_rate]
    scheduler = one_cycle(optimizer, rates, steps, config.warm_up)
    wrapped, wrapped_optimizer = run.fabric.setup(model, optimizer)
    state = {"model": wrapped, "optimizer": wrapped_optimizer, "scheduler": scheduler, "ema": ema}
    run.restore(state)
    for epoch in run.epochs():
        wrapped.train()
        losses = []
        for step, rows in run.batches(epoch, len(splits.train), config.batch_size):
            batch = deform(images[rows].float() / 255, config.deformation, run.generator(epoch, step))
            random = Random(run.key(epoch, step, run.fabric.global_rank))
            texts = _texts(config, batch, splits.train.labels[rows.cpu().numpy()], thresholds, random, device)
            batch = batch.contiguous(memory_format=torch.channels_last)
            loss = loss_of(model, wrapped(batch, texts.rows), texts, config)
            wrapped_optimizer.zero_grad()
            run.fabric.backward(loss)
            run.check_loss(epoch, step, loss)
            wrapped_optimizer.step()
            scheduler.step()
            ema.update_parameters(model)
            losses.append(loss.detach())
        validated = validate(cast("Pair", ema.module), splits.validation, thresholds, device)
        metrics = {
            "train_loss": run.mean(torch.stack(losses).mean()),
            **{f"validation_{name}": run.mean(value) for name, value in validated.items()},
            "learning_rate": float(scheduler.get_last_lr()[0]),
        }
        run.end_epoch(epoch, state, metrics, score=_score(metrics), best=ema.module)
    run.finish()


def _score(metrics: Mapping[str, float]) -> float:
    """Higher is better: what is found, what is read, and what is refused, each a fraction."""
    return sum(metrics[f"validation_{name}"] for name in ("precision", "meaning", "refusal"))


def _groups(model: nn.Module, config: Config) -> list[dict[str, Any]]:
    """Matrices, with weight decay; vectors; and the scale and the bias of the pairs, which must go far."""
    return [
        {"params": [w for w in model.parameters() if w.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [w for w in model.parameters() if w.ndim == 1], "weight_decay": 0.0},
        {"params": [w for w in model.parameters() if w.ndim == 0], "weight_decay": 0.0},
    ]


def _texts(
    config: Config,
    batch: Tensor,
    labels: NDArray[np.int64],
    thresholds: Thresholds,
    random: Random,
    device: torch.device,
) -> Texts:
    """Captions of the first images of a batch, and foreign prompts."""
    pixels = (batch.squeeze(1) * 255).round().clamp(0, 255).to(torch.uint8).cpu().numpy()
    levels = thresholds.levels(pixels, labels)
    count = min(config.captions, len(labels))
    meanings = [
        sample_meaning(random, int(label), level.tolist())
        for label, level in zip(labels[:count], levels[:count], strict=True)
    ]
    texts = [caption(random, each, "train") for each in meanings]
    texts += [foreign(random, "train") for _ in range(config.foreign)]
    return Texts.of(meanings, texts, labels, levels, device)


@torch.no_grad()
def validate(model: Pair, data: Dataset, thresholds: Thresholds, device: torch.device) -> dict[str, float]:
    """Metrics on validation images and captions, in full precision; always the same captions.

    precision: the fraction of the ten images nearest to a caption that show all that it says, without
        captions that fewer than ten images show. meaning: the fraction of captions whose digit and styles
        are all read right. refusal: the fraction of foreign prompts that are less understood than all but
        REFUSED of the captions. digit, stroke, slant, size: the accuracy of the images' captions.
    """
    model.eval()
    levels = thresholds.levels(data.images, data.labels)
    images, _ = to_tensors(data, device)
    vectors = torch.cat([unit(model.image(part.float() / 255)) for part in images.split(500)])  # type: ignore[no-untyped-call]
    meanings, texts = validation_captions(VALIDATION_CAPTIONS)
    strange = foreign_prompts(VALIDATION_CAPTIONS)
    everything = Texts.of(meanings, [*texts, *strange], data.labels, levels, device)
    read = [model.read(part) for part in everything.rows.split(500)]  # type: ignore[no-untyped-call]
    embeddings, digit, styles, understood = (torch.cat(column) for column in zip(*read, strict=True))
    count = len(meanings)
    nearest = (embeddings[:count] @ vectors.T).topk(10, dim=1).indices
    enough = everything.fit.sum(1) >= 10
    right = digit[:count].argmax(1) == everything.digits
    right &= (styles[:count].argmax(2) == everything.levels).all(1)
    limit = understood[:count].quantile(REFUSED)
    captions = Captions(model).eval()
    parts = [captions(part) for part in images.squeeze(1).split(500)]  # type: ignore[no-untyped-call]
    digits, *seen, _ = (torch.cat(column).argmax(1).cpu().numpy() for column in zip(*parts, strict=True))
    accuracies = {"digit": float((digits == data.labels).mean())}
    for index, style in enumerate(STYLES):
        accuracies[style] = float((seen[index] == levels[:, index]).mean())
    return {
        "precision": float(everything.fit.gather(1, nearest)[enough].mean()) if enough.any() else 0.0,
        "meaning": float(right.float().mean()),
        "refusal": float((understood[count:] < limit).float().mean()),
        **accuracies,
    }


def validation_captions(count: int) -> tuple[list[Meaning], list[str]]:
    """Captions of the forms for validation, always the same: what they mean, and the texts."""
    random = Random(0)
    meanings = [random.choice(every_meaning()) for _ in range(count)]
    return meanings, [caption(random, each, "validation") for each in meanings]


def foreign_prompts(count: int) -> list[str]:
    """Prompts without a meaning, of words that training does not draw, always the same."""
    random = Random(1)
    return [foreign(random, "validation") for _ in range(count)]


def export(name: str, run_dir: Path, splits: Splits, target: Target) -> Path:
    """Publish a run as models/<name>/<version>, the search, and <name>-image/<version>, the captions.

    Both get the same version number, which pairs them. The gallery is the test set. Returns the search's
    folder. Raises EvaluationError if models_dir holds no GENERATOR to draw for prompts, or no judge.
    """
    judge, generator = latest_judge(target.models_dir, splits), generator_of(target.models_dir, GENERATOR)
    config = config_of(read_hyperparameters(run_dir))
    model = Pair(config)
    load_weights(model, run_dir)
    facts = _facts(config, model, splits, read_history(run_dir))
    images = Model(
        name=f"{name}{CAPTIONER_SUFFIX}",
        task="captioning",
        network=Captions(model).eval(),
        inputs=[IMAGES],
        outputs=captioning_specs(config.embedding),
        preprocess=preprocess_for(splits),
        parity_inputs={"images": splits.test.images},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: caption_metrics(path, splits),
        card=make_card("text-image", "text-training", **facts),
    )
    search = Search(model, splits.test, threshold(model)).eval()
    text = Model(
        name=name,
        task="search",
        network=search,
        inputs=[TEXT],
        outputs=search_specs(config.embedding, search.found),
        ranked=("index", "label", "picture"),
        parity_inputs={"text": to_bytes([*validation_captions(500)[1], *foreign_prompts(500)])},
        tolerance=PARITY_TOLERANCE,
        measure=lambda path: search_metrics(path, splits) | prompted(path, generator, judge, splits),
        card=make_card("text", "text-training", **facts),
        pictures={FOUND_FILE: save_found},
    )
    _, folder = publish([images, text], splits=splits, run_dir=run_dir, target=target)
    return folder


@torch.no_grad()
def threshold(model: Pair) -> float:
    """The logit of being understood below which REFUSED of the validation captions lie."""
    rows = torch.from_numpy(to_bytes(validation_captions(VALIDATION_CAPTIONS)[1]))
    understood = torch.cat([model.read(part)[3] for part in rows.split(500)])  # type: ignore[no-untyped-call]
    return float(understood.quantile(REFUSED))


def save_found(path: Path, picture: Path) -> None:
    """Draw the ten images nearest to each of SHOWN_PROMPTS, a row each."""
    (found,) = run_in_parts(open_session(path), ["picture"], {"text": to_bytes(SHOWN_PROMPTS)})
    save_grid(found[:, :COLUMNS].reshape(-1, SIDE, SIDE), picture)


def config_of(hyperparameters: Mapping[str, Any]) -> Config:
    """The configuration that a run recorded."""
    return recorded(Config, hyperparameters)


def _facts(
    config: Config, model: Pair, splits: Splits, history: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What the cards' templates name."""
    return {
        "config": config,
        "best": max(history, key=_score),
        "bytes": MAX_BYTES,
        "fraction": FRACTION,
        "refused": REFUSED,
        "parameters": sum(weights.numel() for weights in model.parameters()),
        "thresholds": Thresholds.of(splits.train).described(),
        "words": describe_words(),
    }
