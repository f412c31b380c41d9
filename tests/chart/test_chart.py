"""The chart, rendered by Helm's own engine and validated against Kubernetes' schemas."""

import base64
import copy
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import helm_python
import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from pydantic import ValidationError

from helm.files.smoke import first_key
from helm.settings_tables import chart_name
from service.http.api_keys import ApiKeys
from service.observability.metrics import Metrics
from service.settings import RENAMED, RESERVED, Settings, load_settings
from tests.support.charts import (
    CASES,
    CHART,
    ROOT,
    SCHEMAS,
    Manifest,
    Values,
    chart,
    environment,
    mounts,
    one,
    pod_specs,
    render,
    server,
    servers,
    values_of,
)
from tests.support.json_values import FREE_FORM
from tests.support.json_values import values_of as any_values_of

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
CUSTOM = {
    "monitoring.coreos.com/v1 ServiceMonitor": "servicemonitor",
    "monitoring.coreos.com/v1 PodMonitor": "podmonitor",
    "monitoring.coreos.com/v1 PrometheusRule": "prometheusrule",
    "keda.sh/v1alpha1 ScaledObject": "scaledobject",
    "gateway.networking.k8s.io/v1 HTTPRoute": "httproute",
}
OLDEST_KUBERNETES = "1.27"
NEWEST_KUBERNETES = "1.37"


def validate(manifest: Manifest, kubernetes: str) -> None:
    schema = CUSTOM.get(f"{manifest['apiVersion']} {manifest['kind']}")
    if schema:
        jsonschema.validate(manifest, json.loads((SCHEMAS / f"{schema}.json").read_text()))
    else:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)


@pytest.mark.parametrize("case", CASES)
def test_lint_finds_no_problem(case: str) -> None:
    found = helm_python.lint(CHART, values_of(case), strict=True)
    assert found["errors"] == []
    assert found["messages"] == []


@pytest.mark.parametrize("kubernetes", [OLDEST_KUBERNETES, NEWEST_KUBERNETES])
@pytest.mark.parametrize("case", CASES)
def test_every_manifest_matches_its_strict_schema(case: str, kubernetes: str) -> None:
    manifests = render(values_of(case))
    newer = {
        "image-volume-keda": ["Deployment"],  # volumes of images came with 1.31
        "public": ["Deployment"],  # preStop.sleep came with 1.29
        "split": ["Deployment"],
        "extras": ["Deployment", "Service"],  # trafficDistribution came with 1.30
    }.get(case, [])
    for manifest in manifests:
        own = manifest["metadata"]["name"] == "digits-inkserve"
        if own and manifest["kind"] in newer and kubernetes == OLDEST_KUBERNETES:
            with pytest.raises(kubernetes_validate.ValidationError):
                validate(manifest, kubernetes)
        else:
            validate(manifest, kubernetes)


def test_a_wrong_manifest_fails_its_schema() -> None:
    manifests = [
        each for case in ("public", "image-volume-keda", "extras") for each in render(values_of(case))
    ]
    for kind in ("Deployment", "ServiceMonitor", "PodMonitor", "PrometheusRule", "ScaledObject", "HTTPRoute"):
        wrong = copy.deepcopy(next(manifest for manifest in manifests if manifest["kind"] == kind))
        wrong["spec"]["notAField"] = 1
        with pytest.raises(jsonschema.ValidationError, match="notAField"):
            validate(wrong, NEWEST_KUBERNETES)


def test_the_cases_render_every_template() -> None:
    rendered = set()
    for case in CASES:
        files = chart().render(values_of(case), name="digits", namespace="serving")
        rendered |= {path for path, text in files.items() if text.strip()}
    templates = {f"inkserve/{template['name']}" for template in chart().templates}
    without_dashboards = {"inkserve/templates/dashboards.yaml"} - rendered
    partials = {path for path in templates if Path(path).name.startswith("_")}
    assert templates - rendered == partials | without_dashboards


def test_the_chart_has_the_projects_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart().metadata["appVersion"] == project["version"]


def test_the_chart_names_only_addresses_that_the_project_has() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    urls = {name.lower(): url for name, url in project.get("urls", {}).items()}
    metadata = chart().metadata
    assert metadata.get("home") == urls.get("homepage")
    assert set(metadata.get("sources", [])) <= set(urls.values())
    assert metadata["annotations"]["artifacthub.io/license"] == project["license"]


def test_the_icon_is_a_picture_that_fetches_nothing() -> None:
    kind, _, encoded = chart().metadata["icon"].partition(",")
    assert kind == "data:image/svg+xml;base64"
    icon = ElementTree.fromstring(base64.b64decode(encoded, validate=True))
    assert icon.tag == "{http://www.w3.org/2000/svg}svg"
    assert {name for each in icon.iter() for name in each.attrib if "href" in name} == set()


@pytest.mark.parametrize("case", ["extras", "split", "object-store", "api-keys", "mutual-tls"])
def test_another_version_of_the_chart_replaces_no_pod(case: str, tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    metadata = tmp_path / "chart" / "Chart.yaml"
    metadata.write_text(re.sub(r"(?m)^version: .*$", "version: 99.0.0", metadata.read_text()))
    with helm_python.Chart.load(tmp_path / "chart") as newer:
        manifests = render(values_of(case), of=newer)
    assert one(manifests, "Deployment")["metadata"]["labels"]["helm.sh/chart"] == "inkserve-99.0.0"
    assert one(manifests, "Deployment")["spec"] == one(render(values_of(case)), "Deployment")["spec"]


def test_another_version_of_the_service_replaces_no_pod_whose_image_stays(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "chart")
    metadata = tmp_path / "chart" / "Chart.yaml"
    metadata.write_text(re.sub(r"(?m)^appVersion: .*$", "appVersion: 99.0.0", metadata.read_text()))
    pinned = {"image": {"tag": "0.2.0-team_3"}}
    with helm_python.Chart.load(tmp_path / "chart") as newer:
        kept, changed = (one(render(values, of=newer), "Deployment") for values in (pinned, {}))
    labels = kept["spec"]["template"]["metadata"]["labels"]
    assert labels["app.kubernetes.io/version"] == "0.2.0-team_3"
    assert kept["spec"] == one(render(pinned), "Deployment")["spec"]
    assert changed["spec"] != one(render({}), "Deployment")["spec"]


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = schema
    if "$ref" in schema:
        found = SCHEMA["$defs"][schema["$ref"].removeprefix("#/$defs/")]
    return found


def closed_objects(schema: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the path of each object with fixed keys, after checking that it accepts no others."""
    schema = resolved(schema)
    if path == ("global",) or schema.get("$comment", "").startswith(FREE_FORM):
        return
    if schema.get("type") == "object" and "properties" in schema:
        assert schema["additionalProperties"] is False, path
        yield path
        for name, child in schema["properties"].items():
            yield from closed_objects(child, (*path, name))
    elif schema.get("type") == "object":
        assert isinstance(schema["additionalProperties"], dict), path
    elif schema.get("type") == "array":
        for _ in closed_objects(schema["items"], (*path, "0")):
            pass  # checks that an item's fields are closed; a test below tries an unknown one


def test_every_object_rejects_an_unknown_key() -> None:
    paths = list(closed_objects(SCHEMA))
    assert {("probes", "startup"), ("affinity", "podAffinity"), ("lifecycle", "preStop", "exec")} <= set(
        paths
    )
    for path in paths:
        values: Values = {}
        inner = values
        for name in path:
            inner = inner.setdefault(name, {})
        inner["tpyo"] = "x"
        with pytest.raises(helm_python.HelmValuesError, match="additional properties 'tpyo' not allowed"):
            render(values)


def test_the_schema_and_the_defaults_have_the_same_keys() -> None:
    open_names = {("global",), ("settings",)}

    def compare(schema: dict[str, Any], values: Any, path: tuple[str, ...]) -> None:
        schema = resolved(schema)
        if path in open_names or "properties" not in schema or values == {}:  # {}: none of Kubernetes' fields
            return
        kept = {name for name, child in schema["properties"].items() if not child.get("deprecated")}
        assert kept - {"global"} == set(values), path
        for name in values:
            compare(schema["properties"][name], values[name], (*path, name))

    compare(SCHEMA, chart().values, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"settings": {"maxBatchSize": 0}}, "/settings/maxBatchSize': minimum: got 0, want 1"),
        ({"settings": {"provider": "gpu"}}, "/settings/provider'"),
        ({"models": {"source": "persistentVolumeClaim"}}, "/models/persistentVolumeClaim/claimName'"),
        ({"models": {"source": "imageVolume"}}, "/models/imageVolume/reference'"),
        ({"models": {"source": "objectStore"}}, "/models/objectStore/path'"),
        ({"ingress": {"enabled": True}}, "/ingress/hosts'"),
        ({"httpRoute": {"enabled": True}}, "/httpRoute/parentRefs'"),
        ({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}, "/rollingUpdate"),
        ({"tolerations": [{"kee": "a"}]}, "/tolerations/0': additional properties 'kee' not allowed"),
        ({"podSecurity": {"runAsUser": 0}}, "/podSecurity/runAsUser'"),
        ({"settings": {"maxRequestRows": 20000}}, "maxRequestRows is 20000, expected at most .* .16384."),
        ({"terminationGracePeriodSeconds": 44}, "is 44, expected at least 45"),
        (
            {"podDisruptionBudget": {"minAvailable": 2}},
            "minAvailable is 2, expected less than the 2 replicas",
        ),
        (
            {"podDisruptionBudget": {"minAvailable": "51%"}},
            "minAvailable is 51%, expected less than the 2 replicas",
        ),
        (
            {"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": "50%"}},
            "minAvailable 1 and maxUnavailable 50%, expected at most one of them",
        ),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable'"),
        (
            {"settings": {"maxDeviceMemoryBytes": 2**30}},
            "settings.maxDeviceMemoryBytes is 1073741824, expected none with settings.provider cpu",
        ),
        (
            {"settings": {"tf32": True, "provider": "tensorrt"}},
            "settings.tf32 is true, expected false with settings.provider tensorrt",
        ),
        (
            {"autoscaling": {"mode": "hpa", "minReplicas": 9}},
            "minReplicas is 9, expected at most maxReplicas",
        ),
        (
            values_of("mutual-tls") | {"autoscaling": {"mode": "keda", "keda": {"source": "pods"}}},
            "keda.source is pods, expected prometheus with tls.clientCA.mode required",
        ),
        (
            {"split": {"enabled": True}, "settings": {"workers": 2}},
            "settings.workers is 2, expected none with split.enabled",
        ),
        (
            {"split": {"enabled": True}, "settings": {"socket": "/tmp/s"}},
            "settings.socket is /tmp/s, expected none with split.enabled",
        ),
        ({"apiKeys": {"inline": ["short-key-15-ch"]}}, "/apiKeys/inline/0'"),
        ({"apiKeys": {"inline": ["# a-comment-0123456789"]}}, "/apiKeys/inline/0'"),
        (
            {"apiKeys": {"existingSecret": "callers", "inline": ["0123456789abcdef"]}},
            "existingSecret is callers, expected none with apiKeys.inline",
        ),
        (
            {"apiKeys": {"existingSecret": "callers"}, "settings": {"apiKeysFile": "/keys"}},
            "settings.apiKeysFile is /keys, expected none with apiKeys",
        ),
        (
            {"models": {"trustedKeysConfigMap": "keys"}, "settings": {"trustedKeys": "/keys"}},
            "settings.trustedKeys is /keys, expected none with models.trustedKeysConfigMap",
        ),
        ({"tls": {"clientCA": {"existingSecret": "callers-ca"}}}, "/tls/existingSecret'"),
        ({"tls": {"clientSecret": "caller-tls"}}, "/tls/existingSecret'"),
        ({"tls": {"existingSecret": "Digits_TLS"}}, "/tls/existingSecret'"),
        ({"tls": {"clientCA": {"mode": "require"}}}, "/tls/clientCA/mode'"),
        (
            {"tls": {"existingSecret": "digits-tls", "clientCA": {"existingSecret": "callers-ca"}}},
            "tls.clientSecret is empty, expected the client certificate that test needs",
        ),
        (
            {
                "tls": {"existingSecret": "digits-tls", "clientCA": {"existingSecret": "callers-ca"}},
                "test": {"enabled": False},
                "serviceMonitor": {"enabled": True},
            },
            "expected the client certificate that serviceMonitor needs",
        ),
        ({"settings": {"sslCertfile": "/tls.crt"}}, "settings.sslCertfile is /tls.crt, expected none: tls"),
        ({"settings": {"sslClientAuth": "optional"}}, "settings.sslClientAuth is optional, expected none"),
        ({"tracing": {"enabled": True}}, "/tracing/endpoint'"),
        ({"tracing": {"endpoint": "otel-collector:4318"}}, "/tracing/endpoint'"),
        ({"tracing": {"sampler": "traceidratio_parentbased"}}, "/tracing/sampler'"),
        (
            {"tracing": {"enabled": True, "endpoint": "http://c"}, "settings": {"tracing": "console"}},
            "settings.tracing is console, expected none with tracing.enabled",
        ),
        ({"loadTest": {"enabled": True}}, "/loadTest/image'"),
        ({"loadTest": {"stages": "peak"}}, "/loadTest/stages'"),
        ({"loadTest": {"mix": "raw=1,jpeg=1"}}, "/loadTest/mix'"),
        ({"split": {"workers": 0}}, "/split/workers': minimum: got 0, want 1"),
        (
            {"settings": {"modelsDir": None}, "models": values_of("object-store")["models"]},
            "modelsDir is unset",
        ),
    ],
)
def test_impossible_values_are_rejected(values: Values, message: str) -> None:
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=message):
        render(values)


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, 45),
        ({"settings": {"drainSeconds": 0.5, "shutdownTimeoutSeconds": 10}}, 16),
        (
            {"settings": {"drainSeconds": None, "shutdownTimeoutSeconds": None}},
            45,
        ),  # 10, and the service's 30
        (values_of("one-gpu"), 35),
        ({"preStopSleepSeconds": 5}, 50),
        ({"tracing": {"enabled": True, "endpoint": "http://collector"}}, 55),
        ({"terminationGracePeriodSeconds": 600}, 600),
    ],
)
def test_the_grace_period_covers_the_whole_shutdown(values: Values, seconds: int) -> None:
    pod = one(render(values), "Deployment")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == seconds


@pytest.mark.parametrize("case", CASES)
def test_pods_meet_the_restricted_security_standard(case: str) -> None:
    for pod in pod_specs(render(values_of(case))):
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        if case != "openshift":
            assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for volume in pod.get("volumes", []):
            kinds = {"configMap", "emptyDir", "image", "persistentVolumeClaim", "secret"}
            assert volume.keys() - {"name"} <= kinds
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container["securityContext"]
            assert context.pop("runAsUser", 1) > 0  # a user's container may have an id of its own
            assert context == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"].keys() == {"requests", "limits"}
            assert all("hostPort" not in port for port in container.get("ports", []))


def test_a_service_named_inkserve_sets_no_setting() -> None:
    for pod in pod_specs(render({}, name="inkserve")):
        assert pod["enableServiceLinks"] is False


@pytest.mark.parametrize("case", ["public", "pvc-hpa"])
def test_selectors_match_the_servers_and_not_the_test_pod(case: str) -> None:
    manifests = render(values_of(case) | {"podLabels": {"app.kubernetes.io/component": "mine"}})
    deployment = one(manifests, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"].items()
    service = one(manifests, "Service")
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        service["spec"]["selector"],
        one(manifests, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(manifests, "NetworkPolicy", "digits-inkserve")["spec"]["podSelector"]["matchLabels"],
        *(c["labelSelector"]["matchLabels"] for c in pod_spread(deployment)),
    ]
    for selector in selectors:
        assert selector.items() <= labels
        assert not selector.items() <= one(manifests, "Pod")["metadata"]["labels"].items()
    if case == "public":
        monitor = one(manifests, "ServiceMonitor")["spec"]
        assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        assert monitor["endpoints"][0]["port"] == service["spec"]["ports"][0]["name"]


def test_the_load_job_reaches_the_service_and_nothing_reaches_the_load_job() -> None:
    manifests = render(values_of("load-test"))
    deployment, job = one(manifests, "Deployment"), one(manifests, "Job")
    theirs = deployment["spec"]["template"]["metadata"]["labels"].items()
    ours = job["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        deployment["spec"]["selector"]["matchLabels"],
        one(manifests, "Service")["spec"]["selector"],
    ):
        assert selector.items() <= theirs
        assert not selector.items() <= ours

    policy = one(manifests, "NetworkPolicy", "digits-inkserve-load")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= ours
    assert not policy["podSelector"]["matchLabels"].items() <= theirs
    assert policy["ingress"] == []
    dns, service = policy["egress"]
    assert dns == DNS
    assert service["to"][0]["podSelector"]["matchLabels"].items() <= theirs
    (port,) = server(manifests)["ports"]
    assert [each["port"] for each in service["ports"]] == [port["containerPort"]]

    (entry,) = one(manifests, "NetworkPolicy", "digits-inkserve")["spec"]["ingress"]
    (callers,) = [each["podSelector"] for each in entry["from"] if "podSelector" in each]
    (wanted,) = callers["matchExpressions"]
    for labels in (ours, one(manifests, "Pod")["metadata"]["labels"].items()):
        assert callers["matchLabels"].items() <= labels
        assert dict(labels)[wanted["key"]] in wanted["values"]


def test_each_upgrade_creates_a_new_load_job_and_changes_nothing_else() -> None:
    def names(revision: int) -> dict[str, str]:
        found = render(values_of("load-test"), revision=revision)
        return {f"{m['kind']} {m['metadata']['name']}": json.dumps(m) for m in found}

    first, second = names(1), names(12)
    assert first.keys() - second.keys() == {"Job digits-inkserve-load-1"}
    assert second.keys() - first.keys() == {"Job digits-inkserve-load-12"}
    for name in first.keys() & second.keys():
        assert first[name] == second[name]


def test_the_load_jobs_deadline_covers_the_wait_and_the_load() -> None:
    spec = one(render(values_of("load-test")), "Job")["spec"]
    startup = 300
    (wait,) = spec["template"]["spec"]["initContainers"]
    assert wait["args"][-1] == f"--wait-seconds={startup + 60}"
    assert spec["activeDeadlineSeconds"] == startup + 3600 + 120
    assert spec["backoffLimit"] == 0
    assert spec["ttlSecondsAfterFinished"] == 86400


def pod_spread(deployment: Manifest) -> list[Manifest]:
    spread: list[Manifest] = deployment["spec"]["template"]["spec"].get("topologySpreadConstraints", [])
    return spread


def test_only_gpu_providers_request_a_gpu() -> None:
    for provider in ("cuda", "tensorrt"):
        manifests = render(values_of("gpu") | {"settings": {"provider": provider}})
        pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
        assert server(manifests)["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert server(manifests)["image"].endswith("-gpu")
        assert pod["runtimeClassName"] == "nvidia"
        assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
        assert "nvidia.com/gpu.product" in json.dumps(pod["affinity"])
    by_default = one(render({"settings": {"provider": "cuda"}}), "Deployment")
    assert "affinity" not in by_default["spec"]["template"]["spec"]  # the device plugin alone sets no label
    assert "nvidia" not in json.dumps(render({}))


def test_the_halves_share_only_a_socket() -> None:
    values = values_of("pvc-hpa") | {"split": values_of("split")["split"]}
    manifests = render(values)
    engine, http = servers(manifests).values()
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert [each["args"] for each in (engine, http)] == [["engine"], ["http"]]
    assert environment(engine)["INKSERVE_SOCKET"] == environment(http)["INKSERVE_SOCKET"]
    socket = Path(environment(http)["INKSERVE_SOCKET"])
    assert mounts(engine)["socket"] == mounts(http)["socket"] == str(socket.parent)
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "socket"]
    assert "emptyDir" in volume  # an emptyDir outlives a container
    assert mounts(engine)["models"] == environment(engine)["INKSERVE_MODELS_DIR"]
    assert "models" not in mounts(http)
    assert environment(http)["INKSERVE_WORKERS"] == "3"
    for half in (engine, http):
        assert half["resources"] == values["split"][half["name"]]["resources"]


def test_both_halves_get_the_same_settings() -> None:
    manifests = render(values_of("split") | {"settings": {"maxBatchSize": 64, "tracing": "console"}})
    engine, http = (settings_from(environment(each)) for each in servers(manifests).values())
    assert http == engine.model_copy(update={"workers": 3})
    assert engine.max_batch_size == 64


def test_only_the_engine_gets_the_gpu() -> None:
    manifests = render(values_of("gpu") | {"split": {"enabled": True}})
    engine, http = servers(manifests).values()
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in json.dumps(http["resources"])
    assert environment(http)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert "NVIDIA_VISIBLE_DEVICES" not in environment(engine)


def test_both_halves_stop_after_the_same_pre_stop_sleep() -> None:
    manifests = render(values_of("split"))
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert [each["lifecycle"] for each in pod["containers"]] == 2 * [{"preStop": {"sleep": {"seconds": 2}}}]
    assert pod["terminationGracePeriodSeconds"] == 47


@pytest.mark.parametrize("split", [False, True])
def test_only_the_container_with_the_models_gets_the_trusted_keys(split: bool) -> None:
    manifests = render(values_of("pvc-hpa") | {"split": {"enabled": split}})
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert {"name": "trusted-keys", "configMap": {"name": "release-keys"}} in pod["volumes"]
    for name, container in servers(manifests).items():
        folder = environment(container).get("INKSERVE_TRUSTED_KEYS")
        assert mounts(container).get("trusted-keys") == folder
        assert (folder is None) == (name == "http")
    assert "trusted-keys" not in json.dumps(render({}))


def keys_volume(pod: Manifest) -> Manifest:
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "api-keys"]
    secret: Manifest = volume["secret"]
    return secret


def test_the_service_reads_the_charts_secret(tmp_path: Path) -> None:
    values = values_of("api-keys")
    secret = one(render(values), "Secret")
    (tmp_path / "keys").write_text(secret["stringData"]["api-keys"])
    keys = ApiKeys.read(tmp_path / "keys")
    for key in values["apiKeys"]["inline"]:
        assert keys.permits([(b"authorization", f"Bearer {key}".encode())])


@pytest.mark.parametrize(
    ("case", "name", "key", "users"),
    [
        ("api-keys", "digits-inkserve-api-keys", "api-keys", {"http", "smoke"}),
        ("public", "digits-callers", "keys.txt", {"inkserve", "smoke"}),
        ("load-test", "digits-callers", "api-keys", {"inkserve", "smoke", "wait", "locust"}),
    ],
)
def test_only_the_users_of_the_keys_mount_them(case: str, name: str, key: str, users: set[str]) -> None:
    manifests = render(values_of(case))
    path = environment(server(manifests))["INKSERVE_API_KEYS_FILE"]
    configured, mounted = set(), set()
    for pod in pod_specs(manifests):
        secret = {"secretName": name, "defaultMode": 0o440, "items": [{"key": key, "path": Path(path).name}]}
        assert {"name": "api-keys", "secret": secret} in pod["volumes"]
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            if f"--api-keys-file={path}" in container.get("args", []) or path in json.dumps(
                container.get("env")
            ):
                configured.add(container["name"])
            if mounts(container).get("api-keys") == str(Path(path).parent):
                mounted.add(container["name"])
    assert configured == mounted == users


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("# of: the app\n\n first-key-0123456789 \nsecond-key-0123456789\n", "first-key-0123456789"),
        ("scraper:metrics:a-key-0123456789\nshop:metrics, infer:b-key-0123456789\n", "b-key-0123456789"),
        (f"sha256={64 * '0'}\nshop:infer:sha256={64 * '0'}\nlast-key-0123456789\n", "last-key-0123456789"),
    ],
)
def test_the_chart_sends_the_first_key_that_may_use_models(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "keys").write_text(text)
    assert first_key(str(tmp_path / "keys")) == key


def secrets_of(pod: Manifest) -> dict[str, tuple[str, set[str]]]:
    """Return the Secrets that a pod mounts, with their entries, by the volume's name."""
    return {
        volume["name"]: (volume["secret"]["secretName"], {item["key"] for item in volume["secret"]["items"]})
        for volume in pod.get("volumes", [])
        if "secret" in volume
    }


def test_only_the_http_container_gets_the_certificate() -> None:
    manifests = render(values_of("tls"))
    engine, http = servers(manifests).values()
    env = environment(http)
    assert settings_from(env).ssl_certfile == Path(mounts(http)["tls"]) / "tls.crt"
    assert settings_from(env).ssl_keyfile == Path(mounts(http)["tls"]) / "tls.key"
    assert settings_from(env).ssl_client_auth == "off"
    assert "tls" not in mounts(engine)
    assert not [name for name in environment(engine) if "SSL" in name]
    for kind in ("startup", "readiness", "liveness"):
        assert http[f"{kind}Probe"]["httpGet"]["scheme"] == "HTTPS"
        assert "scheme" not in server(render({}))[f"{kind}Probe"]["httpGet"]
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    assert secrets_of(pod) == {"tls": ("digits-tls", {"tls.crt", "tls.key"})}
    assert secrets_of(one(manifests, "Pod")["spec"]) == {}  # it verifies by the system's authorities
    assert one(manifests, "Service")["spec"]["ports"][0]["appProtocol"] == "https"
    assert one(render({}), "Service")["spec"]["ports"][0]["appProtocol"] == "http"
    assert "tls" not in json.dumps(render({})).lower()


@pytest.mark.parametrize(("mode", "auth"), [("required", "required-except-probes"), ("optional", "optional")])
def test_with_mutual_tls_every_caller_of_the_chart_has_a_certificate(mode: str, auth: str) -> None:
    values = values_of("mutual-tls")
    values["tls"]["clientCA"]["mode"] = mode
    manifests = render(values)
    found = settings_from(environment(server(manifests)))
    assert (found.ssl_client_auth, str(found.ssl_ca_certs)) == (auth, "/etc/inkserve/client-ca/ca.crt")
    deployment, test, job = list(pod_specs(manifests))
    by_name = {
        "digits-tls": {"tls.crt", "tls.key"},
        "callers-ca": {"ca.crt"},
    }
    assert dict(secrets_of(deployment).values()) == by_name
    for pod in (test, job):
        assert secrets_of(pod) == {
            "server-ca": ("digits-tls", {"ca.crt"}),  # never the service's key
            "client-tls": ("digits-caller-tls", {"tls.crt", "tls.key"}),
        }
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            mounted = mounts(container)
            assert f"--ca-file={mounted['server-ca']}/ca.crt" in container["args"]
            assert f"--client-cert-file={mounted['client-tls']}/tls.crt" in container["args"]
            assert f"--client-key-file={mounted['client-tls']}/tls.key" in container["args"]
            assert "https://digits-inkserve.serving.svc:443" in json.dumps(container["args"])
    (endpoint,) = one(manifests, "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["tlsConfig"] == {
        "serverName": "digits-inkserve.serving.svc",
        "ca": {"secret": {"name": "digits-tls", "key": "ca.crt"}},
        "cert": {"secret": {"name": "digits-caller-tls", "key": "tls.crt"}},
        "keySecret": {"name": "digits-caller-tls", "key": "tls.key"},
    }
    assert "curl -k --cert caller.pem --key caller.key" in notes(values | {"ingress": {}})
    assert "'https://127.0.0.1:8000/classify" in notes(values | {"ingress": {}})


def test_new_keys_in_the_values_restart_the_pods() -> None:
    def annotations(*keys: str) -> Values:
        values = {
            "apiKeys": {"inline": list(keys)},
            "podAnnotations": {"checksum/api-keys": "mine", "a": "b"},
        }
        found: Values = one(render(values), "Deployment")["spec"]["template"]["metadata"]["annotations"]
        return found

    first, second = annotations("0123456789abcdef"), annotations("0123456789abcdef", "fedcba9876543210")
    assert first.keys() == second.keys() == {"checksum/api-keys", "a"}
    assert len({"mine", first["checksum/api-keys"], second["checksum/api-keys"]}) == 3


def notes(values: Values) -> str:
    text: str = chart().render(values, name="digits", namespace="serving")["inkserve/templates/NOTES.txt"]
    return text


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_the_notes_name_the_new_name_of_an_old_setting(old: str, new: str) -> None:
    warning = f"settings.{chart_name(old)} is deprecated and will be removed in 0.3.0: use "
    assert warning + f"settings.{chart_name(new)}." in notes({"settings": {chart_name(old): 0.1}})
    assert "deprecated" not in notes({"settings": {chart_name(new): 0.1}})


def budget(values: Values) -> Values | None:
    """Return the disruption budget's limits, or None without a budget."""
    found = [each["spec"] for each in render(values) if each["kind"] == "PodDisruptionBudget"]
    return {name: value for name, value in found[0].items() if "ailable" in name} if found else None


@pytest.mark.parametrize(
    ("values", "limits"),
    [
        ({}, {"maxUnavailable": 1}),
        ({"podDisruptionBudget": {"maxUnavailable": "25%"}}, {"maxUnavailable": "25%"}),
        ({"podDisruptionBudget": {"minAvailable": 1}}, {"minAvailable": 1}),
        ({"podDisruptionBudget": {"maxUnavailable": None, "minAvailable": "50%"}}, {"minAvailable": "50%"}),
        ({"podDisruptionBudget": {"enabled": False}}, None),
        ({"replicas": 1}, None),
        ({"replicas": 1, "podDisruptionBudget": {"minAvailable": 1}}, None),
        ({"autoscaling": {"mode": "hpa", "minReplicas": 1}}, {"maxUnavailable": 1}),
        (
            {"autoscaling": {"mode": "hpa", "minReplicas": 1}, "podDisruptionBudget": {"minAvailable": 1}},
            None,
        ),
    ],
)
def test_the_disruption_budget_never_blocks_a_drain(values: Values, limits: Values | None) -> None:
    assert budget(values) == limits


@pytest.mark.parametrize(
    ("values", "seconds"),
    [
        ({}, "10"),
        (values_of("one-gpu"), "0"),
        (values_of("one-gpu") | {"settings": {"provider": "cuda", "drainSeconds": 3}}, "3"),
        ({"settings": {"drainSeconds": 0}}, "0"),
        ({"replicas": 1}, "10"),  # the new pod starts first, and takes the requests
        (values_of("gpu"), "10"),  # so does the other pod
        (values_of("one-gpu") | {"autoscaling": {"mode": "hpa", "minReplicas": 1}}, "10"),
    ],
)
def test_an_only_pod_without_a_surge_does_not_drain(values: Values, seconds: str) -> None:
    for container in servers(render(values)).values():
        assert environment(container)["INKSERVE_DRAIN_SECONDS"] == seconds


@pytest.mark.parametrize(
    ("case", "kind"), [("pvc-hpa", "HorizontalPodAutoscaler"), ("image-volume-keda", "ScaledObject")]
)
def test_an_autoscaled_deployment_sets_no_replicas(case: str, kind: str) -> None:
    manifests = render(values_of(case))
    deployment = one(manifests, "Deployment")
    assert "replicas" not in deployment["spec"]
    target = one(manifests, kind)["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]


def test_the_autoscalers_query_the_services_own_metric() -> None:
    metrics = Metrics()
    metrics.watch_load(lambda: 0.0)
    names = {family.name for family in metrics.registry.collect()}
    hpa = one(render(values_of("pvc-hpa")), "HorizontalPodAutoscaler")["spec"]
    assert hpa["metrics"][0]["pods"]["metric"]["name"] in names
    assert hpa["metrics"][0]["pods"]["target"]["averageValue"] == "0.6"
    manifests = render(values_of("image-volume-keda"))
    trigger = one(manifests, "ScaledObject")["spec"]["triggers"][0]["metadata"]
    service = one(manifests, "Service")["metadata"]
    assert set(re.findall(r"inkserve_\w+", trigger["query"])) <= names
    assert f'job="{service["name"]}", namespace="{service["namespace"]}"' in trigger["query"]
    assert trigger["threshold"] == "0.7"


@pytest.mark.parametrize("tls", [False, True])
def test_keda_can_read_the_pods_without_prometheus(tls: bool) -> None:
    values = {"autoscaling": {"mode": "keda", "keda": {"source": "pods"}}, "settings": {"port": 8080}}
    manifests = render(values | ({"tls": {"existingSecret": "certificate"}} if tls else {}))
    scaled = one(manifests, "ScaledObject")
    validate(scaled, NEWEST_KUBERNETES)
    (trigger,) = scaled["spec"]["triggers"]
    service = one(manifests, "Service")["metadata"]
    metadata = trigger["metadata"]
    # KEDA takes the Service's name and namespace from the host, and needs the port of the pods.
    host = f"{service['name']}.{service['namespace']}:8080"
    assert metadata["url"] == f"{'https' if tls else 'http'}://{host}/metrics"
    assert (trigger["metricType"], metadata["aggregationType"]) == ("AverageValue", "sum")
    assert (metadata["format"], metadata["valueLocation"]) == ("prometheus", "inkserve_load")
    assert metadata.get("unsafeSsl") == ("true" if tls else None)


def test_the_rules_select_only_their_release() -> None:
    source = (CHART / "rules" / "inkserve.yaml").read_text()
    rule = one(render(values_of("public")), "PrometheusRule")
    own = json.dumps(rule["spec"])
    assert 'job=\\"inkserve\\"' not in own
    assert 'deployment=\\"inkserve\\"' not in own
    own = own.replace('?digits-inkserve\\",namespace=\\"serving\\"', '?inkserve\\"')
    own = own.replace('namespace=\\"serving\\",pod=~\\"digits-inkserve-', 'pod=~\\"inkserve-')
    own = own.replace("https://docs.example.com/runbooks.html#", "docs/runbooks.md#")
    ours = own.replace('job=\\"digits-inkserve\\",namespace=\\"serving\\"', 'job=\\"inkserve\\"')
    ours = ours.replace(
        'deployment=\\"digits-inkserve\\",namespace=\\"serving\\"', 'deployment=\\"inkserve\\"'
    )
    assert json.loads(ours) == yaml.safe_load(source)


def test_the_config_map_holds_every_dashboard(tmp_path: Path) -> None:
    copied = tmp_path / "chart"
    shutil.copytree(CHART, copied)
    dashboard = {"title": "inkserve", "panels": [{"expr": 'rate(x{job="a"}[5m])', "legend": "{{model}}"}]}
    (copied / "dashboards").mkdir(exist_ok=True)
    (copied / "dashboards" / "another.json").write_text(json.dumps(dashboard, indent=2))
    with helm_python.Chart.load(copied) as changed:
        config = one(render({"grafanaDashboard": {"enabled": True}}, of=changed), "ConfigMap")
    validate(config, NEWEST_KUBERNETES)
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"]["another.json"]) == dashboard


DNS = {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def egress(values: Values) -> list[Manifest]:
    policy = one(render(values), "NetworkPolicy", "digits-inkserve")
    found: list[Manifest] = policy["spec"]["egress"]
    return found


def test_the_network_policy_allows_out_only_model_fetches_and_spans() -> None:
    assert egress({}) == []
    fetch = {"ports": [{"port": 443, "protocol": "TCP"}]}
    assert egress(values_of("object-store")) == [DNS, fetch]
    send = {
        "ports": [{"port": 4318, "protocol": "TCP"}],
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "observability"}},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "opentelemetry-collector"}},
            }
        ],
    }
    assert egress(values_of("tracing")) == [DNS, send]
    assert egress(values_of("tracing") | values_of("object-store")) == [DNS, fetch, send]
    no_ports = values_of("object-store") | {"networkPolicy": {"objectStorePorts": []}}
    assert egress(no_ports) == [DNS]  # a rule without ports would allow them all


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector:4318", 4318),
        ("http://collector", 80),
        ("https://collector.example.com/otlp", 443),
        ("https://collector.example.com:65535/otlp/v2", 65535),
    ],
)
def test_spans_may_go_to_the_endpoints_port(endpoint: str, port: int) -> None:
    assert egress({"tracing": {"enabled": True, "endpoint": endpoint}}) == [
        DNS,
        {"ports": [{"port": port, "protocol": "TCP"}]},
    ]


@pytest.mark.parametrize(
    ("sampler", "arg"), [("parentbased_traceidratio", "0.01"), ("traceidratio", "0.01"), ("always_on", None)]
)
def test_only_ratio_samplers_get_the_ratio(sampler: str, arg: str | None) -> None:
    values = {"tracing": {"enabled": True, "endpoint": "http://collector", "sampler": sampler}}
    env = environment(server(render(values)))
    assert (env["INKSERVE_TRACING"], env["OTEL_TRACES_SAMPLER"]) == ("otlp", sampler)
    assert env.get("OTEL_TRACES_SAMPLER_ARG") == arg
    assert not [name for name in environment(server(render({}))) if name.startswith("OTEL")]


def test_the_test_pod_reaches_only_the_service() -> None:
    manifests = render({"settings": {"port": 8080}})
    policy = one(manifests, "NetworkPolicy", "digits-inkserve-test")["spec"]
    test_pod, deployment = one(manifests, "Pod"), one(manifests, "Deployment")
    server_labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= test_pod["metadata"]["labels"].items()
    assert not policy["podSelector"]["matchLabels"].items() <= server_labels.items()
    assert policy["ingress"] == []
    names, service = policy["egress"]
    assert names == DNS
    (port,) = service["ports"]
    assert port["port"] == server(manifests)["ports"][0]["containerPort"] == 8080
    (to,) = service["to"]
    assert to["podSelector"]["matchLabels"].items() <= server_labels.items()
    for values in ({"networkPolicy": {"enabled": False}}, {"test": {"enabled": False}}):
        assert "digits-inkserve-test" not in {
            each["metadata"]["name"] for each in render(values) if each["kind"] == "NetworkPolicy"
        }


@pytest.mark.skipif(not shutil.which("rclone"), reason="rclone is missing: Debian has it")
def test_the_init_container_fetches_the_models_that_the_service_reads(tmp_path: Path) -> None:
    bucket, models = tmp_path / "bucket", tmp_path / "models"
    (bucket / "digits" / "cnn" / "1").mkdir(parents=True)
    (bucket / "digits" / "cnn" / "1" / "model.onnx").write_bytes(b"graph")
    store = {"path": f"{bucket}/digits", "remote": {"type": "local"}}
    values = {
        "models": {"source": "objectStore", "objectStore": store},
        "settings": {"modelsDir": str(models)},
    }
    pod = one(render(values), "Deployment")["spec"]["template"]["spec"]
    (fetch,) = pod["initContainers"]
    env = {entry["name"]: entry["value"] for entry in fetch["env"]}
    rclone = shutil.which("rclone")
    assert rclone
    subprocess.run([rclone, *fetch["args"]], env=env, check=True, timeout=60, capture_output=True)
    assert (models / "cnn" / "1" / "model.onnx").read_bytes() == b"graph"
    mounts = [container["volumeMounts"] for container in (fetch, *pod["containers"])]
    assert all({"name": "models", "mountPath": str(models)}.items() <= mount[1].items() for mount in mounts)


SEARCH = settings(
    deadline=None,
    max_examples=50,
    derandomize=True,  # the same values each time: only a change can cause a failure
    # Shrinking hundreds of values takes minutes, and Helm names the one that it rejects.
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def settings_from(env: dict[str, str]) -> Settings:
    """Return the service's settings under these environment variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        return load_settings([])


def as_service_settings(values: Values) -> Values:
    """Return the chart's settings under the service's names; a new name wins over an old one."""
    named = {snake_case(name): value for name, value in values.items() if value is not None}
    return {RENAMED[old]: named.pop(old) for old in RENAMED.keys() & named} | named


def snake_case(name: str) -> str:
    return re.sub(r"[A-Z]", lambda letter: "_" + letter[0].lower(), name)


READ_BY_THE_SERVICE = {
    "host": ("0.0.0.0", "::", "localhost"),
    "rootPath": ("", "/digits", "/a/b"),
    "trustedProxies": ("10.0.0.0/8, ::1", "*"),
    "corsOrigins": ("*", "https://app.example.com"),
    "sslCertfile": (None,),
    "sslKeyfile": (None,),
    "sslKeyfilePasswordFile": (None,),
    "sslCaCerts": (None,),
    "sslClientAuth": ("off",),
}
"""Texts whose form a schema cannot describe, and files that belong together: the service checks them when it
starts. Valid values of each."""


@SEARCH
@given(any_values_of(SCHEMA["properties"]["settings"], SCHEMA))
@example({"agentPort": 1013, "grpcPort": 1013})
@example({"grpcPort": 8000})
@example({"grpcPort": 80})
@example({"agentPort": 8000})
def test_settings_reach_the_service_unchanged_or_both_reject_them(values: Values) -> None:
    for name in READ_BY_THE_SERVICE.keys() & values.keys():
        valid = READ_BY_THE_SERVICE[name]
        values[name] = valid[len(str(values[name])) % len(valid)]
    set_values = as_service_settings(values)
    try:
        manifests = render({"settings": values, "terminationGracePeriodSeconds": 2000})
    except helm_python.HelmRenderError as error:
        if str(error).endswith("than service.port"):  # the service does not know that port
            return
        known = "agentPort|grpcPort|maxRequestRows|maxDeviceMemoryBytes|tf32"
        (name,) = re.findall(rf"inkserve: settings\.({known}) is ", str(error))
        with pytest.raises(ValidationError, match=snake_case(name)):
            Settings(**set_values)
        return
    defaults = as_service_settings(chart().values["settings"] | {"drainSeconds": 10})
    assert settings_from(environment(server(manifests))) == Settings(**(defaults | set_values))


def without_required(schema: dict[str, Any], defaults: Any) -> dict[str, Any]:
    """Return the schema of values before they are merged with the defaults, which have every required key."""
    schema = resolved(schema)
    if not isinstance(defaults, dict) or not defaults or "properties" not in schema:
        return schema
    children = schema["properties"].items()
    properties = {name: without_required(child, defaults.get(name)) for name, child in children}
    return {name: part for name, part in schema.items() if name != "required"} | {"properties": properties}


GIVEN = without_required(SCHEMA, chart().values)
A_FEW = {"maxProperties": 12}
"""hypothesis gives up examples with all values at once as too large, and then tries small ones."""


@SEARCH
@given(any_values_of(GIVEN | A_FEW, GIVEN))
def test_any_values_render_valid_manifests_or_are_rejected_with_our_message(values: Values) -> None:
    assume(jsonschema.Draft7Validator(GIVEN).is_valid(values))
    try:
        manifests = render(values)
    except helm_python.HelmValuesError:  # merged with the defaults, two values contradict each other
        return
    except helm_python.HelmRenderError as error:
        assert "inkserve: " in str(error)  # noqa: PT017
        return
    for manifest in manifests:
        if manifest["kind"] in ("Deployment", "Job", "NetworkPolicy", "Secret", "Service"):
            validate(manifest, NEWEST_KUBERNETES)


def test_only_the_page_and_the_public_routes_are_published() -> None:
    manifests = render(values_of("public"))
    paths = one(manifests, "Ingress")["spec"]["rules"][0]["http"]["paths"]
    exact = {path["path"] for path in paths if path["pathType"] == "Exact"}
    below = {path["path"] for path in paths if path["pathType"] == "Prefix"}
    matches = [match for rule in one(manifests, "HTTPRoute")["spec"]["rules"] for match in rule["matches"]]
    assert len(matches) == len(paths)
    assert {match["path"]["value"] for match in matches if match["path"]["type"] == "Exact"} == exact == {"/"}
    assert {match["path"]["value"] for match in matches if match["path"]["type"] == "PathPrefix"} == below
    assert {"/metrics", "/"}.isdisjoint(below)
    served = {f"/{name}" for name in RESERVED} - {"/metrics"}
    assert below == served
