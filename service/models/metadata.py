"""Makes the manifest of a graph that lies without one, from the graph's own metadata and tensors.

Exports write the metadata (`training.provenance.metadata`) as `metadata_props`, which any ONNX tool shows.
Knows nothing of onnxruntime: the graph is not loaded, its weights are skipped.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from service.errors import ManifestError, RepositoryError
from service.models.class_labels import class_labels
from service.models.manifest import MANIFEST_FILE, MODEL_FILE, Manifest, first_problem, sha256_of
from service.models.protobuf import fields, message_of, messages_of, number_of, text_of
from service.models.verification import external_digests

PREFIX = "inkserve."
"""How the keys of our metadata begin: a graph may hold those of other tools too."""

TEXTS = ("task", "description", "preprocess", "abstain_above", "command")
"""The manifest's fields that metadata hold as they are, as text. `labels` is a JSON list of texts."""

METRICS = ("data", "data_digest")
"""The manifest's metrics that metadata hold: what is known before the graph is measured."""

UNNAMED = ("STRING", "unknown")
"""Datatypes of outputs that no manifest can name; what is no tensor has an unknown one."""

TENSOR_ADVICE = (
    "skl2onnx makes one of a ZipMap with the option zipmap=False, and python -m training import also"
)

_METADATA, _GRAPH = 14, 7
_INITIALIZERS, _INPUTS, _OUTPUTS, _INITIALIZERS_NAME = 5, 11, 12, 8
"""The fields of ModelProto, GraphProto and TensorProto that are read here, by number."""

_DATATYPES = (
    *("unknown", "FP32", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64"),
    *("STRING", "BOOL", "FP16", "FP64", "UINT32", "UINT64"),
)
"""The Open Inference Protocol names of TensorProto's datatypes, by number."""


def manifest_of_graph(folder: Path) -> Manifest:
    """Return the manifest of a version folder that has only a graph; its name and version are the folders'.

    Raises ManifestError if the graph cannot be read, or if its metadata do not make a manifest.
    """
    path = folder / MODEL_FILE
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            content = _manifest(data)
        content |= {
            "name": folder.parent.name,
            "version": int(folder.name),
            "sha256": sha256_of(path),
            "files": external_digests(folder),
        }
        return Manifest.model_validate(content)
    except ValidationError as error:
        raise _useless(folder, first_problem(error)) from error
    except (ValueError, RepositoryError) as error:
        raise _useless(folder, str(error)) from error
    except OSError as error:
        raise _useless(folder, error.strerror or str(error)) from error


def _useless(folder: Path, reason: str) -> ManifestError:
    return ManifestError(
        f"{folder / MANIFEST_FILE} is missing, and the metadata of {MODEL_FILE} cannot replace it: {reason}"
    )


def _manifest(data: mmap.mmap) -> dict[str, Any]:
    """Return what a graph tells of a manifest's content. Raises ValueError."""
    entries: dict[str, str] = {}
    tensors: dict[str, list[dict[str, Any]]] = {"inputs": [], "outputs": []}
    labels: list[str] = []
    for number, value in fields(data, range(len(data))):
        if number == _METADATA and isinstance(value, range):
            key, text = (text_of(data, value, each) for each in (1, 2))
            entries[key] = text
        elif number == _GRAPH and isinstance(value, range):
            tensors, labels = _tensors(data, value), class_labels(data, value)
    described = _described(entries)
    if "task" not in described:
        task = described["task"] = _task(tensors)
        described.setdefault(
            "description", f"A graph without a description. Its tensors are those of {task}."
        )
    outputs = _outputs(tensors["outputs"], described["task"])
    if outputs and outputs[0]["shape"][1:] == [len(labels)]:
        described.setdefault("labels", labels)
    return tensors | described | {"outputs": outputs}


def _outputs(tensors: list[dict[str, Any]], task: str) -> list[dict[str, Any]]:
    """Return the outputs that a manifest can name, a classifier's probabilities first. Raises ValueError."""
    outputs = [each for each in tensors if each["datatype"] not in UNNAMED]
    if task == "inference":
        return [each for each in outputs if each["shape"][:1] == [-1]] or outputs
    if task != "classification":
        return outputs
    # skl2onnx puts the label before the probabilities; onnxmltools declares it as that of a batch of 1.
    outputs.sort(key=_could_be_probabilities, reverse=True)
    if not any(map(_could_be_probabilities, outputs)):
        for each in tensors:
            if each["datatype"] == "unknown":
                seen = f"output {each['name']} is no tensor"
                raise ValueError(f"{seen}, expected FP32 [-1, classes]; {TENSOR_ADVICE}")
    return outputs[:1] + [each for each in outputs[1:] if each["shape"][:1] == [-1]]


def _task(tensors: Mapping[str, list[dict[str, Any]]]) -> str:
    """Return the task that a graph's tensors suit: classification, generation, or else inference.

    An encoder may look like a classifier, but fails when it is loaded: it gives no probabilities.
    """
    names = {each["name"] for each in tensors["inputs"]}
    if "z" in names and names <= {"z", "label"}:
        return "generation"
    suits = (each["datatype"] == "unknown" or _could_be_probabilities(each) for each in tensors["outputs"])
    return "classification" if len(names) == 1 and any(suits) else "inference"


def _could_be_probabilities(tensor: Mapping[str, Any]) -> bool:
    return (tensor["datatype"], len(tensor["shape"])) == ("FP32", 2)


def _described(entries: Mapping[str, str]) -> dict[str, Any]:
    """Return the part of a manifest that metadata hold. Raises ValueError."""
    own = {key.removeprefix(PREFIX): text for key, text in entries.items() if key.startswith(PREFIX)}
    content: dict[str, Any] = {name: own[name] for name in TEXTS if name in own}
    if "labels" in own:
        try:
            content["labels"] = from_json(own["labels"])
        except ValueError as error:
            seen = f"{PREFIX}labels begins {own['labels'][:40]!r}"
            raise ValueError(f"{seen}, expected a JSON list of texts: {error}") from None
    return content | {"metrics": {name: own[name] for name in METRICS if name in own}}


def _tensors(data: mmap.mmap, graph: range) -> dict[str, list[dict[str, Any]]]:
    """Return a graph's inputs and outputs."""
    inputs, outputs, initializers = [], [], set()
    for number, value in fields(data, graph):
        if not isinstance(value, range):
            continue
        if number == _INPUTS:
            inputs.append(_tensor(data, value))
        elif number == _OUTPUTS:
            outputs.append(_tensor(data, value))
        elif number == _INITIALIZERS:
            initializers.add(text_of(data, value, _INITIALIZERS_NAME))
    return {
        "inputs": [each for each in inputs if each["name"] not in initializers],  # as old graphs list them
        "outputs": outputs,
    }


def _tensor(data: mmap.mmap, value_info: range) -> dict[str, Any]:
    tensor_type = message_of(data, message_of(data, value_info, 2), 1)
    datatype = number_of(data, tensor_type, 1)
    shape = [_size(data, size) for size in messages_of(data, message_of(data, tensor_type, 2), 1)]
    known = datatype < len(_DATATYPES)
    name = text_of(data, value_info, 1)
    return {"name": name, "datatype": _DATATYPES[datatype if known else 0], "shape": shape}


def _size(data: mmap.mmap, dimension: range) -> int:
    """Return the size of an axis; -1 if it is free: named, unknown or, in a broken graph, negative."""
    size = number_of(data, dimension, 1)
    return size if 0 < size < 1 << 63 else -1
