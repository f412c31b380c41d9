"""The command `import --task inference`: a network whose tensors are served as they are, in any batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto, ValueInfoProto, compose, helper
from pydantic import ValidationError

from service.models.manifest import UNKNOWN_SHA256, Manifest, TensorSpec, first_problem
from service.models.tensors import DTYPES
from training.errors import NetworkError
from training.imports.batches import free_batch_axis
from training.imports.network import NUMBERS, Input, find_inputs, is_dynamic, random_rows, read_network
from training.imports.publication import (
    ADVICE,
    COMPARED_ROWS,
    DYNAMIC_TOLERANCE,
    TOLERANCE,
    Tensors,
    publish,
    run,
    run_batch,
)
from training.imports.rewrite import MORE_ROWS, PREFIX
from training.onnx_files import open_graph, replace_parts, without_output
from training.terminal import command_line
from training.versions import Target


def import_tensors(
    path: Path, name: str, target: Target, shape: Sequence[int] | None, sizes: Mapping[str, int]
) -> Path:
    """Publish models_dir/<name>/<version>, made from an ONNX file; returns its folder.

    shape, sizes: see `find_inputs`. Compares batches with single rows first. Raises NetworkError or
    ExportError, and then publishes nothing.
    """
    model = read_network(path)
    inputs = find_inputs(model, shape, sizes)
    rows = random_rows(inputs, COMPARED_ROWS)
    expected, lost = _each_alone(model, inputs, rows)
    served = _served(model, inputs, expected)
    _check_equal(served, rows, expected)
    return publish(
        served,
        name,
        target,
        lambda version: _draft(name, version, target, inputs, expected),
        lambda made: _summary(inputs, made, lost),
    )


def _each_alone(model: ModelProto, inputs: Sequence[Input], rows: Tensors) -> tuple[Tensors, list[str]]:
    """Return the outputs that have a row for each of the input, each (rows, ...), and describe the others.

    A fixed batch is filled with copies of one row. Raises NetworkError if no output has rows.
    """
    size = inputs[0].batch or 1
    try:
        session = open_graph(model)
        answers = [
            run(
                session, {key: np.repeat(values[row : row + 1], size, axis=0) for key, values in rows.items()}
            )
            for row in range(COMPARED_ROWS)
        ]
    except Exception as error:  # onnxruntime raises its own types
        raise NetworkError(f"it does not run with random rows: {error}") from None
    found, lost = {}, []
    for name in answers[0]:
        made = [np.asarray(answer[name]) for answer in answers]
        known = made[0].dtype in DTYPES.values() and all(each.shape[:1] == (size,) for each in made)
        if known and len({each.shape for each in made}) == 1:
            found[name] = np.stack([each[0] for each in made])
        else:
            lost.append(f"{name} {made[0].dtype} {list(made[0].shape)}")
    if not found:
        raise NetworkError(
            f"for {size} rows the outputs are {', '.join(lost)}, expected one with a row for each"
        )
    return found, lost


def _served(model: ModelProto, inputs: Sequence[Input], outputs: Tensors) -> ModelProto:
    """Return the graph to serve, with these outputs. Its own names get a prefix, so that ours are free."""
    served = compose.add_prefix(model, PREFIX)
    batch = inputs[0].batch
    if batch is not None:
        rows = random_rows(inputs, batch + MORE_ROWS)
        free_batch_axis(served, batch, {PREFIX + name: values for name, values in rows.items()})
    graph = served.graph
    first = [helper.make_node("Identity", [each.name], [PREFIX + each.name]) for each in inputs]
    last = [helper.make_node("Identity", [PREFIX + name], [name]) for name in outputs]
    replace_parts(graph.node, [*first, *graph.node, *last])
    replace_parts(graph.input, [_value(each.name, each.datatype, each.shape) for each in inputs])
    replace_parts(
        graph.output, [_value(name, _number_of(values), values.shape[1:]) for name, values in outputs.items()]
    )
    return without_output(served, "")


def _value(name: str, datatype: int, row: Sequence[int]) -> ValueInfoProto:
    return helper.make_tensor_value_info(name, datatype, ["batch", *row])


def _number_of(values: NDArray[Any]) -> int:
    """Return ONNX's number of an array's datatype."""
    return helper.np_dtype_to_tensor_dtype(values.dtype)


def _check_equal(served: ModelProto, rows: Tensors, expected: Tensors) -> None:
    """Check that the graph gives a batch what the network gives each row. Raises NetworkError."""
    made = run_batch(served, rows)
    tolerance = DYNAMIC_TOLERANCE if is_dynamic(served) else TOLERANCE
    for name, values in expected.items():
        if not _agree(made[name], values, tolerance):
            raise NetworkError(
                f"a batch of {COMPARED_ROWS} rows gives another {name} than each row alone, expected the "
                f"same within {tolerance:g} of its largest number; {ADVICE}"
            )


def _agree(made: NDArray[Any], expected: NDArray[Any], tolerance: float) -> bool:
    if made.shape != expected.shape or expected.dtype.kind != "f":
        return np.array_equal(made, expected)
    finite = np.abs(expected[np.isfinite(expected)], dtype=np.float64)
    allowed = tolerance * finite.max(initial=0)
    return np.allclose(made, expected, rtol=0, atol=allowed, equal_nan=True)


def _draft(name: str, version: int, target: Target, inputs: Sequence[Input], outputs: Tensors) -> Manifest:
    """The manifest without the graph's checksum. Raises NetworkError."""
    try:
        return Manifest(
            name=name,
            version=version,
            task="inference",
            description="A network that another program exported to ONNX.",
            inputs=tuple(
                TensorSpec(name=each.name, datatype=NUMBERS[each.datatype], shape=(-1, *each.shape))
                for each in inputs
            ),
            outputs=tuple(
                TensorSpec(
                    name=key,
                    datatype=NUMBERS[_number_of(values)],
                    shape=(-1, *values.shape[1:]),
                )
                for key, values in outputs.items()
            ),
            default=target.keeps_default(name),
            sha256=UNKNOWN_SHA256,
            command=command_line(),
        )
    except ValidationError as error:
        raise NetworkError(first_problem(error)) from None


def _summary(inputs: Sequence[Input], made: Manifest, lost: Sequence[str]) -> str:
    """Name the tensors, as /v2/models/{name} does. lost: describes the outputs that were left out."""
    lines = [f"left out, because they have no row for each of the input: {', '.join(lost)}"] if lost else []
    lines += [
        f"{kind} {spec.name}: {spec.datatype} {list(spec.shape)}"
        for kind, specs in (("input", made.inputs), ("output", made.outputs))
        for spec in specs
    ]
    if inputs[0].batch is not None:
        lines.append(f"batches of any size, no longer only of {inputs[0].batch}")
    return "\n".join(lines)
