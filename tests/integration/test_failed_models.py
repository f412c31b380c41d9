"""GET /models lists what could not be loaded, in both forms of the service."""

import json
import shutil
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests.support.live import ROOT, serving


@pytest.mark.parametrize("form", [(), ("--workers", "1")], ids=["one process", "split"])
def test_a_failed_version_is_listed_with_the_reason(tmp_path: Path, form: tuple[str, ...]) -> None:
    shutil.copytree(ROOT / "models" / "mlp", tmp_path / "mlp")
    (tmp_path / "bad" / "1").mkdir(parents=True)
    (tmp_path / "bad" / "1" / "manifest.json").write_text("{")
    with serving("--models-dir", str(tmp_path), *form) as service:
        with urlopen(f"http://127.0.0.1:{service.port}/models") as response:
            content = json.load(response)
        assert service.stop() == 0
    assert [model["name"] for model in content["models"]] == ["mlp"]
    (failed,) = content["failed"]
    assert (failed["name"], failed["version"]) == ("bad", 1)
    assert "is not a manifest: Invalid JSON" in failed["reason"]
