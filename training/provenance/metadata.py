"""Writes a version's description into its graph, as `metadata_props`: a file that is copied alone keeps it.

The service reads it if a version has no manifest (`service.models.metadata`, which names the keys).
"""

import json

import onnx

from service.models.manifest import Manifest
from service.models.metadata import METRICS, PREFIX, TEXTS

LICENSE = "Apache-2.0"
"""The licence of the models that this project makes, as SPDX names it."""


def describe_graph(
    graph: onnx.ModelProto, manifest: Manifest, commit: str, license_name: str = LICENSE
) -> None:
    """Replace our metadata in a graph; what other tools wrote there stays.

    The same facts give the same bytes.

    manifest: its sha256 is not used, as it is that of the graph with these metadata.
    commit: that of the code that made the graph; empty if it is unknown, as license_name may be.
    """
    others = {each.key: each.value for each in graph.metadata_props if not each.key.startswith(PREFIX)}
    ours = {PREFIX + name: value for name, value in _facts(manifest, commit, license_name).items() if value}
    del graph.metadata_props[:]
    for key, value in sorted((others | ours).items()):
        graph.metadata_props.add(key=key, value=value)


def _facts(manifest: Manifest, commit: str, license_name: str) -> dict[str, str]:
    return {
        "name": manifest.name,
        "version": str(manifest.version),
        **{name: str(getattr(manifest, name) or "") for name in TEXTS},
        "labels": json.dumps(manifest.labels, ensure_ascii=False),
        **{name: str(manifest.metrics.get(name, "")) for name in METRICS},
        "license": license_name,
        "commit": commit,
    }
