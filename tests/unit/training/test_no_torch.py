"""Evaluating and quantising an ONNX file loads no torch: shown in processes of their own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.idx_files import write_folder

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
SHIPPED = ROOT / "models"

TORCH_FREE = (
    *("training.datasets.fetch", "training.datasets.splits", "training.onnx_files", "training.versions"),
    *("training.cards.card", "training.evaluation.evaluate"),
    *("training.quantization.convert", "training.quantization.quantize"),
)
RUN = """
import sys
from training.__main__ import main
try:
    status = main(sys.argv[1:])
finally:
    print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "lightning_fabric", "tqdm"}))
sys.exit(status)
"""


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("module", TORCH_FREE)
def test_module_loads_no_torch(module: str) -> None:
    done = run(f"import sys, {module}; print('torch' in sys.modules)")
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_loading_torch_would_be_seen() -> None:
    done = run("import sys, training.families.classifier; print('torch' in sys.modules)")
    assert done.stdout == "True\n"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["evaluate", "mlp"], "was measured on mnist"),
        (["quantize", "mlp"], "mlp/1 was trained on mnist"),
    ],
)
def test_command_refuses_other_data_without_torch(command: list[str], message: str, tmp_path: Path) -> None:
    """Both run until they compare the data with the manifest's, which is MNIST."""
    data_dir = write_folder(tmp_path / "images")
    done = run(RUN, *command, "--data-dir", str(data_dir), "--models-dir", str(SHIPPED))
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_quantize_and_evaluate_run_to_their_end_without_torch(tmp_path: Path) -> None:
    """On a shipped graph whose manifest is rewritten to belong to the small data."""
    data_dir, models = write_folder(tmp_path / "images"), tmp_path / "models"
    shutil.copytree(SHIPPED / "cnn", models / "cnn")
    arguments = ["--data-dir", str(data_dir), "--models-dir", str(models)]
    done = run(ADOPT, *arguments)
    assert done.returncode == 0, done.stderr
    for command in (["quantize", "cnn", "--calibration-images", "20", "--allow-loss", "100"], ["evaluate"]):
        done = run(RUN, *command, *arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


# Gives the CNN's manifest the metrics that the small data measures.
ADOPT = """
import json, sys
from pathlib import Path
from service.models.manifest import MANIFEST_FILE, MODEL_FILE
from training.datasets.splits import load
from training.evaluation.classification import classification
splits, folder = load(Path(sys.argv[2])), Path(sys.argv[4]) / "cnn" / "1"
path = folder / MANIFEST_FILE
metrics = classification(folder / MODEL_FILE, splits.test)
metrics |= {"data": splits.name, "data_digest": splits.digest}
path.write_text(json.dumps(json.loads(path.read_text()) | {"metrics": metrics}))
"""
