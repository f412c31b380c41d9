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
    """Reads "=" as Kubernetes does, where PyYAML knows a tag of YAML 1.1 for it and no value of that tag."""


Loader.add_constructor("tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node))


@cache
def chart() -> helm_python.Chart:
    return helm_python.Chart.load(CHART)


def values_of(case: str) -> Values:
    values: Values = {} if case == "defaults" else yaml.safe_load(CI_VALUES[case].read_text())
    return values


def render(
    values: Values, name: str = "digits", of: helm_python.Chart | None = None, revision: int = 1
) -> list[Manifest]:
    """Every manifest but the notes."""
    files = (of or chart()).render(
        values, name=name, namespace="serving", revision=revision, is_upgrade=revision > 1
    )
    texts = [text for path, text in files.items() if not path.endswith("NOTES.txt")]
    return [manifest for text in texts for manifest in yaml.load_all(text, Loader) if manifest]


def one(manifests: list[Manifest], kind: str, name: str = "") -> Manifest:
    """The only manifest of the kind, or the only one of the name too."""
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
    """The containers of the service's pod by name: inkserve, or engine and http."""
    containers = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    return {container["name"]: container for container in containers}


def server(manifests: list[Manifest]) -> Manifest:
    """The container that answers HTTP."""
    (container,) = [each for each in servers(manifests).values() if "ports" in each]
    return container


def environment(container: Manifest) -> dict[str, str]:
    """As the kubelet makes it, in a pod of the name a-pod."""
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
    """Where each volume is mounted."""
    return {mount["name"]: mount["mountPath"] for mount in container.get("volumeMounts", [])}
