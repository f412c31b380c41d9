"""The packaged chart, as `make chart-package` writes it and a registry holds it."""

import os
import tarfile
from pathlib import Path

import helm_python
import pytest

from tests.support.charts import CHART, chart, render, values_of
from tests.support.registry import HAS_REGISTRY, registry_on_loopback


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


@pytest.mark.slow
@pytest.mark.skipif(
    not HAS_REGISTRY and not os.environ.get("CI"),
    reason="docker-registry is missing: Debian's package docker-registry has it",
)
def test_a_registry_returns_the_package_that_was_pushed(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "registry").mkdir()
    with registry_on_loopback(tmp_path / "registry") as address:
        helm_python.push(archive, f"oci://{address}/charts", plain_http=True)
        version = chart().metadata["version"]
        reference = f"oci://{address}/charts/inkserve"
        helm_python.pull(reference, version=version, destination=tmp_path, plain_http=True)
    assert (tmp_path / archive.name).read_bytes() == archive.read_bytes()
