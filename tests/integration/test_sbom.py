"""The SBOM: valid CycloneDX, complete, the same bytes each time. The audit: known, none known, not known."""

import json
import os
import subprocess
import sys
import sysconfig
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.utils import canonicalize_name

from service.models.manifest import read_manifest
from tests.support.live import ROOT

INSTALLED = Path(sysconfig.get_path("purelib"))
NAMES = (
    "inkserve",
    "fastapi",
    "fastapi_swagger",
    "numpy",
    "orjson",
    "pillow",
    "pydantic",
    "starlette",
    "uvicorn",
)
SHA256 = "0123456789abcdef" * 4


def run(script: str, *arguments: object, seed: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / ".ci" / script), *map(str, arguments)]
    env = os.environ | {"PYTHONHASHSEED": str(seed)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of this environment's packages: their metadata, which is all that an SBOM is made of."""
    folder = tmp_path_factory.mktemp("packages")
    for name in NAMES:
        (metadata,) = INSTALLED.glob(f"{name}-*.dist-info")
        (folder / metadata.name).symlink_to(metadata)
    return folder


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pip's report of one installed archive, and of one without a hash."""
    file = tmp_path_factory.mktemp("report") / "report.json"
    known = {"metadata": {"name": "NumPy"}, "download_info": {"archive_info": {"hashes": {"sha256": SHA256}}}}
    unknown = {"metadata": {"name": "orjson"}, "download_info": {"dir_info": {}}}
    file.write_text(json.dumps({"install": [known, unknown]}))
    return file


@pytest.fixture(scope="module")
def text(packages: Path, report: Path) -> str:
    """The SBOM of these packages and of the shipped models."""
    output = report.parent / "sbom.json"
    done = run("sbom.py", packages, "--report", report, "--models", ROOT / "models", "--output", output)
    assert (done.returncode, done.stderr) == (0, "")
    return output.read_text()


@pytest.fixture(scope="module")
def bom(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return found


def test_the_sbom_is_valid(text: str) -> None:
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    broken = text.replace('"type": "library"', '"type": "libary"', 1)
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(broken) is not None


def test_the_same_packages_give_the_same_bytes(
    text: str, packages: Path, report: Path, tmp_path: Path
) -> None:
    copies = [report, "--models", ROOT / "models", "--output", tmp_path / "again.json"]
    assert run("sbom.py", packages, "--report", *copies, seed=1).returncode == 0
    assert (tmp_path / "again.json").read_text() == text


def test_the_sbom_lists_what_is_installed(bom: dict[str, Any], packages: Path) -> None:
    listing = [bom["metadata"]["component"], *(each for each in bom["components"] if "purl" in each)]
    listed = {(each["name"], each["version"]) for each in listing}
    assert listed == {
        (canonicalize_name(each.name), each.version) for each in distributions(path=[str(packages)])
    }
    assert bom["metadata"]["component"]["name"] == "inkserve"
    needs = {each["ref"]: each.get("dependsOn", []) for each in bom["dependencies"]}
    by_name = {each["name"]: each["bom-ref"] for each in listing}
    assert by_name["uvicorn"] in needs[by_name["inkserve"]]
    assert by_name["starlette"] in needs[by_name["fastapi"]]


def test_only_a_known_archive_has_a_hash(bom: dict[str, Any]) -> None:
    hashed = {
        each["name"]: each["externalReferences"] for each in bom["components"] if "externalReferences" in each
    }
    assert hashed.keys() == {"numpy"}
    assert hashed["numpy"][0]["hashes"] == [{"alg": "SHA-256", "content": SHA256}]


def test_the_models_have_their_manifests_digests(bom: dict[str, Any]) -> None:
    models = [each for each in bom["components"] if each["type"] == "machine-learning-model"]
    digests = {each["bom-ref"]: each["hashes"][0]["content"] for each in models}
    folders = [file.parent for file in (ROOT / "models").glob("*/*/manifest.json")]
    assert digests == {
        f"models/{folder.parent.name}/{folder.name}/model.onnx": read_manifest(folder).sha256
        for folder in folders
    }


def test_a_folder_without_inkserve_has_no_sbom(tmp_path: Path) -> None:
    done = run("sbom.py", tmp_path, "--output", tmp_path / "sbom.json")
    assert done.returncode == 1
    assert "inkserve is not among the 0 packages" in done.stderr
    assert not (tmp_path / "sbom.json").exists()


FINE = {"name": "numpy", "version": "2.4.0", "vulns": []}
HOLE = {
    "name": "pillow",
    "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"], "aliases": []}],
}
SKIPPED = {"name": "numpy", "skip_reason": "Dependency not found on PyPI and could not be audited"}


@pytest.mark.parametrize(
    ("dependencies", "status", "said"),
    [
        ([FINE], 0, "1 of 1 packages looked up, 0 of them vulnerable"),
        ([FINE, HOLE], 1, "pillow 1.0: PYSEC-1, fixed in 1.1"),
        ([FINE, SKIPPED], 3, "NOT AUDITED: 1 packages, numpy"),
        ([SKIPPED, HOLE], 1, "pillow 1.0: PYSEC-1"),
        ([], 3, "NOT AUDITED"),
        (None, 3, "NOT AUDITED: pip-audit could not finish: no route"),
    ],
)
def test_the_audits_exit_status_tells_what_is_known(
    tmp_path: Path, dependencies: list[Any] | None, status: int, said: str
) -> None:
    """A program with pip-audit's report in place of pip-audit, whose database tests cannot reach."""
    program = tmp_path / "pip-audit"
    lines = ["import json, pathlib, sys", "print('no route', file=sys.stderr)"]
    if dependencies is not None:
        lines += [
            "output = [each for each in sys.argv if each.startswith('--output=')][0].partition('=')[2]",
            f"pathlib.Path(output).write_text(json.dumps({{'dependencies': {dependencies!r}}}))",
        ]
    program.write_text("\n".join([f"#!{sys.executable}", *lines]))
    program.chmod(0o755)
    (tmp_path / "requirements.txt").write_text(
        "numpy==2.4.0 \\\n    --hash=sha256:00\npillow==1.0 ; python_version > '3'\n"
    )
    done = run("audit.py", program, tmp_path / "requirements.txt")
    assert done.returncode == status
    assert said in done.stdout + done.stderr
