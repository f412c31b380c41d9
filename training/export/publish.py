"""From a trained network to a published version: ONNX graph, parity, metrics, manifest, model card.

Nothing is published before the graph has been checked, compared with the torch network on real
inputs, and measured. A version appears whole or not at all. Knows nothing of any model family.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from service.models.folder import CARD_FILE
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, Task, TensorSpec, sha256_of
from training.datasets.splits import Splits
from training.export.parity import check_parity
from training.export.to_onnx import to_onnx
from training.onnx_files import Arrays, save_graph
from training.runs.finished import TRAINING_FILE, copy_log, read_command
from training.runs.run import CURVES_FILE
from training.terminal import command_line
from training.versions import Target, staging


@dataclass(frozen=True)
class Card:
    """The parts of a model card that the facts at hand do not give, each in a sentence or more."""

    description: str
    architecture: str
    training: str
    intended_use: str
    limits: str


@dataclass(frozen=True)
class Model:
    """One graph to publish, and what belongs beside it.

    network: in eval mode; takes the inputs in order; gives the outputs and then `keep`, as a tuple if
        they are several.
    keep: names of inner tensors that the graph keeps under these names without giving them out.
    parity_inputs: real inputs by name, all with the same number of rows.
    tolerance: the largest difference of any output element between torch and onnxruntime.
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
    keep: Sequence[str] = ()
    pictures: Mapping[str, Callable[[Path, Path], None]] = field(default_factory=dict)


def publish(models: Sequence[Model], *, splits: Splits, run_dir: Path, target: Target) -> list[Path]:
    """Export, check, measure and publish the models of a run, all under one version number.

    They appear in the given order, each by one rename, after all have been checked and measured.
    Returns their folders. Raises ExportError, and then publishes nothing.
    """
    with staging([model.name for model in models], target) as staged:
        differences = [_stage_graph(*pair) for pair in zip(models, staged, strict=True)]
        for model, folder, difference in zip(models, staged, differences, strict=True):
            _describe(model, folder, difference, splits, run_dir)
    return [
        target.models_dir / model.name / folder.name for model, folder in zip(models, staged, strict=True)
    ]


def _stage_graph(model: Model, folder: Path) -> float:
    """Write the checked model.onnx; returns its largest difference from the torch network."""
    save_graph(to_onnx(model.network, model.inputs, model.outputs, model.keep), folder / MODEL_FILE)
    return check_parity(
        model.network, folder / MODEL_FILE, model.outputs, model.parity_inputs, model.tolerance
    )


def _describe(model: Model, folder: Path, difference: float, splits: Splits, run_dir: Path) -> None:
    """Write everything that lies beside model.onnx."""
    path = folder / MODEL_FILE
    manifest = Manifest(
        name=model.name,
        version=int(folder.name),
        task=model.task,
        description=model.card.description,
        inputs=tuple(model.inputs),
        outputs=tuple(model.outputs),
        labels=tuple(splits.labels),
        sha256=sha256_of(path),
        metrics={**model.measure(path), "data": splits.name, "data_digest": splits.digest},
        command=f"{read_command(run_dir)} && {command_line()}",
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    for name, draw in model.pictures.items():
        draw(path, folder / name)
    (folder / CARD_FILE).write_text(_card_text(manifest, model, splits, difference))
    copy_log(run_dir, folder)


def _card_text(manifest: Manifest, model: Model, splits: Splits, difference: float) -> str:
    card, rows = model.card, len(next(iter(model.parity_inputs.values())))
    pictures = "".join(f"![{Path(name).stem}]({name})\n\n" for name in model.pictures)
    metrics = "\n".join(f"| {name} | {value} |" for name, value in manifest.metrics.items())
    tensors = "\n".join(
        f"| {kind} | `{spec.name}` | {spec.datatype} | {list(spec.shape)} |"
        for kind, specs in (("input", manifest.inputs), ("output", manifest.outputs))
        for spec in specs
    )
    return f"""# {manifest.name}, version {manifest.version}

{card.description}

| | tensor | datatype | shape |
|---|---|---|---|
{tensors}

## Data
{splits.name}: {len(splits.train)} training images, {len(splits.validation)} held out of them for \
validation, on which every choice was made, and {len(splits.test)} test images, used for the metrics \
below alone.

## Architecture
{card.architecture}

## Training
{card.training} The log of the run is in `{TRAINING_FILE}` and `{CURVES_FILE}`.

```
{manifest.command.replace(" && ", chr(10))}
```

## Metrics
Measured on the test set, with onnxruntime on the CPU, from `{MODEL_FILE}` alone; \
`python -m training evaluate {manifest.name}` repeats it.

| metric | value |
|---|---|
{metrics}

Over {rows} inputs the graph's outputs differ from the torch network's by at most {difference:.2g} \
(allowed: {model.tolerance:.2g}).

{pictures}## Intended use
{card.intended_use}

## Limits
{card.limits}
"""
