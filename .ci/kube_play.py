#!/usr/bin/env python3
"""Play the rendered chart with podman, under callers that keep their connections, and roll it out twice.

Requires root and a network namespace of its own; .ci/image-check starts it with the image that it has built.
podman starts the Deployment's pod as the manifest says, but runs no probe and has no Service. So this program
asks each probe, and is the Service: it translates one address to the pod that is ready, as kube-proxy does.

Exit status: 0 if all held, 1 if not, 3 if podman cannot run a container on this machine.
"""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import helm_python
import yaml
from keep_alive_callers import Caller, CallError, calling, wait_for_more
from played_pod import Manifest, PlayError, Pod, podman, run

CHART = Path(__file__).parents[1] / "helm"
PLAYED, FAILED, UNABLE = 0, 1, 3
FORMS: dict[str, dict[str, Any]] = {"default": {}, "split": {"split": {"enabled": True}}}
ROLLOUTS = ("default", "split", "default")
"""The form of each revision: both start under load, and both stop under load."""

ADDRESS, PORT, CHAIN = "10.96.0.10", 80, "SERVICE"
SERVICE = f"{ADDRESS}:{PORT}"
ENDPOINT_DELAY_SECONDS = 1.0
"""How long callers still reach a pod after its SIGTERM: proxies learn of it later than the pod."""


def main(image: str) -> int:
    """Play both forms of the chart with an image, such as localhost/inkserve:check."""
    try:
        podman("run", "--rm", "--read-only", "--entrypoint=true", image)
    except PlayError as error:
        print(f"kube-play: NOT PLAYED: {error}", file=sys.stderr)
        return UNABLE
    try:
        roll_out(image)
    except (CallError, PlayError) as error:
        print(f"kube-play: FAILED: {error}", file=sys.stderr)
        return FAILED
    finally:
        podman("pod", "rm", "--all", "--force", "--time=0")  # their cgroups would outlive this namespace
    return PLAYED


def roll_out(image: str) -> None:
    """Replace one pod after the other while callers send. Raises PlayError if one of them loses anything."""
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", f"{ADDRESS}/32", "dev", "lo")
    pods = (Pod(deployment(image, form), revision, form) for revision, form in enumerate(ROLLOUTS, 1))
    old = next(pods)
    start(old)
    run("iptables", "--table", "nat", "--new-chain", CHAIN)
    run("iptables", "--table", "nat", "--insert", "OUTPUT", "--destination", ADDRESS, "--jump", CHAIN)
    point_service_at(old, "--append", CHAIN)
    with closing(Caller(SERVICE)) as caller:
        label = caller.classify()
    with calling(SERVICE) as callers:
        for new in pods:
            start(new)
            say(f"{replace(old, new)}; {sum(caller.answers for caller in callers)} answers by now")
            wait_for_more(callers)
            old = new
    opened = sum(caller.opened for caller in callers)
    say(
        f"passed: label {label}, {sum(c.answers for c in callers)} answers on {opened} connections, none lost"
    )


def start(pod: Pod) -> None:
    """Start a pod and say how long it took."""
    say(f"revision {pod.revision} ({pod.form}) answers every probe after {pod.start():.1f} s")


def replace(old: Pod, new: Pod) -> str:
    """Stop a pod and, a little later, send new connections to the other, as Kubernetes does."""
    started = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        stopped = threads.submit(old.stop)
        time.sleep(ENDPOINT_DELAY_SECONDS)
        point_service_at(new, "--replace", CHAIN, "1")
        stopped.result()
    return f"revision {old.revision} ({old.form}) exited with 0 after {time.monotonic() - started:.1f} s"


def deployment(image: str, form: str) -> Manifest:
    """Return the chart's Deployment for an image."""
    repository, _, tag = image.rpartition(":")
    values = FORMS[form] | {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="digits", namespace="serving")
    found: Manifest = yaml.safe_load(files["inkserve/templates/deployment.yaml"])
    return found


def point_service_at(pod: Pod, *how: str) -> None:
    """Send new connections to a pod; those that are open stay where they are."""
    rule = ["--protocol", "tcp", "--dport", str(PORT), "--jump", "DNAT", "--to-destination", pod.endpoint]
    run("iptables", "--table", "nat", *how, *rule)


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"kube-play: {text}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
