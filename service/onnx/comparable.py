"""Computes a model's batches in any size, with what its outputs are rounded from, to compare the sizes."""

from dataclasses import replace
from pathlib import Path

from service.errors import EngineError
from service.models.manifest import Manifest
from service.onnx.equal_bits import Arrays, Run
from service.onnx.session import EngineOptions, explained, open_session
from service.onnx.unrounded import unrounded_tensors


def open_comparable(graph: Path, manifest: Manifest, options: EngineOptions) -> Run:
    """Open a session of its own, with more outputs. Both this and its runs raise EngineError."""
    try:
        unrounded = unrounded_tensors(graph)
    except ValueError as error:  # onnxruntime opens other formats than protobuf too
        raise EngineError(f"{graph} cannot be read: {error}") from error
    # Its inputs have no fixed addresses, which a CUDA graph would need, and its copies block.
    options = replace(options, cuda_graphs=False, overlap_copies=False)
    session = open_session(graph, options, unrounded)
    wanted = [*(spec.name for spec in manifest.outputs), *unrounded]

    def run(inputs: Arrays) -> Arrays:
        feeds = {spec.name: array for spec, array in zip(manifest.inputs, inputs, strict=True)}
        try:
            return tuple(session.run(wanted, feeds))
        except Exception as error:  # onnxruntime raises its own types
            raise explained(error, options, str(graph), len(inputs[0])) from error

    return run
