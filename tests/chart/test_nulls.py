"""null in the values is rejected or leaves the field out: never 0, "" or a weaker setting by accident."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import helm_python
import pytest

from tests.support.charts import CASES, CHART, Manifest, Values, chart, pod_specs, render, values_of

Steps = tuple[str | int, ...]
"""The way to a value or to a manifest's field: keys of maps and indices of lists."""

EXTRAS: Values = values_of("extras")
ADDITIONS: Values = {
    name: EXTRAS[name] for name in EXTRAS if name not in ("image", "settings", "gpu", "podMonitor")
}
SPLIT_ON_GPUS: Values = values_of("public") | {
    "split": {"enabled": True},
    "settings": {"provider": "cuda"},
    "models": values_of("object-store")["models"],
    "gpu": {"nodeLabels": {"nvidia.com/gpu.product": ["NVIDIA-L4"]}, "runtimeClassName": "nvidia"},
    "autoscaling": {"mode": "keda"},
    "podDisruptionBudget": {"maxUnavailable": 2},
    "tracing": values_of("tracing")["tracing"],
    "loadTest": values_of("load-test")["loadTest"],
    "tls": values_of("mutual-tls")["tls"],
    "terminationGracePeriodSeconds": 600,
    "imagePullSecrets": ["registry"],
}
WHOLE_ON_CPUS: Values = values_of("cpu") | {
    "settings": {"drainSeconds": 20, "shutdownTimeoutSeconds": 20},
    "models": values_of("pvc-hpa")["models"],
    "autoscaling": {"mode": "hpa"},
    "podDisruptionBudget": {"maxUnavailable": None, "minAvailable": "50%"},
    "apiKeys": {"inline": ["0123456789abcdef"]},
    "priorityClassName": "serving",
    "podMonitor": EXTRAS["podMonitor"],
}
"""Together, the two put nearly every value to use."""

CHANGED_ON_PURPOSE: dict[Steps, set[object]] = {
    ("terminationGracePeriodSeconds",): {60},  # computed
    ("podDisruptionBudget", "maxUnavailable"): {1},
    ("podDisruptionBudget", "minAvailable"): {1},  # maxUnavailable, instead
    ("tracing", "collector", "port"): {80},  # the endpoint's
    ("settings", "provider"): {"inkserve:0.2.0"},  # the image for the service's own default, cpu
    ("settings", "drainSeconds"): {"10", 35},  # the chart's choice, and the grace period that follows
    ("settings", "shutdownTimeoutSeconds"): {55},  # the grace period that follows the service's own default
}
"""What values whose null has a meaning of its own render instead."""


def merged(below: Values, above: Values) -> Values:
    """Return a copy of `below` with the values of `above`; unlike Helm, null stays null."""
    result = copy.deepcopy(below)
    for name, value in above.items():
        inner = result.get(name)
        result[name] = merged(inner, value) if isinstance(inner, dict) and isinstance(value, dict) else value
    return result


def children(value: Any) -> list[tuple[str | int, Any]]:
    if isinstance(value, dict):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, list) else []


def every_step(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """Yield the way to each value below, to maps and lists too."""
    for name, child in children(value):
        yield (*steps, name)
        yield from every_step(child, (*steps, name))


def with_null(values: Values, steps: Steps) -> Values:
    changed = copy.deepcopy(values)
    inner: Any = changed
    for name in steps[:-1]:
        inner = inner[name]
    inner[steps[-1]] = None
    return changed


def leaves(value: Any, steps: Steps = ()) -> Iterator[tuple[Steps, object]]:
    """Yield each leaf of a manifest. Items with a name go by it, so that one fewer moves no other."""
    for name, child in children(value):
        by_name = isinstance(name, int) and isinstance(child, dict) and isinstance(child.get("name"), str)
        yield from leaves(child, (*steps, child["name"] if by_name else name))
    if not children(value):
        yield steps, value


def fields(manifests: list[Manifest]) -> dict[Steps, object]:
    """Return every field of the manifests that values reach; the rules and the dashboards are files."""
    return {
        (manifest["kind"], manifest["metadata"]["name"], *steps): value
        for manifest in manifests
        if manifest["kind"] not in ("ConfigMap", "PrometheusRule")
        for steps, value in leaves(manifest)
    }


def rejections(whole: Values, within: Values) -> int:
    """Render `whole` with null in place of each value of `within`, and return how many Helm rejects."""
    before = fields(render(whole))
    rejected = 0
    for steps in every_step(within):
        try:
            after = fields(render(with_null(whole, steps)))
        except (helm_python.HelmValuesError, helm_python.HelmRenderError) as error:
            rejected += 1
            assert "inkserve:" in str(error)  # noqa: PT017
            assert str(steps[-1]).replace("/", "~1") in str(error)  # noqa: PT017
            continue
        changed = {at: value for at, value in after.items() if at not in before or before[at] != value}
        kept = {at: value for at, value in changed.items() if value != {}}  # a map whose last entry went
        assert set(kept.values()) <= CHANGED_ON_PURPOSE.get(steps, set()), steps
    return rejected


@pytest.mark.parametrize("values", [SPLIT_ON_GPUS, WHOLE_ON_CPUS], ids=["split-on-gpus", "whole-on-cpus"])
def test_null_is_rejected_or_leaves_its_field_out(values: Values) -> None:
    whole = merged(chart().values, values)
    assert rejections(whole, whole) > 100


def test_null_in_an_addition_is_rejected_or_leaves_its_field_out() -> None:
    whole = merged(chart().values, ADDITIONS | {"terminationGracePeriodSeconds": 600})
    assert rejections(whole, ADDITIONS) > 60


@pytest.mark.parametrize("name", ["runAsUser", "runAsGroup", "fsGroup"])
@pytest.mark.parametrize("case", CASES)
def test_an_id_that_is_null_is_left_out_and_root_stays_forbidden(case: str, name: str) -> None:
    pods = list(pod_specs(render(merged(values_of(case), {"podSecurity": {name: None}}))))
    assert pods
    for pod in pods:
        assert name not in pod["securityContext"]
        assert pod["securityContext"]["runAsNonRoot"] is True


def test_openshift_can_choose_every_id() -> None:
    for pod in pod_specs(render(values_of("openshift"))):
        assert pod["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}


def test_null_from_a_parent_chart_leaves_the_id_out_too(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "charts" / "inkserve")
    (tmp_path / "Chart.yaml").write_text("apiVersion: v2\nname: parent\nversion: 1.0.0\n")
    with helm_python.Chart.load(tmp_path) as parent:
        values = {"inkserve": {"podSecurity": {"runAsUser": None}}}
        for pod in pod_specs(render(values, of=parent)):
            assert "runAsUser" not in pod["securityContext"]
        with pytest.raises(helm_python.HelmValuesError, match="replicas"):
            render({"inkserve": {"replicas": None}}, of=parent)
