"""The command `confidence`: a published classifier with an out-of-distribution score and its threshold.

Works on model.onnx alone, without the torch network. The weights and the probabilities stay.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from service.models.folder import read_info
from service.models.manifest import MODEL_FILE, OOD_SCORE, UNKNOWN_SHA256, Manifest, TensorSpec
from training.cards.card import fill_page, table, with_section
from training.confidence.again import (
    copy_the_rest,
    measured_again,
    refreshed,
    version_to_replace,
    with_step,
    write_again,
)
from training.confidence.graph import features_of, with_score, without_score
from training.confidence.outliers import Images, outliers
from training.confidence.score import Score, fit
from training.cost import MULTIPLY_ADDS
from training.datasets.splits import Dataset, Splits, spread
from training.errors import ConfidenceError
from training.evaluation.abstention import ON_DIGITS, ON_FASHION, auroc, on_digits, on_fashion, scores
from training.onnx_files import open_session, run_in_parts, save_graph
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.sources import unscored
from training.temperature_scaling import PROBABILITIES
from training.versions import Target, read_verified, staging

RANKS = (16, 32, 64)
FITTED_IMAGES = 10_000
ABSTAINED = 0.01
"""The fraction of the validation images that the threshold lets abstain."""

WORST_AUROC = 0.98
"""On Fashion-MNIST's validation images; a model whose score is worse is not published."""

TOLERANCE = 1e-6
"""Of a probability: a second reader of the features may keep onnxruntime from fusing two nodes."""

SEED = 0
STEP = "python -m training confidence"


@dataclass(frozen=True)
class Chosen:
    """The score that did best on validation images.

    rank: its directions. aurocs: by kind of outlier. difference: the largest of any probability from the
    graph without the score. fitted: training images.
    """

    score: Score
    rank: int
    aurocs: Mapping[str, float]
    fitted: int
    difference: float = 0.0


def confidence(
    name: str,
    splits: Splits,
    fashion: Splits,
    models_dir: Path,
    version: int | None = None,
    fitted_images: int = FITTED_IMAGES,
    force: bool = False,
) -> Path:
    """Publish the model again, in its own version, with `ood_score` and `abstain_above`; returns its folder.

    version: None means the latest. force: replace the version, which must be asked for.
    The rank is chosen on validation images; test images are only measured.
    Raises SourceError, ConfidenceError, ExportError or EvaluationError, and then publishes nothing.
    """
    source, manifest = version_to_replace(name, splits, models_dir, version, force=force, what="a score")
    graph = without_score(onnx.load(source / MODEL_FILE))
    chosen = choose(graph, splits, outliers(fashion.validation, splits.validation, SEED), fitted_images)
    made = with_score(graph, chosen.score)
    with staging([name], Target(models_dir, manifest.version, force=True)) as (staged,):
        copy_the_rest(source, staged)
        save_graph(made, staged / MODEL_FILE)
        chosen = _compared(chosen, source, staged, splits.validation)
        threshold = _threshold(staged / MODEL_FILE, splits.validation)
        draft = _draft(manifest, threshold, models_dir)
        describe_graph(made, draft, commit())
        save_graph(made, staged / MODEL_FILE)
        measured = on_digits(staged / MODEL_FILE, threshold, splits.test)
        measured |= on_fashion(staged / MODEL_FILE, threshold, splits.test, fashion.test)
        finished = measured_again(draft, staged, measured)
        write_again(source, staged, finished, _page(read_info(source).card, finished, chosen), models_dir)
    return source


def choose(graph: onnx.ModelProto, splits: Splits, strange: Mapping[str, Images], count: int) -> Chosen:
    """Fit a score of each rank on training images and return the one that ranks outliers best.

    graph: without a score. strange: outliers by kind; `fashion` must be told apart with WORST_AUROC.
    The best has the highest mean AUROC over the kinds. Raises ConfidenceError.
    """
    name = features_of(graph)
    session = open_session(graph, [name])
    train = splits.train.images[spread(len(splits.train), count)]
    labels = splits.train.labels[spread(len(splits.train), count)]
    sets = {"train": train, "validation": splits.validation.images, **strange}
    features = {kind: run_in_parts(session, [name], {"images": some})[0] for kind, some in sets.items()}
    found = []
    ranks = [rank for rank in RANKS if rank < features["train"].shape[1]]
    for rank in ranks or [features["train"].shape[1] // 2]:
        score = fit(features["train"], labels, rank)
        inside = score.of(features["validation"])
        aurocs = {kind: auroc(inside, score.of(features[kind])) for kind in strange}
        found.append(Chosen(score, rank, aurocs, len(train)))
        told = ", ".join(f"{kind} {value:.4f}" for kind, value in aurocs.items())
        print(f"rank {rank}: AUROC on validation images: {told}")
    best = max(found, key=lambda each: float(np.mean([*each.aurocs.values()])))
    if best.aurocs["fashion"] < WORST_AUROC:
        raise ConfidenceError(
            f"AUROC on validation images is {best.aurocs['fashion']:.4f}, expected {WORST_AUROC} or more: "
            "the features do not tell digits from other images"
        )
    return best


def _compared(chosen: Chosen, source: Path, staged: Path, validation: Dataset) -> Chosen:
    """Return the choice with the difference that the score makes to probabilities.

    Raises ConfidenceError.
    """
    before, after = (
        run_in_parts(open_session(folder / MODEL_FILE), [PROBABILITIES], {"images": validation.images})[0]
        for folder in (source, staged)
    )
    difference = float(np.abs(before - after).max())
    if not difference <= TOLERANCE:
        raise ConfidenceError(
            f"probabilities differ by {difference:.3g} with the score, expected at most {TOLERANCE:g}"
        )
    return Chosen(chosen.score, chosen.rank, chosen.aurocs, chosen.fitted, difference)


def _threshold(path: Path, validation: Dataset) -> float:
    """Return the score above which ABSTAINED of the validation images lie, to four digits."""
    limit = float(np.quantile(scores(path, validation.images), 1 - ABSTAINED))
    if limit <= 0:
        raise ConfidenceError(f"the threshold would be {limit:.4g}, expected a number above 0")
    return float(f"{limit:.4g}")


def _draft(source: Manifest, threshold: float, models_dir: Path) -> Manifest:
    """The manifest before the new graph is written and measured."""
    ours = {MULTIPLY_ADDS, ON_DIGITS, *ON_FASHION}
    metrics = {key: value for key, value in source.metrics.items() if key not in ours}
    if "source" in metrics:  # it may have got a score since, which changes only its checksum
        metrics["source_sha256"] = read_verified(models_dir / str(metrics["source"])).sha256
    score = TensorSpec(name=OOD_SCORE, datatype="FP32", shape=(-1,))
    return source.model_copy(
        update={
            "outputs": (*unscored(source).outputs, score),
            "abstain_above": threshold,
            "sha256": UNKNOWN_SHA256,
            "metrics": metrics,
            "command": with_step(source.command, STEP),
        }
    )


def _page(card: str, made: Manifest, chosen: Chosen) -> str:
    """The model's card with the score's tensor, metrics and section; all other words stay."""
    page = refreshed(card, made)
    page = re.sub(rf"^\| output \| `{OOD_SCORE}` .*\n", "", page, flags=re.MULTILINE)
    page = re.sub(
        r"((?:^\| output \|.*\n)+)",
        rf"\1| output | `{OOD_SCORE}` | FP32 | [-1] |\n",
        page,
        flags=re.MULTILINE,
    )
    page = page.replace("the tensors are the same.", f"it has one tensor more, `{OOD_SCORE}`.")
    words = fill_page(
        "confidence",
        manifest=made,
        chosen=chosen,
        size=chosen.score.directions.shape[0],
        percent=100 * ABSTAINED,
        tolerance=TOLERANCE,
        aurocs=table((kind, f"{value:.4f}") for kind, value in chosen.aurocs.items()),
    )
    return with_section(page, words)
