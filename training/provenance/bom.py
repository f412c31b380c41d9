"""A version's bill of materials: CycloneDX 1.6 in JSON, with the model card that the format defines.

cyclonedx-python-lib has no class for model cards, so the document is made here; a test validates it. The same
version gives the same bytes: there is no timestamp, and the serial number follows from the content.
"""

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.models.manifest import Manifest, TensorSpec, sha256_of
from service.models.signatures import SIGNATURE_FILE
from training.files import write_atomically
from training.provenance.measured import measured
from training.provenance.metadata import LICENSE

BOM_FILE = "bom.cdx.json"

DIGEST_OF_DATA = (
    "SHA-256 over the SHA-256 digests of the four IDX files, as `python -m training data` prints it"
)

Object = dict[str, Any]


@dataclass(frozen=True)
class Considerations:
    """What the model card says in words; an empty text is left out."""

    architecture: str = ""
    intended_use: str = ""
    limits: str = ""


def write_bom(folder: Path, manifest: Manifest, considerations: Considerations, commit: str) -> None:
    """Write a version's bill of materials, last: it holds the checksum of every other file of the folder.

    commit: that of the code that made the model; empty if it is unknown. The signature is not listed, as it
    is made of the finished folder.
    """
    _write(folder, _content(manifest, considerations, commit))


def update_bom(folder: Path) -> None:
    """Write a version's bill of materials again, if it has one, after files beside its graph have changed."""
    path = folder / BOM_FILE
    if not path.exists():
        return
    content: Object = json.loads(path.read_text())
    content["components"] = [part for part in content["components"] if part["type"] != "file"]
    for name in ("serialNumber", "version"):
        content.pop(name)
    _write(folder, content)


def _write(folder: Path, content: Object) -> None:
    """Add the folder's files and what identifies the content, and write it all."""
    content["components"] += [_file(name, digest) for name, digest in _files(folder).items()]
    refs = sorted(part["bom-ref"] for part in content["components"])
    content["dependencies"] = [{"ref": content["metadata"]["component"]["bom-ref"], "dependsOn": refs}]
    identity = json.dumps(content, sort_keys=True)
    content |= {"serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, identity).urn, "version": 1}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False)
    write_atomically(folder / BOM_FILE, (text + "\n").encode())


def _files(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file in a folder, by its path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {str(path.relative_to(folder)): path for path in paths}
    return {name: sha256_of(path) for name, path in names.items() if name not in (BOM_FILE, SIGNATURE_FILE)}


def _content(manifest: Manifest, considerations: Considerations, commit: str) -> Object:
    """All but the files and what depends on them."""
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "metadata": {"component": _model(manifest, considerations, commit)},
        "components": [*_data(manifest)],
    }


def _model(manifest: Manifest, considerations: Considerations, commit: str) -> Object:
    properties = {"inkserve:command": manifest.command, "inkserve:commit": commit}
    return {
        "type": "machine-learning-model",
        "bom-ref": _reference(manifest.name, manifest.version),
        "name": manifest.name,
        "version": str(manifest.version),
        "description": manifest.description,
        "licenses": [{"license": {"id": LICENSE}}],
        "hashes": _hashes(manifest.sha256),
        "properties": [{"name": name, "value": value} for name, value in properties.items() if value],
        "modelCard": _card(manifest, considerations),
        **_pedigree(manifest),
    }


def _pedigree(manifest: Manifest) -> Object:
    """The model that a quantised one is made from."""
    if "source" not in manifest.metrics:
        return {}
    name, _, version = str(manifest.metrics["source"]).partition("/")
    ancestor = {
        "type": "machine-learning-model",
        "bom-ref": _reference(name, version),
        "name": name,
        "version": version,
        "hashes": _hashes(str(manifest.metrics["source_sha256"])),
    }
    return {"pedigree": {"ancestors": [ancestor]}}


def _card(manifest: Manifest, considerations: Considerations) -> Object:
    parameters: Object = {
        "task": manifest.task,
        "datasets": [{"ref": each["bom-ref"]} for each in _data(manifest)],
        "inputs": _tensors(manifest.inputs),
        "outputs": _tensors(manifest.outputs),
    }
    if considerations.architecture:
        parameters["modelArchitecture"] = considerations.architecture
    words = {"useCases": considerations.intended_use, "technicalLimitations": considerations.limits}
    metrics = [
        {"type": name, "value": str(value), "slice": "test set"} for name, value in measured(manifest).items()
    ]
    return {
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
        "considerations": {name: [text] for name, text in words.items() if text},
    }


def _tensors(specs: Sequence[TensorSpec]) -> list[Object]:
    return [{"format": f"{spec.name}: {spec.datatype} {[*spec.shape]}"} for spec in specs]


def _data(manifest: Manifest) -> list[Object]:
    """The data set that the model was trained and measured on."""
    if "data_digest" not in manifest.metrics:
        return []
    name, digest = str(manifest.metrics.get("data", "unknown")), str(manifest.metrics["data_digest"])
    return [
        {
            "type": "data",
            "bom-ref": f"data:{name}",
            "name": name,
            "hashes": _hashes(digest),
            "data": [{"type": "dataset", "name": name, "description": DIGEST_OF_DATA}],
        }
    ]


def _file(name: str, digest: str) -> Object:
    return {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(digest)}


def _reference(name: str, version: int | str) -> str:
    return f"model:{name}/{version}"


def _hashes(sha256: str) -> list[Object]:
    return [{"alg": "SHA-256", "content": sha256}]
