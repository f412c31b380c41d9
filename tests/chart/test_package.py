"""The packaged chart, as `make chart-package` writes it and a registry holds it."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import helm_python
import pytest

from tests.support.charts import CHART, ROOT, chart, pod_specs, render, values_of
from tests.support.registry import HAS_REGISTRY, registry_on_loopback


def publish(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / "publish_chart.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(helm_python.package(CHART, destination=tmp_path_factory.mktemp("packaged")))


def test_the_package_has_the_chart_without_its_tools(archive: Path) -> None:
    assert archive.name == f"inkserve-{chart().metadata['version']}.tgz"
    with tarfile.open(archive) as files:
        names = {name.removeprefix("inkserve/") for name in files.getnames()}
    assert names >= {"Chart.yaml", "README.md", "values.yaml", "values.schema.json", "rules/inkserve.yaml"}
    assert {name for name in names if name.endswith(".py")} == {"files/smoke.py"}  # `helm test` runs it
    assert not any(name.startswith("ci/") for name in names)


def test_the_package_renders_what_the_folder_does(archive: Path) -> None:
    with helm_python.Chart.load_archive(archive.read_bytes()) as packaged:
        for case in ("extras", "public"):
            assert render(values_of(case), of=packaged) == render(values_of(case))


def test_the_package_names_the_addresses_of_its_publisher(tmp_path: Path) -> None:
    home, source = "https://inkserve.example", "https://git.example/inkserve"
    archive, _ = publish(str(tmp_path), "--home", home, "--source", source).stdout.splitlines()
    with helm_python.Chart.load_archive(Path(archive).read_bytes()) as packaged:
        metadata = packaged.metadata
        assert render(values_of("extras"), of=packaged) == render(values_of("extras"))
    assert (metadata["home"], metadata["sources"]) == (home, [source])
    assert {**metadata, "home": None, "sources": None} == {**chart().metadata, "home": None, "sources": None}


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_REGISTRY and not os.environ.get("CI"),
    reason="docker-registry is missing: Debian's package docker-registry has it",
)
def test_a_registry_returns_the_package_that_was_pushed(tmp_path: Path) -> None:
    pushed, pulled = tmp_path / "pushed", tmp_path / "pulled"
    for folder in (pushed, pulled):
        folder.mkdir()
    with registry_on_loopback(tmp_path) as address:
        run = publish(str(pushed), "--push", f"oci://{address}/charts", "--plain-http")
        archive, _, reference = run.stdout.splitlines()
        assert reference.startswith(f"{address}/charts/inkserve@sha256:")
        helm_python.pull(f"oci://{reference}", destination=pulled, plain_http=True)
    (found,) = pulled.iterdir()
    assert found.read_bytes() == Path(archive).read_bytes()


def test_the_bill_of_materials_has_the_archive_and_the_images(tmp_path: Path) -> None:
    archive, materials = map(Path, publish(str(tmp_path)).stdout.splitlines())
    bom = json.loads(materials.read_text())
    (digest,) = bom["metadata"]["component"]["hashes"]
    assert digest["content"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    listed = {f"{each['name']}:{each['version']}" for each in bom["components"]}
    manifests = [*render({}), *render(values_of("object-store") | {"image": {"repository": "inkserve"}})]
    pods = list(pod_specs(manifests))
    run = {each["image"] for pod in pods for each in [*pod["containers"], *pod.get("initContainers", [])]}
    assert listed == run
