"""The model that the benchmarks run."""

from pathlib import Path

import pytest

from loadtests.machine import ROOT
from loadtests.peers.contestants import newest_graph


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--models-dir",
        type=Path,
        default=ROOT / "models",
        help="folder of models, with mlp (default: models/)",
    )


@pytest.fixture(scope="session")
def mlp(pytestconfig: pytest.Config) -> Path:
    """The folder of the newest version of the fp32 MLP."""
    return newest_graph(pytestconfig.getoption("--models-dir"), "mlp").parent
