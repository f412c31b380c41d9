"""The command `import`: a classifier that another program exported to ONNX, published to take pictures.

Works on the ONNX file alone, and needs no data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto
from pydantic import ValidationError

from service.models.manifest import (
    UNKNOWN_SHA256,
    Manifest,
    Preprocess,
    TensorSpec,
    first_problem,
)
from training.errors import NetworkError
from training.imports.hints import Hints, read_hints, read_labels
from training.imports.network import (
    NUMBERS,
    Input,
    Network,
    find_input,
    is_dynamic,
    read_network,
)
from training.imports.normalization import Normalization
from training.imports.output import Holds, Output, find_output
from training.imports.publication import (
    ADVICE,
    COMPARED_ROWS,
    DYNAMIC_TOLERANCE,
    TOLERANCE,
    publish,
    run_batch,
)
from training.imports.rewrite import IMAGES, PROBABILITIES, VALUES, rewrite
from training.terminal import command_line
from training.versions import Target

FLOAT16_TOLERANCE = 3e-2
"""`TOLERANCE` of networks in float16."""


@dataclass(frozen=True)
class Options:
    """The options of the command line. None: other files give the value, or it is the default.

    shape: of a row, as the network takes it. scale, mean, std, bgr: see `Normalization`. output: its name.
    holds: what it holds. labels: a text file with a class per line.
    """

    shape: Sequence[int] | None = None
    scale: float | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    bgr: bool = False
    output: str | None = None
    holds: Holds | None = None
    labels: Path | None = None
    preprocess: Preprocess | None = None


def import_network(path: Path, name: str, target: Target, options: Options) -> Path:
    """Publish models_dir/<name>/<version>, made from an ONNX file; returns its folder.

    Compares the graph with the network on random pictures first. Raises NetworkError or ExportError, and then
    publishes nothing.
    """
    model = read_network(path)
    hints = read_hints(path, model)
    normalization = _normalization(options, hints.normalization)
    given = find_input(model, options.shape, hints.shape, pictures=options.preprocess is not None)
    if given.layout is not None:
        normalization.check(given.channels)
    elif normalization != Normalization():
        raise NetworkError(
            f"the network gets {normalization}, but rows of {list(given.shape)} are no pictures"
        )
    network = Network(model, given, normalization)
    rows = network.random_rows(COMPARED_ROWS)
    answers = network.run(rows)
    output = find_output(model, network.outputs, answers, options.output, options.holds)
    served = rewrite(model, given, output, normalization)
    _check_equal(served, given, rows, output.probabilities(answers[network.outputs.index(output.name)]))
    return publish(
        served,
        name,
        target,
        lambda version: _draft(name, version, target, given, output, options, hints),
        lambda made: _summary(given, output, normalization, made),
    )


def _normalization(options: Options, hint: Normalization) -> Normalization:
    return Normalization(
        hint.scale if options.scale is None else options.scale,
        hint.mean if options.mean is None else tuple(options.mean),
        hint.std if options.std is None else tuple(options.std),
        options.bgr or hint.bgr,
    )


def _check_equal(served: ModelProto, given: Input, rows: NDArray[Any], expected: NDArray[np.float64]) -> None:
    """Check that the graph gives a batch the probabilities that the network gives. Raises NetworkError."""
    made = run_batch(served, {served.graph.input[0].name: rows})[PROBABILITIES]
    tolerance = FLOAT16_TOLERANCE if given.dtype == np.float16 else TOLERANCE
    tolerance = DYNAMIC_TOLERANCE if is_dynamic(served) else tolerance
    if made.shape != expected.shape or not np.allclose(made, expected, rtol=tolerance, atol=1e-6):
        raise NetworkError(
            f"a batch of {len(rows)} rows gives other probabilities than each row alone, expected the same "
            f"within {tolerance:g}; {ADVICE}"
        )


def _draft(
    name: str, version: int, target: Target, given: Input, output: Output, options: Options, hints: Hints
) -> Manifest:
    """The manifest without the graph's checksum. Raises NetworkError."""
    pixels = given.layout is not None
    try:
        return Manifest(
            name=name,
            version=version,
            task="classification",
            description="A classifier that another program exported to ONNX.",
            inputs=(
                TensorSpec(
                    name=IMAGES if pixels else VALUES,
                    datatype="UINT8" if pixels else NUMBERS[given.datatype],
                    shape=(-1, *given.served_shape),
                ),
            ),
            outputs=(TensorSpec(name=PROBABILITIES, datatype="FP32", shape=(-1, max(2, output.classes))),),
            labels=hints.labels if options.labels is None else read_labels(options.labels),
            preprocess=options.preprocess or (hints.preprocess if pixels else None),
            default=target.keeps_default(name),
            sha256=UNKNOWN_SHA256,
            command=command_line(),
        )
    except ValidationError as error:
        raise NetworkError(first_problem(error)) from None


def _summary(given: Input, output: Output, normalization: Normalization, made: Manifest) -> str:
    """Describe the published model to a reader who knows how the network was trained."""
    parts = [f"input: {made.inputs[0].datatype} {list(made.inputs[0].shape)}"]
    if given.layout is not None:
        parts[0] += f", pictures by {made.picture_preprocess}"
        parts.append(f"the network gets {normalization}")
    missing = ("a sigmoid" if output.classes == 1 else "a softmax") if output.logits else ""
    parts.append(f"classes: {len(made.labels)}" + (f", after {missing} that was added" if missing else ""))
    if given.batch is not None:
        parts.append(f"batches of any size, no longer only of {given.batch}")
    return "\n".join(parts)
