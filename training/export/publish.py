"""From a trained network to a published version: ONNX graph, parity, metrics, manifest, model card.

Nothing is published before the graph has been checked, compared with the torch network on real
inputs, and measured. A version appears whole or not at all. Knows nothing of any model family.
"""

import contextlib
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, Task, TensorSpec, sha256_of
from training.data.splits import Splits, notice
from training.runs.run import BEST_FILE, CONFIG_FILE, CURVES_FILE, METRICS_FILE, command_line

CARD_FILE = "README.md"
TRAINING_FILE = "training.jsonl"

# Batch sizes at which torch and onnxruntime are compared, besides all inputs in parts of 256.
PARITY_BATCHES = (1, 2, 7, 256)
DTYPES: dict[str, type[np.generic]] = {"UINT8": np.uint8, "INT64": np.int64, "FP32": np.float32}

Arrays = Mapping[str, NDArray[Any]]


class ExportError(Exception):
    """The model was not published; the message says what was seen and what was expected."""


@dataclass(frozen=True)
class Target:
    """Where to publish: models_dir/<name>/<version>; no version means the next free one.

    force: replace the version if it is there.
    """

    models_dir: Path
    version: int | None = None
    force: bool = False


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


@contextlib.contextmanager
def staging(names: Sequence[str], target: Target) -> Iterator[list[Path]]:
    """Empty folders, one for each name, laid out as models_dir; what they then hold is published.

    They appear in the given order, each by one rename, once the block has ended; if it raises, none does.
    Raises ExportError if the version is there already.
    """
    version = _version(names, target)
    target.models_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.models_dir) as temporary:
        staged = [Path(temporary) / name / version for name in names]
        for folder in staged:
            folder.mkdir(parents=True, mode=0o755)
        yield staged
        for name, folder in zip(names, staged, strict=True):
            place = target.models_dir / name / version
            _move_into_place(folder, place, target.force)
            notice(f"published {place}")


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
        command=_training_command(run_dir),
    )
    (folder / MANIFEST_FILE).write_text(manifest.model_dump_json(indent=2) + "\n")
    for name, draw in model.pictures.items():
        draw(path, folder / name)
    (folder / CARD_FILE).write_text(_card_text(manifest, model, splits, difference))
    _copy_log(run_dir, folder)


def load_weights(network: nn.Module, run_dir: Path) -> None:
    """Put the weights of a run's best epoch into a network, and set it to eval mode."""
    path = run_dir / BEST_FILE
    if not path.is_file():
        raise ExportError(f"{path} is missing: train the model first (python -m training train --help)")
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    network.eval()


def read_hyperparameters(run_dir: Path) -> dict[str, Any]:
    """The hyperparameters that a run was trained with."""
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ExportError(f"{path} is missing: train the model first (python -m training train --help)")
    hyperparameters: dict[str, Any] = json.loads(path.read_text())["hyperparameters"]
    return hyperparameters


def read_history(run_dir: Path) -> list[dict[str, float]]:
    """The metrics of a run's epochs."""
    path = run_dir / METRICS_FILE
    if not path.is_file():
        raise ExportError(f"{path} is missing: train the model first (python -m training train --help)")
    return [json.loads(line) for line in path.read_text().splitlines()]


def to_onnx(
    network: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], keep: Sequence[str] = ()
) -> onnx.ModelProto:
    """The network as an ONNX graph with a free batch axis, and no trace of this machine in it."""
    # Two rows: torch.export takes a batch of one for a constant.
    examples = tuple(
        torch.from_numpy(np.zeros((2, *spec.shape[1:]), DTYPES[spec.datatype])) for spec in inputs
    )
    rows = torch.export.Dim("rows")
    with _quiet_exporter():
        program = torch.onnx.export(
            network.eval(),
            examples,
            input_names=[spec.name for spec in inputs],
            output_names=[*(spec.name for spec in outputs), *keep],
            dynamic_shapes=tuple({0: rows} for _ in inputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    if program is None:
        raise ExportError("torch.onnx.export gave no program")
    graph = program.model_proto
    del graph.graph.output[len(outputs) :]
    strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    _check_signature(graph, inputs, outputs)
    return graph


def save_graph(graph: onnx.ModelProto, path: Path) -> None:
    """Write the graph as a file, the same bytes for the same graph."""
    path.write_bytes(graph.SerializeToString(deterministic=True))


def open_session(path: Path, extra_outputs: Sequence[str] = ()) -> onnxruntime.InferenceSession:
    """An onnxruntime session on the CPU; extra_outputs are inner tensors to be given out as well."""
    graph = onnx.load(path)
    graph.graph.output.extend(onnx.ValueInfoProto(name=name) for name in extra_outputs)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_in_parts(
    session: onnxruntime.InferenceSession, output_names: Sequence[str], inputs: Arrays, rows: int = 256
) -> list[NDArray[Any]]:
    """Run a session over inputs of any number of rows, in parts."""
    count = len(next(iter(inputs.values())))
    parts = [
        session.run(list(output_names), {name: array[i : i + rows] for name, array in inputs.items()})
        for i in range(0, count, rows)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def check_parity(
    network: nn.Module, path: Path, outputs: Sequence[TensorSpec], inputs: Arrays, tolerance: float
) -> float:
    """Compare torch with onnxruntime; returns the largest difference of any element of any output.

    All rows, in parts of 256, and the first rows at PARITY_BATCHES. The arg-max of a row of
    probabilities must be the same. Raises ExportError.
    """
    session = open_session(path)
    names = [spec.name for spec in outputs]
    count = len(next(iter(inputs.values())))
    largest = 0.0
    for size in (*PARITY_BATCHES, count):
        some = {name: array[:size] for name, array in inputs.items()}
        seen = run_in_parts(session, names, some)
        expected = _run_torch(network, some)
        for spec, left, right in zip(outputs, seen, expected, strict=False):
            largest = max(largest, _difference(spec, left, right, tolerance))
    return largest


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without torch 2.13's remarks on itself.

    That torchvision is absent; a deprecated call of its own; that two inputs share one batch axis.
    """
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)`", FutureWarning)
            warnings.filterwarnings("ignore", "# The axis name: rows will not be used", UserWarning)
            yield
    finally:
        logger.setLevel(level)


def _difference(spec: TensorSpec, seen: NDArray[Any], expected: NDArray[Any], tolerance: float) -> float:
    if seen.shape != expected.shape or seen.dtype != expected.dtype:
        raise ExportError(
            f"{spec.name} is {seen.dtype} {seen.shape} from onnxruntime, "
            f"{expected.dtype} {expected.shape} from torch"
        )
    difference = float(np.abs(seen.astype(np.float64) - expected.astype(np.float64)).max())
    if not difference <= tolerance:
        raise ExportError(
            f"{spec.name} differs by {difference:.3g} between torch and onnxruntime, "
            f"expected at most {tolerance:.3g}"
        )
    if spec.name == "probabilities" and (flips := int((seen.argmax(1) != expected.argmax(1)).sum())):
        raise ExportError(f"the most probable class differs in {flips} of {len(seen)} rows, expected none")
    return difference


@torch.no_grad()
def _run_torch(network: nn.Module, inputs: Arrays, rows: int = 256) -> list[NDArray[Any]]:
    tensors = [torch.from_numpy(array.copy()) for array in inputs.values()]
    split = zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)
    results = [network(*part) for part in split]
    parts = [(result,) if isinstance(result, torch.Tensor) else result for result in results]
    return [torch.cat(column).numpy() for column in zip(*parts, strict=True)]


def strip(graph: onnx.ModelProto) -> None:
    """Remove what the exporter tells of its machine: source lines, stack traces, module paths."""
    graph.doc_string = ""
    graph.graph.doc_string = ""
    del graph.metadata_props[:], graph.graph.metadata_props[:], graph.graph.value_info[:]
    parts = [*graph.graph.node, *graph.graph.input, *graph.graph.output, *graph.graph.initializer]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def _check_signature(
    graph: onnx.ModelProto, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> None:
    """The graph's inputs and outputs are those that the manifest will name."""
    values = [*graph.graph.input, *graph.graph.output]
    for spec, value in zip([*inputs, *outputs], values, strict=True):
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [-1 if size.dim_param else size.dim_value for size in tensor.shape.dim]
        seen, expected = (
            (value.name, dtype, shape),
            (spec.name, np.dtype(DTYPES[spec.datatype]), [*spec.shape]),
        )
        if seen != expected:
            raise ExportError(f"the graph has {seen}, expected {expected}")


def _version(names: Sequence[str], target: Target) -> str:
    """The version that is asked for, or the next one that is free for all the names."""
    parents = [target.models_dir / name for name in names]
    taken = [path for parent in parents for path in parent.glob("*") if path.name.isdecimal()]
    version = target.version or max((int(path.name) for path in taken), default=0) + 1
    existing = [parent / str(version) for parent in parents if parent / str(version) in taken]
    if existing and not target.force:
        raise ExportError(f"{existing[0]} is there already: give another --version, or --force")
    return str(version)


def _training_command(run_dir: Path) -> str:
    record: dict[str, str] = json.loads((run_dir / CONFIG_FILE).read_text())
    return f"{record['command']} && {command_line()}"


def _copy_log(run_dir: Path, staged: Path) -> None:
    for source, copy in ((METRICS_FILE, TRAINING_FILE), (CURVES_FILE, CURVES_FILE)):
        if (run_dir / source).is_file():
            shutil.copyfile(run_dir / source, staged / copy)


def _move_into_place(staged: Path, folder: Path, force: bool) -> None:
    """Make the version appear by one rename, after its bytes are on the disk.

    A version that is replaced is moved aside first; between the two renames there is none.
    """
    for path in [*staged.iterdir(), staged]:
        _sync(path)
    folder.parent.mkdir(exist_ok=True)
    if force and folder.exists():
        folder.rename(staged.with_name("replaced"))
    try:
        staged.rename(folder)
    except OSError as error:
        raise ExportError(f"{folder} could not be made: {error}") from error
    _sync(folder.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
