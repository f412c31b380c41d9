"""The chart, rendered by Helm's own engine."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm"
SCHEMAS = ROOT / "tests" / "chart" / "schemas"
CI_VALUES = {file.name.removesuffix("-values.yaml"): file for file in sorted((CHART / "ci").glob("*.yaml"))}
CASES = ["defaults", *CI_VALUES]

Values = dict[str, Any]
Manifest = dict[str, Any]


class Loader(yaml.CSafeLoader):
    """Reads "=" as a string, like Kubernetes; PyYAML gives it a tag of YAML 1.1 and cannot construct it."""


def _text(loader: Loader, node: yaml.Node) -> object:
    assert isinstance(node, yaml.ScalarNode)
    return loader.construct_scalar(node)


Loader.add_constructor("tag:yaml.org,2002:value", _text)


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def values_of(case: str) -> Values:
    values: Values = {} if case == "defaults" else yaml.safe_load(CI_VALUES[case].read_text())
    return values


def render(
    values: Values, name: str = "digits", of: helm_python.Chart | None = None, revision: int = 1
) -> list[Manifest]:
    """Render every manifest, without the notes."""
    files = (of or chart()).render(
        values, name=name, namespace="serving", revision=revision, is_upgrade=revision > 1
    )
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [manifest for text in texts for manifest in yaml.load_all(text, Loader) if manifest]


def one(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """Return the only manifest of the kind, or of the kind and name."""
    of_kind = [manifest for manifest in manifests if manifest["kind"] == kind]
    (found,) = [manifest for manifest in of_kind if name in ("", manifest["metadata"]["name"])]
    return found


def pod_specs(manifests: list[Manifest]) -> Iterator[Manifest]:
    for manifest in manifests:
        if manifest["kind"] == "Pod":
            yield manifest["spec"]
        elif manifest["kind"] in ("Deployment", "Job"):
            yield manifest["spec"]["template"]["spec"]


def servers(manifests: list[Manifest]) -> dict[str, Manifest]:
    """Return the service's containers by name: inkserve, or engine and http."""
    containers = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {container["name"]: container for container in containers}


def server(manifests: list[Manifest]) -> Manifest:
    """Return the container that serves HTTP."""
    (container,) = [each for each in servers(manifests).values() if "ports" in each]
    return container


def environment(container: Manifest) -> dict[str, str]:
    """Return the variables as the kubelet sets them in a pod named a-pod."""
    env: dict[str, str] = {}
    for entry in container["env"]:
        if "valueFrom" in entry:
            assert entry["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            value = "a-pod"
        else:
            value = re.sub(r"\$\((\w+)\)", lambda name: env.get(name[1], name[0]), entry["value"])
        assert entry["name"] not in env
        env[entry["name"]] = value
    return env


def mounts(container: Manifest) -> dict[str, str]:
    """Return each volume's mount path."""
    return {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
