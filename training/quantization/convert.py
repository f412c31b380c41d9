"""The command `convert`: a published classifier or generator in float16, checked, measured and published.

Works on model.onnx alone, without the torch network.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from service.content.latents import draw_latents
from service.models.folder import CARD_FILE
from service.models.manifest import FP16_SUFFIX, MODEL_FILE, Manifest, Task
from training.cards.card import command_lines, fill_page, table
from training.cards.front_matter import front_matter
from training.datasets.splits import Dataset, Splits, load
from training.errors import QuantizationError
from training.evaluation.abstention import ON_FASHION, scores
from training.evaluation.classification import readings
from training.evaluation.evaluate import measure
from training.evaluation.generation import SAMPLES_SEED, draw, largest_change
from training.evaluation.significance import mcnemar
from training.onnx_files import Arrays, save_graph
from training.provenance.bom import write_bom
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.quantization.fp16 import rounded, to_fp16
from training.quantization.int8 import load_float32
from training.quantization.speed import ROUNDS, cpu_name, measure_speed, speed_rows
from training.sources import check_source, considerations_of, variant_draft, version_folder
from training.versions import Target, completed, read_verified, staging, write_manifest

ALLOWED_LOSS_POINTS = 0.02
ALLOWED_LEVELS = 2
"""The largest accepted difference of a generated pixel, in grey levels of 255."""

SCORE_TOLERANCE = 0.01
"""The largest accepted difference of an `ood_score`, as a fraction of it or, if larger, of the threshold."""

TASKS: tuple[Task, ...] = ("classification", "generation")
TIMED_ROWS = 256


def convert(
    name: str,
    splits: Splits,
    outliers_dir: Path,
    models_dir: Path,
    version: int | None = None,
    allowed_loss_points: float = ALLOWED_LOSS_POINTS,
    force: bool = False,
) -> Path:
    """Publish <name>-fp16 under the version of the model that it is made from; returns its folder.

    outliers_dir: Fashion-MNIST, which is read if the model has a score that was measured on it.
    version: None means the latest. force: replace the float16 version if it exists.
    Raises SourceError, QuantizationError, ExportError or EvaluationError, and then publishes nothing.
    """
    source = version_folder(models_dir / name, version)
    manifest = read_verified(source)
    check_source(manifest, splits, TASKS)
    fashion = load(outliers_dir) if ON_FASHION[0] in manifest.metrics else None
    graph = to_fp16(load_float32(source / MODEL_FILE))
    target = Target(models_dir, manifest.version, force)
    draft = variant_draft(manifest, FP16_SUFFIX, "In 16-bit floats.", splits, target)
    describe_graph(graph, draft, commit())
    with staging([name + FP16_SUFFIX], target) as (staged,):
        save_graph(graph, staged / MODEL_FILE)
        both = _Graphs(source / MODEL_FILE, staged / MODEL_FILE, rounded(graph))
        seen = _compare(both, manifest, splits, fashion, allowed_loss_points)
        expected = manifest.metrics | {"source": f"{name}/{manifest.version}"}
        measurable = draft.model_copy(update={"metrics": expected})
        test_outliers = None if fashion is None else fashion.test
        made = completed(draft, staged, measure(measurable, staged, splits, models_dir, test_outliers))
        write_manifest(staged, made)
        (staged / CARD_FILE).write_text(_page(manifest, made, both, seen, splits))
        write_bom(staged, made, considerations_of(source), commit())
    return models_dir / made.name / staged.name


@dataclass(frozen=True)
class _Graphs:
    """The files before and after the conversion, and what a GPU computes with the second."""

    source: Path
    made: Path
    on_gpu: onnx.ModelProto

    def ways(self) -> list[tuple[str, Path | onnx.ModelProto]]:
        """The new graph as both kinds of devices compute it, and their names."""
        return [("a CPU's arithmetic", self.made), ("a GPU's arithmetic", self.on_gpu)]


def _compare(
    graphs: _Graphs, manifest: Manifest, splits: Splits, fashion: Splits | None, allowed_points: float
) -> str:
    """Compare the new graph, in both kinds of arithmetic, with its source; returns the card's words.

    Raises QuantizationError.
    """
    if manifest.task == "generation":
        return _compare_images(graphs, splits.test)
    words = [_compare_labels(graphs, splits.test, allowed_points)]
    limit = manifest.abstain_above
    if limit is not None:
        sets = [("test images", splits)] + ([("images of Fashion-MNIST", fashion)] if fashion else [])
        found = [
            f"{_compare_scores(graphs, some, limit):,} of {len(some.test):,} {kind}" for kind, some in sets
        ]
        words.append(f"The advice to abstain differs for {' and for '.join(found)}.")
    return " ".join(words)


def _compare_labels(graphs: _Graphs, test: Dataset, allowed_points: float) -> str:
    before = readings(graphs.source, test)
    for arithmetic, graph in graphs.ways():
        after = readings(graph, test)
        loss = round(100 * float(before.correct.mean() - after.correct.mean()), 4)
        if loss > allowed_points:
            raise QuantizationError(
                f"fp16 loses {loss:.2f} percentage points of accuracy in {arithmetic} (now "
                f"{after.correct.mean():.4f}), expected at most {allowed_points:.2f}: see --allow-loss"
            )
    pairs = mcnemar(before.correct, after.correct)
    wrong, were = int((~after.correct).sum()), int((~before.correct).sum())
    changed = int((before.probabilities.argmax(1) != after.probabilities.argmax(1)).sum())
    return (
        f"So computed, it has {wrong:,} errors in {len(test):,} test images, the source {were:,}; "
        f"{changed:,} labels differ, of which {pairs.only_first} are right only in the source and "
        f"{pairs.only_second} only here (McNemar's p = {pairs.p_value:.2g})."
    )


def _compare_scores(graphs: _Graphs, splits: Splits, threshold: float) -> int:
    """Compare the scores of validation images; returns how many test images get another advice."""
    pair = (graphs.source, graphs.on_gpu)
    before, after = (scores(graph, splits.validation.images) for graph in pair)
    difference = float((np.abs(before - after) / np.maximum(np.abs(before), threshold)).max())
    if not difference <= SCORE_TOLERANCE:  # it is not a number if a score overflows
        raise QuantizationError(
            f"ood_score differs by {100 * difference:.3g} % in a GPU's arithmetic, expected at most "
            f"{100 * SCORE_TOLERANCE:g} %"
        )
    was, now = (scores(graph, splits.test.images) > threshold for graph in pair)
    return int((was != now).sum())


def _compare_images(graphs: _Graphs, test: Dataset) -> str:
    before = draw(graphs.source, test.labels)
    for arithmetic, graph in graphs.ways():
        after = draw(graph, test.labels)
        largest = largest_change(before, after)
        if largest > ALLOWED_LEVELS:
            raise QuantizationError(
                f"images differ by {largest} of 255 grey levels in {arithmetic}, expected at most "
                f"{ALLOWED_LEVELS}"
            )
    return (
        f"So computed, {len(test):,} images differ from the source's by at most {largest} of 255 grey "
        f"levels, in {100 * float((before != after).mean()):.2f} % of their pixels."
    )


def _page(source: Manifest, made: Manifest, graphs: _Graphs, seen: str, splits: Splits) -> str:
    """The model card."""
    files = graphs.source, graphs.made
    before, after = (f"{file.stat().st_size:,}" for file in files)
    return front_matter(made) + fill_page(
        "fp16",
        manifest=made,
        source=f"{source.name}/{source.version}",
        onnxruntime=onnxruntime.__version__,
        kept=_kept(source),
        seen=seen,
        before=before,
        after=after,
        commands=command_lines(made.command),
        metrics=table(made.metrics.items()),
        rounds=ROUNDS,
        cpu=cpu_name(),
        speeds=table(speed_rows(measure_speed(*files, _inputs(made, splits)))),
    )


def _kept(source: Manifest) -> str:
    """What the graph computes in float32, as the end of a sentence."""
    if source.task == "generation":
        return ""
    return ", except the softmax" + (" and the out-of-distribution score" if source.abstain_above else "")


def _inputs(manifest: Manifest, splits: Splits) -> Arrays:
    """Validation images, or the z of samples with as many labels."""
    z = manifest.input("z")
    if z is None:
        return {manifest.inputs[0].name: splits.validation.images[:TIMED_ROWS]}
    drawn = draw_latents(SAMPLES_SEED, TIMED_ROWS, z.shape[1])
    labels = np.arange(TIMED_ROWS) % max(1, len(manifest.labels))
    return {"z": drawn} | ({"label": labels} if manifest.input("label") else {})
