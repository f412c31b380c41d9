"""Metrics of the text model: what a search finds, what a caption says, what is refused, what is drawn.

Captions are those of the test forms, whose word orders training and validation never showed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.content.latents import draw_latents
from service.content.prompts import CANDIDATES, nearest
from service.models.manifest import CAPTIONER_SUFFIX, MANIFEST_FILE, MODEL_FILE, read_manifest
from training.captions.attributes import ANY, STYLES, Thresholds
from training.captions.foreign import OUTSIDE
from training.captions.grammar import (
    SYNONYMS,
    Meaning,
    caption,
    every_meaning,
    fits,
    to_bytes,
    with_synonym,
)
from training.datasets.splits import CLASSES, Splits
from training.errors import EvaluationError
from training.evaluation.judge import Judge
from training.evaluation.metrics import Metrics
from training.onnx_files import open_session, run_in_parts

CAPTION_SEED = 4
CAPTIONS_PER_MEANING = 4
SYNONYM_CAPTIONS = 20
"""Captions for each unseen synonym."""

NEAREST = 10
UNDERSTOOD = 0.5
PROMPT_SEED = 1
PROMPTED_IMAGES = 4
"""Images drawn for each meaning."""


def captions_of(search: Path) -> Path:
    """The graph that reads images for a search model's graph."""
    version = search.parent
    return version.parent.with_name(version.parent.name + CAPTIONER_SUFFIX) / version.name / MODEL_FILE


def search_metrics(path: Path, splits: Splits) -> Metrics:
    """The metrics of a search model's graph, whose gallery is the test set.

    precision_at_10: the fraction of the ten nearest images that show all that the caption says; over captions
        that at least ten images show. recall_at_10: how many of ten, or of as many as there are, are found;
        over captions that any image shows. random_precision: what ten random images would have.
    precision_styles_0 ... _3: precision_at_10 of captions that name so many styles.
    caption_meaning: the fraction of captions whose digit and three styles are all read right.
    refused_captions, refused_synonyms: of captions, and of captions with an unseen synonym.
    accepted_outside: of the prompts outside the grammar (`training.captions.foreign`), those not refused.
    """
    session = open_session(path)
    meanings, texts = test_captions()
    seen = _read(session, texts)
    levels = Thresholds.of(splits.train).levels(splits.test.images, splits.test.labels)
    shown = fits(meanings, splits.test.labels, levels)
    total = shown.sum(1)
    found = np.take_along_axis(shown, seen["index"][:, :NEAREST], 1).sum(1)
    many = total >= NEAREST
    styles = np.array([sum(level != ANY for level in each.levels) for each in meanings])
    outside = [text for kind in OUTSIDE.values() for text in kind]
    unknown, unknown_texts = synonym_captions()
    strange = _read(session, unknown_texts)
    taken = strange["understood"] >= UNDERSTOOD
    return {
        "test_images": len(splits.test),
        "captions": len(texts),
        "precision_at_10": _mean(found[many] / NEAREST),
        "recall_at_10": _mean(found[total > 0] / np.minimum(total[total > 0], NEAREST)),
        "random_precision": _mean(total[many] / len(splits.test)),
        **{
            f"precision_styles_{count}": _mean(found[many & (styles == count)] / NEAREST)
            for count in range(len(STYLES) + 1)
        },
        "caption_meaning": _mean(right_meanings(seen, meanings)),
        "refused_captions": _mean(seen["understood"] < UNDERSTOOD),
        "outside_prompts": len(outside),
        "accepted_outside": _mean(_read(session, outside)["understood"] >= UNDERSTOOD),
        "synonym_captions": len(unknown),
        "refused_synonyms": _mean(~taken),
        "misread_synonyms": _mean(taken & ~right_meanings(strange, unknown)),
    }


def caption_metrics(path: Path, splits: Splits) -> Metrics:
    """The metrics of a captioning model's graph on the test images: how often each part is right, and all.

    A style is right if its level is: 30 % of the images have the lower, 30 % the upper, 40 % neither.
    """
    levels = Thresholds.of(splits.train).levels(splits.test.images, splits.test.labels)
    digits, *styles = run_in_parts(open_session(path), ["digit", *STYLES], {"images": splits.test.images})
    right = [digits.argmax(1) == splits.test.labels]
    right += [each.argmax(1) == levels[:, column] for column, each in enumerate(styles)]
    accuracies = {
        f"test_{name}_accuracy": _mean(each) for name, each in zip(("digit", *STYLES), right, strict=True)
    }
    return {
        "test_images": len(splits.test),
        **accuracies,
        "test_caption_accuracy": _mean(np.logical_and.reduce(right)),
    }


def prompted(search: Path, generator: Path, judge: Judge, splits: Splits) -> Metrics:
    """What a generator draws for prompts: PROMPTED_IMAGES of each meaning, chosen as /generate chooses them.

    prompt_digit: the fraction that the judge reads as the digit asked for. prompt_style: of those that show
    every style asked for; prompt_agreement: both. unchosen_style: prompt_style of the first candidates.
    """
    meanings = every_meaning()
    random = Random(CAPTION_SEED)
    texts = [caption(random, meaning, "test") for meaning in meanings]
    seen = _read(open_session(search), texts)
    drawing, reading = open_session(generator), open_session(captions_of(search))
    size = next(each.shape[1] for each in drawing.get_inputs() if each.name == "z")
    chosen, first = [], []
    for row, meaning in enumerate(meanings):
        candidates = CANDIDATES if any(level != ANY for level in meaning.levels) else 1
        z = draw_latents(PROMPT_SEED + row, PROMPTED_IMAGES * candidates, size)
        label = np.full(len(z), min(int(seen["digit"][row].argmax()), CLASSES - 1))
        (images,) = run_in_parts(drawing, ["images"], {"z": z, "label": label})
        (vectors,) = run_in_parts(reading, ["vector"], {"images": images})
        chosen.append(images[nearest(seen["vector"][row], vectors, candidates)])
        first.append(images[::candidates])
    kept = np.repeat(np.arange(len(meanings)), PROMPTED_IMAGES)
    digits = np.array([each.digit for each in meanings])[kept]
    asked = np.array([each.levels for each in meanings])[kept]
    thresholds = Thresholds.of(splits.train)
    images, plain = np.concatenate(chosen), np.concatenate(first)
    right = judge(images)[1] == digits
    suits = _suits(thresholds.levels(images, digits), asked)
    metrics: Metrics = {
        "generator": _identity(generator),
        "prompted_images": len(images),
        "prompt_digit": _mean(right),
        "prompt_style": _mean(suits),
        "prompt_agreement": _mean(right & suits),
        "unchosen_style": _mean(_suits(thresholds.levels(plain, digits), asked)),
    }
    return metrics | judge.identity


def test_captions() -> tuple[list[Meaning], list[str]]:
    """CAPTIONS_PER_MEANING captions of each meaning, of the test forms; always the same."""
    random = Random(CAPTION_SEED)
    meanings = [each for each in every_meaning() for _ in range(CAPTIONS_PER_MEANING)]
    return meanings, [caption(random, each, "test") for each in meanings]


def synonym_captions() -> tuple[list[Meaning], list[str]]:
    """SYNONYM_CAPTIONS captions of each unseen synonym; always the same."""
    random = Random(CAPTION_SEED)
    pairs = [
        with_synonym(random, style, level, word)
        for style, levels in SYNONYMS.items()
        for level, words in enumerate(levels)
        for word in words
        for _ in range(SYNONYM_CAPTIONS)
    ]
    return [meaning for meaning, _ in pairs], [text for _, text in pairs]


def right_meanings(seen: Mapping[str, NDArray[Any]], meanings: Sequence[Meaning]) -> NDArray[np.bool_]:
    """Whether digit and styles are read as they were meant: (n,)."""
    digits = np.array([CLASSES if each.digit is None else each.digit for each in meanings])
    levels = np.array([each.levels for each in meanings])
    right: NDArray[np.bool_] = seen["digit"].argmax(1) == digits
    for column, style in enumerate(STYLES):
        right &= seen[style].argmax(1) == levels[:, column]
    return right


def generator_of(models_dir: Path, name: str) -> Path:
    """The graph of a generator, by `name/version`. Raises EvaluationError."""
    folder = models_dir / name
    if not (folder / MANIFEST_FILE).is_file():
        raise EvaluationError(f"{folder} is missing, which draws for the prompts: train and export it first")
    return folder / MODEL_FILE


def _identity(graph: Path) -> str:
    manifest = read_manifest(graph.parent)
    return f"{manifest.name}/{manifest.version}"


def _suits(levels: NDArray[np.int64], asked: NDArray[np.int64]) -> NDArray[np.bool_]:
    suits: NDArray[np.bool_] = ((asked == ANY) | (asked == levels)).all(1)
    return suits


def _read(session: onnxruntime.InferenceSession, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
    names = ["vector", "understood", "digit", *STYLES, "index"]
    return dict(zip(names, run_in_parts(session, names, {"text": to_bytes(texts)}), strict=True))


def _mean(values: NDArray[Any]) -> float:
    return round(float(values.mean()), 6) if len(values) else 0.0
