"""The chart's promises, checked on a real service that runs in the rendered environment."""

import importlib.util
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.authorities import Authority
from tests.support.charts import Manifest, environment, one, render, server, servers, values_of
from tests.support.collector import collecting
from tests.support.models import add_reader

ROOT = Path(__file__).parents[2]
READY = re.compile(r"the engine is ready|ready at (?P<url>https?://127\.0\.0\.1:\d+)")


class Container:
    """A rendered container's command, run here in the rendered environment.

    env: variables that must differ on this machine.
    """

    def __init__(self, manifest: Manifest, env: dict[str, str]) -> None:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("INKSERVE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "service", *manifest.get("args", [])],
            cwd=ROOT,
            env=clean | environment(manifest) | env,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """Wait until the service is ready; returns its URL, or "None" for an engine."""
        assert self.process.stderr is not None
        lines = []
        for line in self.process.stderr:
            lines.append(line)
            if ready := READY.search(line):
                assert all(json.loads(line)["level"] == "info" for line in lines)  # settings.logFormat: json
                return str(ready["url"])
        pytest.fail("the service did not start:\n" + "".join(lines))

    def kill(self) -> None:
        """Kill every process, as a container does when its first process is killed."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        workers = [int(pid) for pid in children.read_text().split()] if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for pid in workers:
            os.kill(pid, signal.SIGKILL)

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def serving(manifest: Manifest, env: dict[str, str]) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run the service in a container's environment; yields the process and its URL."""
    with Container(manifest, env) as container:
        yield container.process, container.url()


def status(url: str, body: bytes | None = None, tls: ssl.SSLContext | None = None) -> int:
    try:
        with urllib.request.urlopen(url, body, timeout=30, context=tls) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def on_this_machine(models: Path) -> dict[str, str]:
    """Return the variables that differ from a pod's: the models' folder and a port of the system's choice."""
    return {"INKSERVE_MODELS_DIR": str(models), "INKSERVE_PORT": "0"}


@pytest.fixture
def models(add_classifier: Callable[..., Path], add_generator: Callable[..., Path], tmp_path: Path) -> Path:
    add_classifier()
    add_generator()
    return tmp_path


def test_the_service_passes_the_probes_and_the_test_pod_and_drains(models: Path) -> None:
    manifests = render({"settings": {"drainSeconds": 3}, "test": {"expectedLabel": "0"}})
    container = server(manifests)
    (port,) = container["ports"]
    assert environment(server(manifests))["INKSERVE_PORT"] == str(port["containerPort"])
    probes = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")}
    assert {probe["port"] for probe in probes.values()} == {port["name"]}
    with serving(container, on_this_machine(models)) as (process, url):
        for probe in probes.values():
            assert status(url + probe["path"]) == 200
        assert status(f"{url}/metrics") == 200
        _run_test_pod(one(manifests, "Pod"), url)
        process.terminate()
        _until(url + probes["readiness"]["path"], 503)
        # While it drains, clients that still use this endpoint get responses.
        assert status(url + probes["liveness"]["path"]) == 200
        assert status(f"{url}/generate?digit=7") == 200
        pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
        assert process.wait(timeout=pod["terminationGracePeriodSeconds"]) == 0


def _smoke_command(container: Manifest, url: str) -> list[str]:
    """Return the command of a container with the chart's check, for this machine."""
    program, *arguments = container["args"]
    assert arguments[0] in ("http://digits-inkserve:80", "https://digits-inkserve.serving.svc:443")
    return [sys.executable, *container["command"][1:], program, url, *arguments[1:]]


def _run_test_pod(pod: dict[str, Any], url: str) -> None:
    """Run the pod's command here. The seven's first pixel is 0, so the tiny classifier returns "0"."""
    (container,) = pod["spec"]["containers"]
    command = _smoke_command(container, url)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert "read the drawn seven as 0" in done.stdout
    assert "a seven was generated" in done.stdout
    wrong = [argument.replace("=0", "=7") for argument in command]
    failed = subprocess.run(wrong, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert "read as '0', expected '7'" in failed.stderr


def _until(url: str, expected: int) -> None:
    _until_equal(lambda: status(url), expected)


def _until_equal(see: Callable[[], float], expected: float) -> None:
    give_up = time.monotonic() + 60
    while (seen := see()) != expected:
        assert time.monotonic() < give_up, f"{seen} was seen, expected {expected}"
        time.sleep(0.01)


def _total(url: str, name: str) -> float:
    """Return a metric summed over its labels."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (.*)$", text, re.MULTILINE))


def _classify(url: str) -> None:
    with urllib.request.urlopen(f"{url}/classify", bytes(784), timeout=30) as response:
        assert json.load(response)["predictions"][0]["label"] == "0"


def _answers(probe: Manifest, path: Path) -> bool:
    """Return whether an engine's probe succeeds here, with this machine's socket path."""
    program, *arguments, rendered = probe["exec"]["command"]
    assert program == "python"
    assert rendered == "/run/inkserve/engine.sock"
    command = [sys.executable, *arguments, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize("order", [("engine", "http"), ("http", "engine")])
def test_each_half_outlives_the_others_restart_and_both_drain(
    models: Path, tmp_path: Path, order: tuple[str, str]
) -> None:
    """Act as the kubelet: start and stop the halves in either order, and restart one that died."""
    values = values_of("split") | {"settings": {"drainSeconds": 3}, "test": {"expectedLabel": "0"}}
    manifests = render(values)
    halves = servers(manifests)
    readiness, liveness = (
        halves["http"][f"{kind}Probe"]["httpGet"]["path"] for kind in ("readiness", "liveness")
    )
    startup, engine_liveness = (halves["engine"][f"{kind}Probe"] for kind in ("startup", "liveness"))
    socket = tmp_path / "engine.sock"
    env = on_this_machine(models) | {"INKSERVE_SOCKET": str(socket)}
    with ExitStack() as stack:

        def start(name: str) -> Container:
            return stack.enter_context(Container(halves[name], env))

        assert not _answers(startup, socket)
        running = {name: start(name) for name in order}
        running["engine"].url()
        assert _answers(startup, socket)
        url = running["http"].url()
        assert status(url + readiness) == status(url + liveness) == 200
        _run_test_pod(one(manifests, "Pod"), url)
        requests, rows = _total(url, "inkserve_requests_total"), _total(url, "inkserve_rows_total")
        assert rows == 3  # the test pod's program ran twice, the second time only up to its first response

        running["engine"].kill()
        _until(url + readiness, 503)
        assert status(url + liveness) == 200
        assert not _answers(engine_liveness, socket)
        running["engine"] = start("engine")
        running["engine"].url()
        _until(url + readiness, 200)
        # Each process of the http container reconnects separately.
        _until_equal(lambda: status(f"{url}/classify", bytes(784)), 200)
        _until_equal(lambda: _total(url, "inkserve_rows_total"), rows + 1)
        assert _total(url, "inkserve_requests_total") > requests

        running["http"].kill()
        assert _answers(engine_liveness, socket)
        running["http"] = start("http")
        url = running["http"].url()
        _classify(url)
        assert _total(url, "inkserve_rows_total") == 2  # this engine's

        for name in order:
            running[name].process.terminate()
        _until(url + readiness, 503)
        # While they drain, clients that still use this endpoint get responses.
        assert status(url + liveness) == 200
        _classify(url)
        pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
        for container in running.values():
            assert container.process.wait(timeout=pod["terminationGracePeriodSeconds"]) == 0


def test_both_halves_send_their_spans_to_the_charts_collector(models: Path, tmp_path: Path) -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")

    with collecting() as collector:
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        tracing = {"enabled": True, "endpoint": endpoint, "sampler": "traceidratio", "ratio": 1}
        halves = servers(
            render({"tracing": tracing, "split": {"enabled": True}, "settings": {"drainSeconds": 0}})
        )
        env = on_this_machine(models) | {"INKSERVE_SOCKET": str(tmp_path / "engine.sock")}
        with Container(halves["engine"], env) as engine, Container(halves["http"], env) as http:
            _classify(http.url())
            for container in (http, engine):
                container.process.terminate()
                assert container.process.wait(timeout=60) == 0
    (request,), (batch,) = collector.named("POST /classify"), collector.named("batch")
    assert request.trace == batch.trace
    for span, half in ((request, "http"), (batch, "engine")):
        assert span.service == "digits-inkserve"
        assert span.resource["k8s.pod.name"] == "a-pod"
        assert span.resource["k8s.namespace.name"] == "serving"
        assert span.resource["k8s.container.name"] == half


def _run_load_job(job: Manifest, url: str, mounted: Path) -> tuple[str, subprocess.CompletedProcess[str]]:
    """Run the Job's containers here; returns the first one's output and the second one's result.

    mounted: the folder in place of /etc/inkserve.
    """
    text = json.dumps(job["spec"]["template"]["spec"])
    spec = json.loads(text.replace("/etc/inkserve", str(mounted)))
    (wait,), (locust,) = spec["initContainers"], spec["containers"]
    waited = subprocess.run(
        _smoke_command(wait, url), capture_output=True, text=True, timeout=60, check=False
    )
    assert waited.returncode == 0, waited.stderr
    (host,) = [argument for argument in locust["args"] if argument.startswith("--host=")]
    assert host in ("--host=http://digits-inkserve:80", "--host=https://digits-inkserve.serving.svc:443")
    flags = [f"--host={url}" if argument == host else argument for argument in locust["args"]]
    # Like the image's ENTRYPOINT.
    command = [
        sys.executable,
        "-m",
        "locust",
        "--locustfile",
        str(ROOT / "loadtests" / "locustfile.py"),
        *flags,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return waited.stdout, ended


@pytest.mark.parametrize("right", [True, False])
def test_the_load_job_succeeds_only_if_the_responses_are_right(
    add_generator: Callable[..., Path], add_classifier: Callable[..., Path], tmp_path: Path, right: bool
) -> None:
    # Do not import it: it patches the standard library's sockets, and hung next to another test's thread.
    if importlib.util.find_spec("locust") is None:
        pytest.skip("locust is not installed")
    if right:
        add_reader(tmp_path)
    else:
        add_classifier()  # sees a 0 in every digit
    add_generator()
    load = {"enabled": True, "image": "inkserve-loadtest", "rate": 40, "durationSeconds": 4, "stages": "soak"}
    manifests = render(
        {"loadTest": load, "test": {"expectedLabel": ""}, "apiKeys": values_of("api-keys")["apiKeys"]}
    )
    keys = tmp_path / "_mounted" / "api-keys" / "keys"
    keys.parent.mkdir(parents=True)
    keys.write_text(one(manifests, "Secret")["stringData"]["api-keys"])
    env = on_this_machine(tmp_path) | {"INKSERVE_API_KEYS_FILE": str(keys)}
    with serving(server(manifests), env) as (_, url):
        assert status(f"{url}/classify", bytes(784)) == 401
        waited, ended = _run_load_job(one(manifests, "Job"), url, keys.parents[1])
        assert "read the drawn seven as" in waited
        assert ended.returncode == (0 if right else 1), ended.stderr
        assert _total(url, "inkserve_requests_total") > 80  # rate x time is 160


def test_the_service_requires_the_charts_keys_and_the_test_pod_sends_one(
    models: Path, tmp_path: Path
) -> None:
    manifests = render(values_of("api-keys") | {"split": {}, "test": {"expectedLabel": "0"}})
    keys = tmp_path / "keys"
    keys.write_text(one(manifests, "Secret")["stringData"]["api-keys"])
    with serving(server(manifests), on_this_machine(models) | {"INKSERVE_API_KEYS_FILE": str(keys)}) as (
        _,
        url,
    ):
        assert [status(url + path) for path in ("/v2/health/live", "/v2/health/ready", "/metrics")] == [
            200
        ] * 3
        (test,) = one(manifests, "Pod")["spec"]["containers"]
        command = _smoke_command(test, url)
        assert command[-1] == "--api-keys-file=/etc/inkserve/api-keys/keys"
        without = subprocess.run(command[:-1], capture_output=True, text=True, timeout=60, check=False)
        assert without.returncode == 1
        assert "401" in without.stderr
        command[-1] = f"--api-keys-file={keys}"
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr


def test_with_mutual_tls_probes_need_no_certificate_and_the_charts_callers_send_one(
    add_generator: Callable[..., Path], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if importlib.util.find_spec("locust") is None:
        pytest.skip("locust is not installed")
    add_reader(tmp_path)
    add_generator()
    load = {"rate": 20, "durationSeconds": 2, "stages": "soak", "workers": 1, "mix": "raw=1"}
    load |= {"minRateShare": 0.1, "maxP99Ms": 10000}
    values = values_of("mutual-tls") | {"test": {"expectedLabel": ""}}
    manifests = render(values | {"loadTest": values["loadTest"] | load})
    container = server(manifests)
    mounted = tmp_path_factory.mktemp("mounted")
    services, callers = Authority(mounted, "services"), Authority(mounted, "callers")
    for folder, names in {
        "tls": services.issue("service"),
        "client-tls": callers.issue("caller"),
        "server-ca": (services.file,),
        "client-ca": (callers.file,),
    }.items():
        (mounted / folder).mkdir()
        files = ("tls.crt", "tls.key") if len(names) == 2 else ("ca.crt",)
        for source, name in zip(names, files, strict=True):
            shutil.copyfile(source, mounted / folder / name)
    here = {
        name: value.replace("/etc/inkserve", str(mounted))
        for name, value in environment(container).items()
        if "SSL" in name
    }
    kubelet = ssl._create_unverified_context()
    with serving(container, on_this_machine(tmp_path) | here) as (_, url):
        assert url.startswith("https://")
        for kind in ("startup", "readiness", "liveness"):
            probe = container[f"{kind}Probe"]["httpGet"]
            assert (probe["scheme"], status(url + probe["path"], tls=kubelet)) == ("HTTPS", 200)
        for path in ("/metrics", "/models"):
            assert status(url + path, tls=kubelet) == 403
        (test,) = one(manifests, "Pod")["spec"]["containers"]
        command = [word.replace("/etc/inkserve", str(mounted)) for word in _smoke_command(test, url)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        without = [word for word in command if "client" not in word or word == command[2]]
        refused = subprocess.run(without, capture_output=True, text=True, timeout=60, check=False)
        assert (refused.returncode, "403" in refused.stderr) == (1, True), refused.stderr
        waited, ended = _run_load_job(one(manifests, "Job"), url, mounted)
        assert "read the drawn seven as" in waited
        assert ended.returncode == 0, ended.stderr


def test_the_service_ignores_the_variables_of_service_links_and_rejects_others() -> None:
    env = environment(server(render({}))) | {
        "INKSERVE_SERVICE_HOST": "10.0.0.1",
        "INKSERVE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "INKSERVE_MAX_BATCH": "8",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-m", "service"]
    ended = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert "INKSERVE_MAX_BATCH is not a setting" in ended.stderr
    assert "SERVICE_HOST" not in ended.stderr
