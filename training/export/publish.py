"""Publishes trained networks: ONNX graph, parity, metrics, manifest, model card, bill of materials.

Nothing is published before the graph has been checked, compared with the torch network on real
inputs, and measured. A version appears whole or not at all. Knows nothing of any model family.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from service.models.folder import CARD_FILE
from service.models.manifest import (
    MODEL_FILE,
    UNKNOWN_SHA256,
    Manifest,
    Preprocess,
    Task,
    TensorSpec,
)
from training.cards.card import Card, command_lines, fill_page, table
from training.cards.front_matter import front_matter
from training.datasets.splits import Splits
from training.export.floor import check_floor
from training.export.parity import check_parity
from training.export.to_onnx import to_onnx
from training.onnx_files import Arrays, save_graph
from training.provenance.bom import Considerations, write_bom
from training.provenance.commit import commit
from training.provenance.metadata import describe_graph
from training.runs.finished import check_data, copy_log, copy_weights, read_command
from training.terminal import command_line
from training.versions import Target, completed, staging, write_manifest


@dataclass(frozen=True)
class Model:
    """One graph to publish, and the facts for its manifest and card.

    network: in eval mode; takes the inputs in order; gives the outputs and then `keep`, as a tuple if
        there are several.
    preprocess: what the service does to pictures for this model; see `service.models.manifest.Manifest`.
    keep: names of inner tensors that the graph keeps under these names without giving them out.
    parity_inputs: real inputs by name, all with the same number of rows.
    tolerance: the largest difference of any output element between torch and onnxruntime.
    ranked: outputs in the order of a ranking, in which two that are nearly equal may change places; these
        are not compared.
    measure: takes the path of model.onnx, gives the manifest's metrics. The path lies in a folder
        that is laid out as models_dir and already holds the graphs of all models published together.
    pictures: by file name, functions that do as `measure` does and write a PNG to the second path.
    """

    name: str
    task: Task
    network: nn.Module
    inputs: Sequence[TensorSpec]
    outputs: Sequence[TensorSpec]
    parity_inputs: Arrays
    tolerance: float
    measure: Callable[[Path], Mapping[str, float | int | str]]
    card: Card
    preprocess: Preprocess | None = None
    keep: Sequence[str] = ()
    ranked: Sequence[str] = ()
    pictures: Mapping[str, Callable[[Path, Path], None]] = field(default_factory=dict)


def publish(models: Sequence[Model], *, splits: Splits, run_dir: Path, target: Target) -> list[Path]:
    """Export, check, measure and publish the models of a run, all under one version number.

    They appear in the given order, each by one rename, after all have been checked and measured.
    Returns their folders. Raises ExportError, and then publishes nothing.
    """
    check_data(run_dir, splits)
    with staging([model.name for model in models], target) as staged:
        drafts = [_draft(*pair, splits, run_dir, target) for pair in zip(models, staged, strict=True)]
        differences = [_stage_graph(*each) for each in zip(models, staged, drafts, strict=True)]
        if target.weights:
            for folder in staged:
                copy_weights(run_dir, folder)
        for model, folder, draft, difference in zip(models, staged, drafts, differences, strict=True):
            metrics = _describe(model, folder, draft, difference, splits, run_dir).metrics
            check_floor(target.models_dir, model.name, metrics, int(folder.name), force=target.force)
    return [
        target.models_dir / model.name / folder.name for model, folder in zip(models, staged, strict=True)
    ]


def _draft(model: Model, folder: Path, splits: Splits, run_dir: Path, target: Target) -> Manifest:
    """The manifest before the graph is written and measured: without its checksum and most metrics."""
    return Manifest(
        name=model.name,
        version=int(folder.name),
        task=model.task,
        description=model.card.description,
        inputs=tuple(model.inputs),
        outputs=tuple(model.outputs),
        labels=tuple(splits.labels),
        preprocess=model.preprocess,
        default=target.keeps_default(model.name),
        sha256=UNKNOWN_SHA256,
        metrics={"data": splits.name, "data_digest": splits.digest},
        command=f"{read_command(run_dir)} && {command_line()}",
    )


def _stage_graph(model: Model, folder: Path, draft: Manifest) -> float:
    """Write the checked model.onnx; returns its largest difference from the torch network."""
    graph = to_onnx(model.network, model.inputs, model.outputs, model.keep)
    describe_graph(graph, draft, commit())
    save_graph(graph, folder / MODEL_FILE)
    return check_parity(
        model.network, folder / MODEL_FILE, model.outputs, model.parity_inputs, model.tolerance, model.ranked
    )


def _describe(
    model: Model, folder: Path, draft: Manifest, difference: float, splits: Splits, run_dir: Path
) -> Manifest:
    """Write everything that lies next to model.onnx; returns the manifest."""
    path = folder / MODEL_FILE
    manifest = completed(draft, folder, model.measure(path))
    write_manifest(folder, manifest)
    for name, draw in model.pictures.items():
        draw(path, folder / name)
    (folder / CARD_FILE).write_text(_page(manifest, model, splits, difference))
    copy_log(run_dir, folder)
    words = Considerations(model.card.architecture, model.card.intended_use, model.card.limits)
    write_bom(folder, manifest, words, commit())
    return manifest


def _page(manifest: Manifest, model: Model, splits: Splits, difference: float) -> str:
    """The model card."""
    tensors = [("input", spec) for spec in manifest.inputs] + [("output", spec) for spec in manifest.outputs]
    return front_matter(manifest) + fill_page(
        "model",
        manifest=manifest,
        card=model.card,
        splits=splits,
        train=len(splits.train),
        validation=len(splits.validation),
        test=len(splits.test),
        tensors=table((kind, f"`{spec.name}`", spec.datatype, [*spec.shape]) for kind, spec in tensors),
        metrics=table(manifest.metrics.items()),
        commands=command_lines(manifest.command),
        compared=len(next(iter(model.parity_inputs.values()))),
        difference=difference,
        tolerance=model.tolerance,
        pictures="\n\n".join(f"![{Path(name).stem}]({name})" for name in model.pictures),
    )
