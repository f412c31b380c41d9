"""The command `default`."""

import json
import shutil
from pathlib import Path

import pytest

from service.models.manifest import read_manifest, sha256_of
from service.models.signatures import SIGNATURE_FILE
from tests.support.live import ROOT
from tests.support.tiny_runs import Workshop
from training.__main__ import main
from training.provenance.bom import BOM_FILE


@pytest.fixture
def models(workshop: Workshop, tmp_path: Path) -> Path:
    """Models with a generator more, so that one of them is not the first."""
    shutil.copytree(workshop.models, tmp_path / "models")
    return tmp_path / "models"


def defaults(models: Path) -> list[str]:
    return [path.parent.parent.name for path in sorted(models.glob("*/*/manifest.json")) if is_default(path)]


def is_default(path: Path) -> bool:
    return bool(json.loads(path.read_text()).get("default", False))


def test_the_shipped_models_have_a_classifier_and_a_generator_as_defaults() -> None:
    """A version that is exported anew, after its folder was deleted, is no default any more."""
    manifests = [read_manifest(path.parent) for path in (ROOT / "models").glob("*/*/manifest.json")]
    tasks = sorted(manifest.task for manifest in manifests if manifest.default)
    assert tasks == ["classification", "generation"]


def test_one_model_of_a_task_is_the_default(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert defaults(models) == []
    assert main(["default", "vae", "--models-dir", str(models)]) == 0
    assert main(["default", "judge", "--models-dir", str(models)]) == 0
    assert defaults(models) == ["judge", "vae"]
    before = (models / "vae" / "1" / "manifest.json").read_bytes()
    assert main(["default", "gan", "--models-dir", str(models)]) == 0
    assert defaults(models) == ["gan", "judge"]
    assert capsys.readouterr().out.splitlines()[-2:] == [str(models / name / "1") for name in ("gan", "vae")]
    assert main(["default", "vae", "--models-dir", str(models)]) == 0
    assert (models / "vae" / "1" / "manifest.json").read_bytes() == before
    for folder in models.glob("*/*"):
        assert read_manifest(folder)
        files = [
            part for part in json.loads((folder / BOM_FILE).read_text())["components"] if "hashes" in part
        ]
        listed = {part["name"]: part["hashes"][0]["content"] for part in files if part["type"] == "file"}
        assert listed["manifest.json"] == sha256_of(folder / "manifest.json")


def test_signed_or_unknown_models_stay_as_they_are(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["default", "ghost", "--models-dir", str(models)]) == 2
    assert "ghost holds no version" in capsys.readouterr().err
    assert main(["default", "vae", "--models-dir", str(models)]) == 0
    (models / "vae" / "1" / SIGNATURE_FILE).write_text("{}")
    assert main(["default", "gan", "--models-dir", str(models)]) == 2
    assert "vae/1 is signed, so its manifest cannot change" in capsys.readouterr().err
    assert defaults(models) == ["vae"]
