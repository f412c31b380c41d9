"""What users add to the chart: variables, volumes, containers, scheduling, labels, objects of their own."""

from typing import Any

import helm_python
import pytest

from tests.support.charts import (
    Manifest,
    Values,
    environment,
    mounts,
    one,
    pod_specs,
    render,
    server,
    servers,
    values_of,
)

EXTRAS = values_of("extras")
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"


def pod_of(values: Values) -> Manifest:
    spec: Manifest = one(render(values), "Deployment")["spec"]["template"]["spec"]
    return spec


@pytest.mark.parametrize("split", [False, True])
def test_every_container_of_the_service_gets_the_additions(split: bool) -> None:
    variable = {"name": "HTTPS_PROXY", "value": "http://proxy:3128"}
    names = ("extraEnvFrom", "extraVolumes", "extraVolumeMounts", "lifecycle")
    values = {name: EXTRAS[name] for name in names} | {"split": {"enabled": split}, "extraEnv": [variable]}
    found = servers(render(values))
    assert set(found) == ({"engine", "http"} if split else {"inkserve"})
    for container in found.values():
        assert container["env"][-1] == variable  # after the chart's, to which it may refer
        assert container["envFrom"] == EXTRAS["extraEnvFrom"]
        assert mounts(container).items() >= {"company-ca": "/etc/ssl/company", "tmp": "/tmp"}.items()
        assert container["lifecycle"] == EXTRAS["lifecycle"]
    assert pod_of(values)["volumes"][-2:] == EXTRAS["extraVolumes"]
    plain = server(render({}))
    assert not {"envFrom", "lifecycle"} & plain.keys()
    assert "HTTPS_PROXY" not in environment(plain)


def test_a_users_container_gets_what_its_security_context_leaves_open() -> None:
    other = {"name": "writes", "image": "i", "securityContext": {"readOnlyRootFilesystem": False}}
    values = values_of("object-store") | {"initContainers": [other], "sidecars": EXTRAS["sidecars"]}
    pod = pod_of(values)
    fetch, writes = pod["initContainers"]
    assert fetch["name"] == "fetch-models"
    assert writes["securityContext"] == fetch["securityContext"] | {"readOnlyRootFilesystem": False}
    ships = pod["containers"][-1]["securityContext"]
    assert ships == fetch["securityContext"] | {"runAsUser": 1000000000}
    assert isinstance(ships["runAsUser"], int)  # never 1e+09, which Kubernetes rejects


def test_the_labels_of_the_gpu_join_every_term_of_the_node_affinity() -> None:
    gpu = {"key": "nvidia.com/gpu.product", "operator": "In", "values": ["NVIDIA-L4"]}
    given = EXTRAS["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    affinity = pod_of(EXTRAS)["affinity"]
    terms = affinity["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert [term["matchExpressions"] for term in terms] == [[*t["matchExpressions"], gpu] for t in given]
    assert affinity["podAntiAffinity"] == EXTRAS["affinity"]["podAntiAffinity"]
    on_cpus = EXTRAS | {"settings": {"provider": "cpu"}}
    assert pod_of(on_cpus)["affinity"] == EXTRAS["affinity"]
    by_gpu = pod_of(EXTRAS | {"affinity": {}})["affinity"]
    assert by_gpu == {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [{"matchExpressions": [gpu]}]}}}
    by_name = {"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["node-1"]}]}
    values = EXTRAS | {"affinity": {"nodeAffinity": {REQUIRED: {"nodeSelectorTerms": [by_name]}}}}
    (term,) = pod_of(values)["affinity"]["nodeAffinity"][REQUIRED]["nodeSelectorTerms"]
    assert term == by_name | {"matchExpressions": [gpu]}


@pytest.mark.parametrize(
    "case", ["extras", "public", "load-test", "api-keys", "pvc-hpa", "image-volume-keda"]
)
def test_every_object_and_pod_has_the_common_labels_and_annotations(case: str) -> None:
    labels = {"team": "vision", "app.kubernetes.io/component": "mine", "app.kubernetes.io/name": "mine"}
    annotations = {"owner": "vision", "helm.sh/hook": "mine"}
    manifests = render(
        values_of(case) | {"extraObjects": [], "commonLabels": labels, "commonAnnotations": annotations}
    )
    found = [each["metadata"] for each in manifests]
    templates = [
        each["spec"]["template"]["metadata"] for each in manifests if each["kind"] in ("Deployment", "Job")
    ]
    for metadata in [*found, *templates]:
        assert metadata["labels"]["team"] == "vision"
        assert metadata["labels"].get("app.kubernetes.io/component") != "mine"
        assert metadata["labels"]["app.kubernetes.io/name"] == "inkserve"
        assert metadata["annotations"]["owner"] == "vision"
    assert "vision" not in str(one(manifests, "Deployment")["spec"]["selector"])
    tests = [each for each in manifests if each["kind"] == "Pod"]
    assert all(each["metadata"]["annotations"]["helm.sh/hook"] == "test" for each in tests)


def test_the_labels_of_a_section_win_over_the_common_ones() -> None:
    values = {
        "commonLabels": {"release": "a"},
        "serviceMonitor": {"enabled": True, "labels": {"release": "b"}},
    }
    assert one(render(values), "ServiceMonitor")["metadata"]["labels"]["release"] == "b"
    found = render({"commonLabels": {"tier": "a"}, "podLabels": {"tier": "b"}})
    assert one(found, "Deployment")["spec"]["template"]["metadata"]["labels"]["tier"] == "b"


def test_both_monitors_give_the_job_the_services_name() -> None:
    manifests = render(EXTRAS)
    (endpoint,) = one(manifests, "PodMonitor")["spec"]["podMetricsEndpoints"]
    service = one(manifests, "Service", "digits-inkserve")["metadata"]["name"]
    job = {"targetLabel": "job", "replacement": service}
    assert endpoint["relabelings"] == [job, *EXTRAS["podMonitor"]["relabelings"]]
    assert endpoint["metricRelabelings"] == EXTRAS["podMonitor"]["metricRelabelings"]
    assert endpoint["port"] == server(manifests)["ports"][0]["name"]
    labels = one(manifests, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert one(manifests, "PodMonitor")["spec"]["selector"]["matchLabels"].items() <= labels.items()

    public = values_of("public")
    monitor = one(render(public), "ServiceMonitor")["spec"]
    assert "jobLabel" not in monitor  # so it is the Service's name
    for name in ("relabelings", "metricRelabelings"):
        assert monitor["endpoints"][0][name] == public["serviceMonitor"][name]


def test_the_pod_monitor_speaks_mutual_tls() -> None:
    values = values_of("mutual-tls")
    endpoint = one(render(values), "ServiceMonitor")["spec"]["endpoints"][0]
    by_pod = values | {"serviceMonitor": {"enabled": False}, "podMonitor": {"enabled": True}}
    (found,) = one(render(by_pod), "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert found["tlsConfig"] == endpoint["tlsConfig"]
    assert found["scheme"] == "https"


@pytest.mark.parametrize("split", [False, True])
def test_the_agent_port_is_reached_on_each_pod_and_not_through_the_service(split: bool) -> None:
    manifests = render({**EXTRAS, "split": {"enabled": split}})
    container = server(manifests)
    assert {"name": "agent", "containerPort": 8001} in container["ports"]
    assert {"name": "INKSERVE_AGENT_PORT", "value": "8001"} in container["env"]
    (entry,) = one(manifests, "NetworkPolicy", "digits-inkserve")["spec"]["ingress"]
    assert {"port": "agent", "protocol": "TCP"} in entry["ports"]
    ports = {
        name: [port["name"] for port in one(manifests, "Service", name)["spec"]["ports"]]
        for name in ("digits-inkserve", "digits-inkserve-headless")
    }
    assert ports == {
        "digits-inkserve": ["http", "grpc"],
        "digits-inkserve-headless": ["http", "grpc", "agent"],
    }
    plain = render({})
    assert [port["name"] for port in server(plain)["ports"]] == ["http"]
    assert "agent" not in str(one(plain, "NetworkPolicy", "digits-inkserve"))


@pytest.mark.parametrize(
    ("tls", "protocol"), [("", "kubernetes.io/h2c"), ("a-certificate", "https")], ids=["plain", "tls"]
)
@pytest.mark.parametrize("split", [False, True])
def test_grpc_is_reached_through_the_service_and_on_each_pod(split: bool, tls: str, protocol: str) -> None:
    values = {
        "settings": {"grpcPort": 9000},
        "service": {"headless": True},
        "split": {"enabled": split},
        "tls": {"existingSecret": tls},
    }
    manifests = render(values)
    container = server(manifests)
    assert {"name": "grpc", "containerPort": 9000} in container["ports"]
    assert {"name": "INKSERVE_GRPC_PORT", "value": "9000"} in container["env"]
    for name in ("digits-inkserve", "digits-inkserve-headless"):
        *_, port = one(manifests, "Service", name)["spec"]["ports"]
        assert port == {"name": "grpc", "port": 9000, "targetPort": "grpc", "appProtocol": protocol}
    entry, *_ = one(manifests, "NetworkPolicy", "digits-inkserve")["spec"]["ingress"]
    assert {"port": "grpc", "protocol": "TCP"} in entry["ports"]
    assert "grpc" not in str(render({}))


@pytest.mark.parametrize(
    ("values", "other"),
    [
        ({"settings": {"grpcPort": 8000}}, r"settings\.port"),
        ({"settings": {"grpcPort": 8001, "agentPort": 8001}}, r"settings\.agentPort"),
        ({"settings": {"grpcPort": 8080}, "service": {"port": 8080}}, r"service\.port"),
    ],
)
def test_a_grpc_port_that_is_taken_is_rejected(values: dict[str, Any], other: str) -> None:
    with pytest.raises(
        helm_python.HelmRenderError, match=rf"settings\.grpcPort is \d+, expected another port than {other}"
    ):
        render(values)


def test_an_agent_port_that_is_the_services_own_is_rejected() -> None:
    with pytest.raises(
        helm_python.HelmRenderError, match=r"settings\.agentPort is 8000, expected another port"
    ):
        render({"settings": {"agentPort": 8000}})


def test_the_headless_service_has_every_pod_and_is_not_scraped() -> None:
    manifests = render(
        EXTRAS
        | {"podMonitor": {"enabled": False}, "serviceMonitor": {"enabled": True}, "settings": {"port": 8080}}
    )
    whole = one(manifests, "Service", "digits-inkserve")
    headless = one(manifests, "Service", "digits-inkserve-headless")
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["selector"] == whole["spec"]["selector"]
    assert headless["spec"]["ports"][0]["port"] == server(manifests)["ports"][0]["containerPort"] == 8080
    selector = one(manifests, "ServiceMonitor")["spec"]["selector"]["matchLabels"].items()
    assert selector <= whole["metadata"]["labels"].items()
    assert not selector <= headless["metadata"]["labels"].items()
    given = {name: value for name, value in EXTRAS["service"].items() if name not in ("nodePort", "headless")}
    assert given.items() <= whole["spec"].items()
    assert whole["spec"]["ports"][0]["nodePort"] == 30080


def test_the_route_has_its_filters_and_only_the_given_timeouts() -> None:
    for rule in one(render(EXTRAS), "HTTPRoute")["spec"]["rules"]:
        assert rule["filters"] == EXTRAS["httpRoute"]["filters"]
        assert rule["timeouts"] == EXTRAS["httpRoute"]["timeouts"]
    values = values_of("public")
    values["httpRoute"]["timeouts"] = {"request": "5s"}
    for rule in one(render(values), "HTTPRoute")["spec"]["rules"]:
        assert rule["timeouts"] == {"request": "5s"}
        assert "filters" not in rule


def test_the_users_behavior_wins_over_the_charts_and_their_metrics_join_it() -> None:
    scaler = one(render(EXTRAS), "HorizontalPodAutoscaler")["spec"]
    given = EXTRAS["autoscaling"]
    assert scaler["behavior"] == {
        "scaleUp": {"stabilizationWindowSeconds": 0} | given["behavior"]["scaleUp"],
        "scaleDown": given["behavior"]["scaleDown"],
    }
    load, *rest = scaler["metrics"]
    assert load["pods"]["metric"] == {"name": "inkserve_load"}
    assert rest == given["metrics"]
    alone = one(render({"autoscaling": given | {"targetLoad": 0}}), "HorizontalPodAutoscaler")["spec"]
    assert alone["metrics"] == given["metrics"]
    plain = one(render({"autoscaling": {"mode": "hpa"}}), "HorizontalPodAutoscaler")["spec"]
    assert plain["behavior"]["scaleDown"] == {"stabilizationWindowSeconds": 300}
    assert len(plain["metrics"]) == 1
    off = render({"autoscaling": given | {"mode": "off"}})
    assert all(each["kind"] != "HorizontalPodAutoscaler" for each in off)


def test_keda_has_the_users_triggers_and_behavior() -> None:
    given = {"mode": "keda", "behavior": EXTRAS["autoscaling"]["behavior"], "keda": {"triggers": [CRON]}}
    spec = one(render({"autoscaling": given}), "ScaledObject")["spec"]
    assert [each["type"] for each in spec["triggers"]] == ["prometheus", "cron"]
    assert spec["triggers"][1] == CRON
    horizontal = spec["advanced"]["horizontalPodAutoscalerConfig"]
    assert horizontal["behavior"]["scaleDown"] == given["behavior"]["scaleDown"]
    (trigger,) = one(render({"autoscaling": given | {"targetLoad": 0}}), "ScaledObject")["spec"]["triggers"]
    assert trigger == CRON


def test_prometheus_may_scrape_where_only_some_namespaces_may_call() -> None:
    def callers(policy: Values) -> list[Manifest]:
        values = {"networkPolicy": policy}
        (entry,) = one(render(values), "NetworkPolicy", "digits-inkserve")["spec"]["ingress"]
        found: list[Manifest] = entry.get("from", [])
        return found

    given = EXTRAS["networkPolicy"]
    assert callers(given)[-1] == given["prometheus"]
    assert callers(given)[:-1] == callers({"fromNamespaces": given["fromNamespaces"]})
    by_namespace = {"namespaceSelector": given["prometheus"]["namespaceSelector"]}
    assert callers(given | {"prometheus": by_namespace})[-1] == by_namespace
    assert callers({"prometheus": given["prometheus"]}) == []  # everyone may call


def test_objects_of_the_users_are_templates() -> None:
    manifests = render(EXTRAS)
    policy = one(manifests, "NetworkPolicy", "digits-inkserve-logs")
    assert policy["spec"]["podSelector"]["matchLabels"] == {"app.kubernetes.io/instance": "digits"}


def test_scheduling_and_names_reach_the_pod() -> None:
    pod = pod_of(EXTRAS)
    for name in ("schedulerName", "dnsPolicy", "dnsConfig", "hostAliases"):
        assert pod[name] == EXTRAS[name]
        assert name not in pod_of({})
    spec = one(render(EXTRAS), "Deployment")["spec"]
    assert spec["minReadySeconds"] == 10
    slow = one(render({"minReadySeconds": 900}), "Deployment")["spec"]
    assert slow["progressDeadlineSeconds"] > 900  # Kubernetes rejects less


def test_the_registry_stands_before_the_repository() -> None:
    assert server(render(EXTRAS))["image"] == "registry.example.com:5000/inkserve:0.2.0-cuda"
    images = {each["image"] for pod in pod_specs(render({})) for each in pod["containers"]}
    assert images == {"inkserve:0.2.0"}


CRON = {
    "type": "cron",
    "metadata": {"timezone": "Etc/UTC", "start": "0 8 * * *", "end": "0 18 * * *", "desiredReplicas": "6"},
}
EXEC = {"exec": {"command": ["true"]}}


@pytest.mark.parametrize(
    ("values", "lifecycle", "seconds"),
    [
        ({"preStopSleepSeconds": 5, "lifecycle": {"postStart": EXEC}}, {"postStart", "preStop"}, 50),
        ({"lifecycle": {"preStop": {"sleep": {"seconds": 7}}}}, {"preStop"}, 52),
        ({"lifecycle": {"preStop": EXEC}, "terminationGracePeriodSeconds": 90}, {"preStop"}, 90),
    ],
)
def test_the_grace_period_covers_the_handlers(values: Values, lifecycle: set[str], seconds: int) -> None:
    pod = pod_of(values)
    assert pod["containers"][0]["lifecycle"].keys() == lifecycle
    assert pod["terminationGracePeriodSeconds"] == seconds


def container(**fields: Any) -> Values:
    return {"name": "mine", "image": "mine:1"} | fields


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"extraEnv": [{"name": "INKSERVE_PORT", "value": "1"}]},
            "extraEnv has INKSERVE_PORT, expected it in settings",
        ),
        (
            {"extraEnv": 2 * [{"name": "A", "value": "1"}]},
            "extraEnv has A, expected one that no other variable",
        ),
        (
            {"settings": {"provider": "cuda"}, "extraEnv": [{"name": "CUDA_CACHE_PATH", "value": "/x"}]},
            "extraEnv has CUDA_CACHE_PATH, expected one",
        ),
        (
            {"extraEnv": [{"name": "A", "vale": "1"}]},
            "/extraEnv/0': additional properties 'vale' not allowed",
        ),
        ({"extraEnv": [{"name": "A", "value": 1}]}, "/extraEnv/0/value': got number, want string"),
        (
            {"extraEnv": [{"name": "A", "value": "1", "valueFrom": {"fieldRef": {"fieldPath": "a"}}}]},
            "/extraEnv/0'",
        ),
        (
            {"extraEnv": [{"name": "A", "valueFrom": {}}]},
            "/extraEnv/0/valueFrom': minProperties: got 0, want 1",
        ),
        ({"extraEnvFrom": [{"configMapReff": {"name": "a"}}]}, "/extraEnvFrom/0': additional properties"),
        (
            {"extraVolumes": [{"name": "tmp", "emptyDir": {}}]},
            "extraVolumes has tmp, expected one that no other volume",
        ),
        ({"extraVolumes": [{"name": "a", "hostPath": {"path": "/"}}]}, "'hostPath' not allowed"),
        ({"extraVolumes": [{"name": "a", "emptyDir": {"medium": None}}]}, "/extraVolumes/0/emptyDir/medium'"),
        (
            {"extraVolumeMounts": [{"name": "a", "mountPath": "/tmp/"}]},
            "extraVolumeMounts has /tmp, expected one",
        ),
        ({"extraVolumeMounts": [{"name": "a", "mountpath": "/a"}]}, "/extraVolumeMounts/0'"),
        (
            {"sidecars": [container(name="inkserve")]},
            "sidecars has inkserve, expected one that no other container",
        ),
        (
            {"split": {"enabled": True}, "initContainers": [container(name="http")]},
            "initContainers has http, expected one that no other container",
        ),
        ({"initContainers": [container()], "sidecars": [container()]}, "sidecars has mine, expected one"),
        ({"sidecars": [{"name": "mine"}]}, "/sidecars/0': missing property 'image'"),
        (
            {"sidecars": [container(imagePolicy="Always")]},
            "/sidecars/0': additional properties 'imagePolicy'",
        ),
        ({"sidecars": [container(livenessProbe={"tcpSocket": {"port": None}})]}, "tcpSocket/port'"),
        ({"sidecars": [container(ports=[{"port": 1}])]}, "/sidecars/0/ports/0'"),
        ({"extraVolumes": [{"name": "a", "csi": {}}]}, "/extraVolumes/0/csi': missing property 'driver'"),
        ({"affinity": {"nodeAffinty": {}}}, "/affinity': additional properties 'nodeAffinty'"),
        ({"affinity": {"nodeAffinity": {REQUIRED: [{}]}}}, f"/affinity/nodeAffinity/{REQUIRED}': got array"),
        ({"affinity": {"podAffinity": {REQUIRED: [{}]}}}, "missing property 'topologyKey'"),
        ({"dnsPolicy": "None"}, "dnsConfig.nameservers is empty, expected an address with dnsPolicy None"),
        ({"dnsConfig": {"nameserver": ["10.0.0.1"]}}, "/dnsConfig': additional properties 'nameserver'"),
        ({"hostAliases": [{"ip": "10.0.0.1"}]}, "/hostAliases/0': missing property 'hostnames'"),
        (
            {"preStopSleepSeconds": 5, "lifecycle": {"preStop": EXEC}},
            "preStopSleepSeconds is 5, expected 0 with lifecycle.preStop",
        ),
        (
            {"lifecycle": {"preStop": EXEC}},
            "terminationGracePeriodSeconds is null, expected a number with lifecycle.preStop.exec",
        ),
        ({"lifecycle": {"preStop": EXEC | {"sleep": {"seconds": 1}}}}, "/lifecycle/preStop': maxProperties"),
        (
            {"service": {"nodePort": 30080}},
            "service.nodePort is 30080, expected none with service.type ClusterIP",
        ),
        (
            {"service": {"type": "NodePort", "loadBalancerSourceRanges": ["10.0.0.0/8"]}},
            "service.loadBalancerSourceRanges is .10.0.0.0/8., expected none with service.type NodePort",
        ),
        ({"httpRoute": {"filters": [{"type": "URLRewrite"}]}}, "/httpRoute/filters/0': minProperties"),
        ({"httpRoute": {"timeouts": {"request": "10"}}}, "/httpRoute/timeouts/request'"),
        (
            {"serviceMonitor": {"relabelings": [{"sourceLabel": ["a"]}]}},
            "additional properties 'sourceLabel'",
        ),
        (
            {"serviceMonitor": {"enabled": True}, "podMonitor": {"enabled": True}},
            "podMonitor.enabled is true, expected false with serviceMonitor.enabled",
        ),
        (
            {"extraObjects": [{"kind": "ConfigMap"}]},
            "/extraObjects/0': missing properties 'apiVersion', 'metadata'",
        ),
        (
            {"autoscaling": {"mode": "hpa", "targetLoad": 0}},
            "targetLoad is 0, expected a metric in autoscaling.metrics",
        ),
        (
            {"autoscaling": {"mode": "keda", "targetLoad": 0}},
            "targetLoad is 0, expected a metric in autoscaling.keda.triggers",
        ),
        (
            {"autoscaling": {"mode": "hpa", "keda": {"triggers": [CRON]}}},
            "autoscaling.keda.triggers is set, expected mode keda, which reads it, not hpa",
        ),
        ({"autoscaling": EXTRAS["autoscaling"] | {"mode": "keda"}}, "metrics is set, expected mode hpa"),
        ({"autoscaling": {"targetLoad": 0.01}}, "/autoscaling/targetLoad'"),
        ({"autoscaling": {"behavior": {"scaleup": {}}}}, "/autoscaling/behavior': additional properties"),
        (
            {"autoscaling": {"behavior": {"scaleUp": {"policies": [{"type": "Pods", "value": 1}]}}}},
            "/policies/0': missing property 'periodSeconds'",
        ),
        (
            {"autoscaling": {"metrics": [{"type": "Resource", "resource": {"name": "cpu"}}]}},
            "/metrics/0/resource': missing property 'target'",
        ),
        ({"autoscaling": {"metrics": [{"type": "Resource"}]}}, "/metrics/0': minProperties"),
        (
            {"autoscaling": {"keda": {"triggers": [CRON | {"metadata": {"desiredReplicas": 6}}]}}},
            "desiredReplicas': got number, want string",
        ),
        (
            {"networkPolicy": {"prometheus": {"namespaceSelector": {"matchLabel": {}}}}},
            "/networkPolicy/prometheus/namespaceSelector': additional properties 'matchLabel'",
        ),
        ({"image": {"registry": "https://registry.example.com"}}, "/image/registry'"),
        ({"commonLabels": {"team": "a b"}}, "/commonLabels/team'"),
    ],
)
def test_typing_errors_and_collisions_are_rejected(values: Values, message: str) -> None:
    with pytest.raises((helm_python.HelmValuesError, helm_python.HelmRenderError), match=message):
        render(values)
