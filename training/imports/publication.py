"""What both imports do with a graph to serve: run it in a batch, and publish it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto
from onnxruntime import InferenceSession

from service.models.manifest import MODEL_FILE, Manifest, sha256_of
from training import versions
from training.errors import EvaluationError, NetworkError
from training.imports.network import is_dynamic, silent
from training.onnx_files import open_graph, save_graph
from training.provenance.metadata import describe_graph
from training.terminal import notice
from training.versions import Target, staging, write_manifest

COMPARED_ROWS = 3

TOLERANCE, DYNAMIC_TOLERANCE = 1e-3, 0.1
"""The largest accepted difference between a row's answer in a batch and alone, as a fraction. The second one
is for networks that are quantised dynamically: the scale of a whole batch rounds each of its rows."""

ADVICE = "export the network with a free batch axis, in PyTorch by dynamic_shapes"

Tensors = Mapping[str, NDArray[Any]]


def run(session: InferenceSession, rows: Tensors) -> dict[str, Any]:
    """Return all outputs by name. Raises onnxruntime's own errors."""
    names = [each.name for each in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(rows), silent()), strict=True))


def run_batch(served: ModelProto, rows: Tensors) -> dict[str, Any]:
    """Return the outputs of the graph to serve for COMPARED_ROWS rows. Raises NetworkError."""
    try:
        return run(open_graph(served), rows)
    except Exception as error:  # onnxruntime raises its own types
        raise NetworkError(f"it does not run in a batch of {COMPARED_ROWS}; {ADVICE}: {error}") from None


def publish(
    served: ModelProto,
    name: str,
    target: Target,
    draft: Callable[[int], Manifest],
    summary: Callable[[Manifest], str],
) -> Path:
    """Publish models_dir/<name>/<version>; returns its folder.

    draft: makes a version's manifest without the graph's checksum. summary: tells what was published.
    Raises NetworkError and ExportError, and then publishes nothing.
    """
    with staging([name], target) as (folder,):
        made = draft(int(folder.name))
        describe_graph(served, made, commit="", license_name="")
        save_graph(served, folder / MODEL_FILE)
        write_manifest(folder, _completed(made, folder))
        notice(summary(made))
        if is_dynamic(served):
            notice("a row's answer depends a little on its batch: the network is quantised dynamically")
    return target.models_dir / name / folder.name


def _completed(draft: Manifest, folder: Path) -> Manifest:
    """Return a draft with the checksum of the graph in its folder and, if it can be counted, its cost."""
    try:
        return versions.completed(draft, folder, {})
    except EvaluationError as error:
        notice(f"the cost of a row is not known: {error}")
        return draft.model_copy(update={"sha256": sha256_of(folder / MODEL_FILE)})
