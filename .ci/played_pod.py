"""A pod of the chart's Deployment, played by podman, whose probes this module asks."""

import copy
import json
import subprocess
import time
from contextlib import closing
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import yaml
from keep_alive_callers import Caller, CallError

Manifest = dict[str, Any]

WRITES = """
import os, tempfile
assert os.statvfs("/").f_flag & os.ST_RDONLY, "the root can be written to"
tempfile.TemporaryFile(dir="/tmp").close()
"""


class PlayError(Exception):
    """What did not hold: what was seen, and what was expected."""


class Pod:
    """The pod of one revision of the Deployment."""

    def __init__(self, manifest: Manifest, revision: int, form: str) -> None:
        self.revision, self.form = revision, form
        self._manifest = playable(manifest, revision)
        self._spec = self._manifest["spec"]["template"]["spec"]
        self._name = f"{self._manifest['metadata']['name']}-pod-0"
        self._address = ""

    @property
    def endpoint(self) -> str:
        """The address and port of the container that speaks HTTP, once the pod was started."""
        (port,) = [port for container in self._spec["containers"] for port in container.get("ports", [])]
        return f"{self._address}:{port['containerPort']}"

    def start(self) -> float:
        """Start the pod, wait for its startup probes, ask the others, and check how it is confined.

        Returns the seconds that it took. Raises PlayError if one of this fails.
        """
        started = time.monotonic()
        with NamedTemporaryFile("w", suffix=".yaml") as file:
            file.write(yaml.safe_dump(self._manifest))
            file.flush()
            podman("kube", "play", "--quiet", file.name)
        infra = podman("pod", "inspect", "--format", "{{.InfraContainerID}}", self._name).strip()
        (network,) = inspect(infra)["NetworkSettings"]["Networks"].values()
        self._address = network["IPAddress"]
        for container in self._spec["containers"]:
            self._wait(container)
        for container in self._spec["containers"]:
            for kind in ("readinessProbe", "livenessProbe"):
                if kind in container:
                    self._ask(container, container[kind])
            self._check_confinement(f"{self._name}-{container['name']}")
        return time.monotonic() - started

    def stop(self) -> None:
        """Send SIGTERM to every container. Raises PlayError unless each exits with 0 in the grace period."""
        names = [f"{self._name}-{container['name']}" for container in self._spec["containers"]]
        # Not `pod stop`, which takes the network away while the containers still drain.
        podman("stop", f"--time={self._spec['terminationGracePeriodSeconds']}", *names)
        for name in names:
            code = inspect(name)["State"]["ExitCode"]
            if code != 0:
                raise PlayError(f"{name} exited with {code}, expected 0\n{podman('logs', name)}")
        podman("pod", "rm", "--force", self._name)

    def _wait(self, container: Manifest) -> None:
        probe = container["startupProbe"]
        deadline = time.monotonic() + probe["periodSeconds"] * probe["failureThreshold"]
        while True:
            try:
                return self._ask(container, probe)
            except (CallError, PlayError) as error:
                name = f"{self._name}-{container['name']}"
                if time.monotonic() > deadline or not inspect(name)["State"]["Running"]:
                    raise PlayError(f"{error}\n{podman('logs', name)}") from error
                time.sleep(probe["periodSeconds"] / 4)

    def _ask(self, container: Manifest, probe: Manifest) -> None:
        if "exec" in probe:
            podman("exec", f"{self._name}-{container['name']}", *probe["exec"]["command"])
            return
        with closing(Caller(self.endpoint, probe["timeoutSeconds"])) as caller:
            caller.ask("GET", probe["httpGet"]["path"])

    def _check_confinement(self, name: str) -> None:
        state = inspect(name)["State"]
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{state['Pid']}/status").read_text().splitlines()
        )
        user = self._spec["securityContext"]["runAsUser"]
        seen = {key: status[key].split() for key in ("Uid", "CapPrm", "CapBnd", "NoNewPrivs", "Seccomp")}
        none = ["0" * 16]
        expected = {
            "Uid": [str(user)] * 4,
            "CapPrm": none,
            "CapBnd": none,
            "NoNewPrivs": ["1"],
            "Seccomp": ["2"],
        }
        if user == 0 or seen != expected:
            raise PlayError(f"{name} runs with {seen}, expected {expected}")
        podman("exec", name, "python", "-c", WRITES)


def playable(manifest: Manifest, revision: int) -> Manifest:
    """Return a Deployment whose pod shares nothing with that of another revision.

    podman 4.3 has one namespace of volumes for all pods, and publishes each port of a container on the host.
    """
    changed = copy.deepcopy(manifest)
    changed["metadata"]["name"] += f"-{revision}"
    changed["spec"]["replicas"] = 1
    pod = changed["spec"]["template"]["spec"]
    for container in pod["containers"]:
        for named in container["volumeMounts"]:
            named["name"] += f"-{revision}"
        for port in container.get("ports", []):
            port["hostPort"] = port["containerPort"] + revision
    for named in pod["volumes"]:
        named["name"] += f"-{revision}"
    return changed


def inspect(name: str) -> dict[str, Any]:
    """Return what podman knows of a container."""
    (found,) = json.loads(podman("container", "inspect", name))
    return dict(found)


def podman(*arguments: str) -> str:
    """Run podman. Its log is left out: without systemd it reports the HEALTHCHECK that it cannot schedule."""
    return run("podman", "--log-level=fatal", *arguments)


def run(*command: str) -> str:
    """Return what a command prints. Raises PlayError with its errors if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PlayError(f"{' '.join(command)}: exit status {done.returncode}: {done.stderr.strip()}")
    return done.stdout
