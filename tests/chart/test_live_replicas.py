"""The replicas where Helm reads the live Deployment: Helm's own engine and an API server's answers."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import helm_python
import pytest
import yaml

from tests.support.charts import Loader, Values, chart, one

DEPLOYMENTS = "/apis/apps/v1/namespaces/serving/deployments/"
DISCOVERY: dict[str, dict[str, Any]] = {
    "/version": {"major": "1", "minor": "36", "gitVersion": "v1.36.0"},
    "/api": {"kind": "APIVersions", "versions": ["v1"]},
    "/apis": {
        "kind": "APIGroupList",
        "groups": [
            {
                "name": "apps",
                "versions": [{"groupVersion": "apps/v1", "version": "v1"}],
                "preferredVersion": {"groupVersion": "apps/v1", "version": "v1"},
            }
        ],
    },
    "/api/v1": {"kind": "APIResourceList", "groupVersion": "v1", "resources": []},
    "/apis/apps/v1": {
        "kind": "APIResourceList",
        "groupVersion": "apps/v1",
        "resources": [{"name": "deployments", "namespaced": True, "kind": "Deployment", "verbs": ["get"]}],
    },
}


@contextmanager
def api_server(deployments: dict[str, int]) -> Iterator[str]:
    """Serve the reading half of an API server that has these Deployments; yields its URL.

    deployments: the replicas of each, by name.
    """

    def answer(path: str) -> dict[str, Any] | None:
        name = path.removeprefix(DEPLOYMENTS)
        if path.startswith(DEPLOYMENTS) and name in deployments:
            spec = {"replicas": deployments[name]}
            return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}
        return DISCOVERY.get(path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = answer(self.path.partition("?")[0])
            status = {
                "kind": "Status",
                "apiVersion": "v1",
                "status": "Failure",
                "reason": "NotFound",
                "code": 404,
            }
            body = json.dumps(found or status).encode()
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def deployment(url: str, values: Values) -> dict[str, Any]:
    with helm_python.Config(kube_apiserver=url, namespace="serving", storage_driver="memory") as config:
        files = config.render(chart(), values, name="digits", namespace="serving", is_upgrade=True)
    text = files["inkserve/templates/deployment.yaml"]
    spec: dict[str, Any] = one([yaml.load(text, Loader)], "Deployment")["spec"]
    return spec


@pytest.mark.parametrize("mode", ["hpa", "keda"])
@pytest.mark.parametrize("replicas", [6, 1, 0])  # 0: somebody has paused the service
def test_turning_autoscaling_on_keeps_the_live_replicas(mode: str, replicas: int) -> None:
    with api_server({"digits-inkserve": replicas}) as url:
        assert deployment(url, {"autoscaling": {"mode": mode}})["replicas"] == replicas
        renamed = {"autoscaling": {"mode": mode}, "fullnameOverride": "other"}
        assert "replicas" not in deployment(url, renamed)


def test_without_autoscaling_the_values_decide() -> None:
    with api_server({"digits-inkserve": 6}) as url:
        assert deployment(url, {"replicas": 3})["replicas"] == 3


def test_a_first_installation_leaves_the_number_to_the_autoscaler() -> None:
    with api_server({}) as url:
        assert "replicas" not in deployment(url, {"autoscaling": {"mode": "hpa"}})
