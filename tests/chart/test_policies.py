"""checkov's policies on the rendered chart. ALLOWED lists the accepted findings, each with its reason."""

import copy
import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.charts import CASES, Manifest, one, render, values_of

CHECKOV = Path(__file__).parents[2] / ".cache" / "checkov" / "bin" / "checkov"

pytestmark = pytest.mark.skipif(
    not CHECKOV.exists() and not os.environ.get("CI"), reason="checkov is missing: make checkov installs it"
)


@dataclass(frozen=True)
class Finding:
    """A check that a manifest of a case failed. kind: the manifest's, or Pod for a Deployment's pods."""

    case: str
    check: str
    kind: str


@dataclass(frozen=True)
class Allowed:
    """An accepted finding. kind, cases: empty for any."""

    check: str
    reason: str
    kind: str = ""
    cases: tuple[str, ...] = ()

    def covers(self, finding: Finding) -> bool:
        return (
            self.check == finding.check
            and self.kind in ("", finding.kind)
            and (not self.cases or finding.case in self.cases)
        )


ALLOWED = (
    Allowed(
        "CKV_K8S_43",  # image should use digest
        "Users build the image, so the chart cannot know its digest; image.digest sets it.",
    ),
    Allowed(
        "CKV_K8S_15",  # image pull policy should be Always
        "The tag names a release and is never overwritten: a node may use the image that it has, and pods "
        "start while the registry is down. image.pullPolicy sets the policy for other tags.",
    ),
    Allowed(
        "CKV_K8S_8",  # liveness probe
        "The pod of helm test runs once, at most two minutes; a restart would hide what it found.",
        kind="Pod",
    ),
    Allowed("CKV_K8S_9", "The pod of helm test receives no requests.", kind="Pod"),  # readiness probe
    Allowed(
        "CKV_K8S_9",
        "Only the other container calls the engine of the split form, and its readiness covers the engine.",
        kind="Deployment",
        cases=("api-keys", "split", "tls"),
    ),
    Allowed(
        "CKV_K8S_35",  # secrets as files
        "rclone reads its keys from the environment of the init container, which then exits.",
        kind="Deployment",
        cases=("object-store",),
    ),
    Allowed(
        "CKV_K8S_35",
        "The case has a variable from a Secret, because OpenTelemetry's SDK reads its headers from one.",
        kind="Deployment",
        cases=("extras",),
    ),
    Allowed(
        "CKV_K8S_40",  # run as a high UID
        "OpenShift assigns a high one to each namespace, and rejects the chart's.",
        cases=("openshift",),
    ),
    Allowed(
        "CKV2_K8S_6",  # pods without a network policy
        "The case is one pod with nothing around it, and switches the policy off.",
        kind="Pod",
        cases=("minimal",),
    ),
)


@dataclass(frozen=True)
class Report:
    """checkov's findings. passed: (case, kind) of each manifest that passed a check."""

    failed: set[Finding]
    passed: set[tuple[str, str]]


def judge(folder: Path, cases: Mapping[str, Iterable[Manifest]]) -> Report:
    """Run checkov once for all cases, because its startup takes longer than the checks."""
    for case, manifests in cases.items():
        for index, manifest in enumerate(manifests):
            file = folder / case / f"{index}.yaml"
            file.parent.mkdir(exist_ok=True)
            file.write_text(yaml.safe_dump(manifest))
    command = [str(CHECKOV), "--directory", str(folder), "--framework", "kubernetes", "--output", "json"]
    run = subprocess.run(
        [*command, "--compact", "--skip-download"], capture_output=True, text=True, timeout=240, check=False
    )
    assert run.returncode in (0, 1), run.stderr
    report = json.loads(run.stdout)
    assert report["summary"]["parsing_errors"] == 0
    results = report["results"]
    failed = {Finding(case_of(each), each["check_id"], kind_of(each)) for each in results["failed_checks"]}
    return Report(failed, {(case_of(each), kind_of(each)) for each in results["passed_checks"]})


def case_of(check: dict[str, Any]) -> str:
    return Path(check["file_path"]).parts[1]


def kind_of(check: dict[str, Any]) -> str:
    kind: str = check["resource"].partition(".")[0]
    return kind


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    # The release's name is in its labels and selectors, so no case's policy selects another's pods.
    cases = {case: render(values_of(case), name=case) for case in CASES}
    return judge(tmp_path_factory.mktemp("manifests"), cases)


@pytest.mark.parametrize("case", CASES)
def test_checkov_finds_only_what_is_allowed(report: Report, case: str) -> None:
    assert (case, "Deployment") in report.passed
    found = {finding for finding in report.failed if finding.case == case}
    assert {finding for finding in found if not any(each.covers(finding) for each in ALLOWED)} == set()


def test_every_allowed_finding_occurs(report: Report) -> None:
    assert [each for each in ALLOWED if not any(map(each.covers, report.failed))] == []


def test_checkov_finds_a_careless_pod(tmp_path: Path) -> None:
    manifests = copy.deepcopy(render({}))
    pod = one(manifests, "Deployment")["spec"]["template"]["spec"]
    pod["hostNetwork"] = True
    pod["containers"][0]["securityContext"] = {"privileged": True}
    del pod["containers"][0]["resources"]["limits"]
    del pod["containers"][0]["readinessProbe"]
    checks = {
        each.check for each in judge(tmp_path, {"careless": manifests}).failed if each.kind == "Deployment"
    }
    # Host network, privileged, memory limit, readiness probe, read-only root.
    assert checks >= {"CKV_K8S_19", "CKV_K8S_16", "CKV_K8S_13", "CKV_K8S_9", "CKV_K8S_22"}
