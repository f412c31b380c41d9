"""How peers are started: their search paths, the shared engine, and the provider that they must run on."""

import importlib.machinery
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest

from loadtests.machine import ROOT
from loadtests.peers.contestants import BATCHER, PYTRITON, newest_graph
from loadtests.peers.on_provider import shared_packages
from loadtests.peers.session import Classifier

MODELS = ROOT / "models"


def test_only_a_peer_on_inkserves_packages_inherits_the_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/carried")
    assert BATCHER.launch(1, MODELS, 1)[1]["PYTHONPATH"] == f"{ROOT}:/carried"
    assert PYTRITON.launch(1, MODELS, 1)[1]["PYTHONPATH"] == str(ROOT)
    shared = replace(PYTRITON, first_packages=Path("/shared"))
    assert shared.launch(1, MODELS, 1)[1]["PYTHONPATH"] == f"{ROOT}:/shared"


def test_ready_interpreter_brings_its_own_libpython(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without an empty entry, which would mean the current folder."""
    ready = replace(PYTRITON, ready_python=tmp_path / "bin" / "python")
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    command, environment = ready.launch(1, MODELS, 1)
    assert command == [str(tmp_path / "bin" / "python"), "app.py"]
    assert environment["LD_LIBRARY_PATH"] == str(tmp_path / "lib")
    monkeypatch.setenv("LD_LIBRARY_PATH", "/cuda/lib")
    assert ready.launch(1, MODELS, 1)[1]["LD_LIBRARY_PATH"] == f"{tmp_path}/lib:/cuda/lib"


def test_shared_packages_hold_inkserves_engine_and_nothing_else() -> None:
    with shared_packages() as folder:
        found = importlib.machinery.PathFinder.find_spec("onnxruntime", [str(folder)])
        assert found
        assert found.origin
        assert Path(found.origin).samefile(onnxruntime.__file__)
        assert sorted(each.name for each in folder.iterdir()) == ["nvidia", "onnxruntime"]
        assert importlib.machinery.PathFinder.find_spec("numpy", [str(folder)]) is None
    assert not folder.exists()
    assert Path(onnxruntime.__file__).exists()


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="this onnxruntime has CUDA"
)
@pytest.mark.filterwarnings("ignore:Specified provider")
def test_session_refuses_to_run_on_another_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORT_PROVIDER", "CUDAExecutionProvider")
    monkeypatch.setenv("MODEL", str(newest_graph(MODELS, "mlp")))
    monkeypatch.setenv("THREADS", "1")
    with pytest.raises(RuntimeError, match="runs on CPUExecutionProvider, expected CUDAExecutionProvider"):
        Classifier()
