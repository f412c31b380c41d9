"""The chart's promises, held against a real service that runs with the environment that the chart renders."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_helm import environment, one, render, server

ROOT = Path(__file__).parent.parent


@contextmanager
def serving(env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service in this environment, and its URL."""
    command = [sys.executable, "-m", "service"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("INKSERVE_")}
    with subprocess.Popen(command, cwd=ROOT, env=clean | env, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            ready = re.search(r"ready at http://0\.0\.0\.0:(\d+)", line)
            if ready:
                break
        else:
            pytest.fail("the service did not start:\n" + "".join(lines))
        assert all(json.loads(line)["level"] == "info" for line in lines)  # settings.logFormat: json
        try:
            yield process, f"http://127.0.0.1:{ready[1]}"
        finally:
            if process.poll() is None:
                process.kill()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def on_this_machine(manifests: list[dict[str, Any]], models: Path) -> dict[str, str]:
    """A pod's environment, but for the models' folder and the port, which the system chooses here."""
    return environment(manifests) | {"INKSERVE_MODELS_DIR": str(models), "INKSERVE_PORT": "0"}


@pytest.fixture
def models(add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path) -> Path:
    add_classifier()
    add_generator()
    return tmp_path


def test_probes_test_pod_and_shutdown_are_what_the_service_does(models: Path) -> None:
    manifests = render({"settings": {"drainSeconds": 3}, "test": {"expectedLabel": "0"}})
    container = server(manifests)
    env = on_this_machine(manifests, models)
    (port,) = container["ports"]
    assert environment(manifests)["INKSERVE_PORT"] == str(port["containerPort"])
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    with serving(env) as (process, url):
        for probe in probes.values():
            assert status(url + probe["path"]) == 200
        assert status(f"{url}/metrics") == 200
        _run_test_pod(one(manifests, "Pod"), url)
        process.terminate()
        _until_unready(url + probes["readiness"]["path"])
        # The drain: endpoints are told to go, and whoever has not heard of it is still answered.
        assert status(url + probes["liveness"]["path"]) == 200
        assert status(f"{url}/generate?digit=7") == 200
        pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
        assert process.wait(timeout=pod["terminationGracePeriodSeconds"]) == 0


def _run_test_pod(pod: dict[str, Any], url: str) -> None:
    """Run the pod's command here; the service's first pixel is 0, so the tiny classifier says "0"."""
    (container,) = pod["spec"]["containers"]
    program, *arguments = container["args"]
    assert arguments[0] == "http://digits-inkserve:80"
    command = [sys.executable, *container["command"][1:], program, url, *arguments[1:]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "read the drawn seven as 0" in done.stdout
    assert "a seven was generated" in done.stdout
    wrong = [argument.replace("=0", "=7") for argument in command]
    failed = subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert "read as '0', expected '7'" in failed.stderr


def _until_unready(url: str) -> None:
    give_up = time.monotonic() + 30
    while status(url) != 503:
        assert time.monotonic() < give_up, "SIGTERM did not make the service unready"


def test_the_service_refuses_what_service_links_would_put_into_its_environment(models: Path) -> None:
    env = on_this_machine(render({}), models) | {
        "INKSERVE_SERVICE_HOST": "10.0.0.1",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-m", "service"]
    ended = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "INKSERVE_SERVICE_HOST is not a setting" in ended.stderr
