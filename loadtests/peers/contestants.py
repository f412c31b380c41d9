"""The servers that are measured: how each is installed and started, and what it is asked."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from loadtests.machine import ROOT
from loadtests.peers import wire
from loadtests.peers.wire import Wire
from service.errors import RepositoryError
from service.models.folder import latest_version
from service.models.manifest import MODEL_FILE

PEERS = Path(__file__).parent
VENVS = ROOT / ".cache" / "peers"
INSTALL_SECONDS = 900


class NotInstalled(Exception):
    """A peer's packages cannot be installed here, or its model is missing."""


@dataclass(frozen=True)
class Contestant:
    """A server to be measured.

    command: its arguments; {bin} is the bin folder of its virtual environment, {own_python} that
        environment's interpreter, {python} inkserve's; {port}, {models} and {threads} are replaced as well.
    model: the folder under models/ whose graph it runs; empty for a bound without a model.
    own_packages: whether it has a requirements.txt and a virtual environment of its own.
    ready_python: the interpreter of an environment that is used instead of installing one.
    first_packages: a folder whose packages come before the environment's.
    """

    name: str
    configuration: str
    path: str
    wire: Wire
    command: Sequence[str]
    model: str = "mlp"
    own_packages: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    ready_python: Path | None = None
    first_packages: Path | None = None

    @property
    def directory(self) -> Path:
        """The folder in which it starts: its own, or the repository's root for inkserve."""
        own = PEERS / self.name
        return own if own.is_dir() else ROOT

    def launch(self, port: int, models_dir: Path, threads: int) -> tuple[list[str], dict[str, str]]:
        """Its command line and environment."""
        values = {
            "bin": str(VENVS / self.name / "bin"),
            "python": sys.executable,
            "port": str(port),
            "models": str(models_dir),
            "threads": str(threads),
            "own_python": str(self.ready_python or VENVS / self.name / "bin" / "python"),
            "libraries": self._libraries(),
        }
        environment = {
            "MODEL": str(newest_graph(models_dir, self.model)) if self.model else "",
            "PORT": str(port),
            "THREADS": str(threads),
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": self._packages(),
            **{name: value.format(**values) for name, value in self.environment.items()},
        }
        return [part.format(**values) for part in self.command], environment

    def _packages(self) -> str:
        """Its PYTHONPATH: this process's own only if it runs on the same packages."""
        inherited = None if self.own_packages else os.environ.get("PYTHONPATH")
        return _joined(ROOT, self.first_packages, inherited)

    def _libraries(self) -> str:
        """The folder of its interpreter's libpython, and those that this process has, such as CUDA's."""
        libpython = sysconfig.get_config_var("LIBDIR")
        if self.ready_python:
            libpython = self.ready_python.resolve().parent.parent / "lib"
        return _joined(libpython, os.environ.get("LD_LIBRARY_PATH"))

    def install(self) -> None:
        """Create its virtual environment, unless it exists. Raises NotInstalled."""
        if not self.own_packages or self.ready_python:
            return
        requirements = self.directory / "requirements.txt"
        venv = VENVS / self.name
        done = venv / "installed.txt"
        if done.exists() and done.read_bytes() == requirements.read_bytes():
            return
        _run([sys.executable, "-m", "venv", str(venv)])
        _run([str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "-r", str(requirements)])
        done.write_bytes(requirements.read_bytes())


def _joined(*folders: Path | str | None) -> str:
    """A search path without empty entries, which would mean the current folder."""
    return ":".join(str(folder) for folder in folders if folder)


def newest_graph(models_dir: Path, name: str) -> Path:
    """The ONNX file of a model's highest version. Raises NotInstalled if there is none."""
    try:
        return latest_version(models_dir / name, holding=MODEL_FILE) / MODEL_FILE
    except RepositoryError as error:
        raise NotInstalled(str(error)) from None


def _run(command: Sequence[str]) -> None:
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=INSTALL_SECONDS)
    except subprocess.TimeoutExpired:
        raise NotInstalled(f"installing took more than {INSTALL_SECONDS} s") from None
    if run.returncode:
        reason = [line for line in run.stderr.splitlines() if line.upper().startswith("ERROR")]
        raise NotInstalled(" ".join(reason[-1:])[:300] or f"pip exited with code {run.returncode}")


def inkserve(name: str, configuration: str, extra: Sequence[str] = (), model: str = "mlp") -> Contestant:
    """inkserve with extra flags and all of its models; one of them is asked."""
    command = ["{python}", "-m", "service", "--models-dir", "{models}", "--port", "{port}"]
    command += ["--intra-op-threads", "{threads}", *extra]
    path = f"/classify?model={model}"
    return Contestant(name, configuration, path, wire.RAW, command, model=model, own_packages=False)


APP = ("{own_python}", "app.py")
OWN_APP = ("{python}", "app.py")

ASGI = Contestant(
    "asgi", "empty ASGI app, uvicorn, uvloop, httptools", "/", wire.RAW, OWN_APP, model="", own_packages=False
)
BATCHER = Contestant(
    "fastapi_batcher",
    "raw, asyncio batcher, thread",
    "/classify",
    wire.RAW,
    OWN_APP,
    own_packages=False,
)
PYTRITON = Contestant(
    "pytriton",
    "V2 binary, dynamic batcher",
    "/v2/models/mlp/infer",
    wire.V2_BINARY,
    APP,
    # Triton's Python backend links to libpython, which must be this interpreter's.
    environment={"LD_LIBRARY_PATH": "{libraries}"},
)
INKSERVE = inkserve("inkserve", "raw, defaults")
OPEN_INFERENCE = replace(
    inkserve("inkserve-v2", "V2 binary, defaults"), path="/v2/models/mlp/infer", wire=wire.V2_BINARY
)

EVERY: tuple[Contestant, ...] = (
    ASGI,
    INKSERVE,
    OPEN_INFERENCE,
    inkserve("inkserve-int8", "raw, defaults, int8 model", model="mlp-int8"),
    inkserve("inkserve-split", "raw, 2 HTTP workers and an engine", ["--workers", "2"]),
    BATCHER,
    Contestant(
        "fastapi_plain", "JSON, pydantic, no batching", "/classify", wire.LISTS, OWN_APP, own_packages=False
    ),
    Contestant(
        "mosec",
        "raw, batch 64",
        "/inference",
        wire.RAW,
        (*APP, "--address", "127.0.0.1", "--port", "{port}", "--log-level", "warning"),
    ),
    Contestant("litserve", "base64 in JSON, batch 64", "/predict", wire.BASE64, APP),
    Contestant(
        "bentoml",
        "base64 in JSON, adaptive batching",
        "/classify",
        wire.BASE64_LIST,
        ("{bin}/bentoml", "serve", "app:Digits", "--host", "127.0.0.1", "--port", "{port}"),
        environment={"BENTOML_DO_NOT_TRACK": "True"},
    ),
    Contestant(
        "mlserver",
        "V2, base64 in JSON, batch 64",
        "/v2/models/mlp/infer",
        wire.V2_BASE64,
        ("{bin}/mlserver", "start", "."),
        environment={"MLSERVER_HTTP_PORT": "{port}", "MLSERVER_GRPC_PORT": "0"},
    ),
    Contestant(
        "ray",
        "raw, serve.batch 64",
        "/",
        wire.RAW,
        APP,
        environment={"RAY_USAGE_STATS_ENABLED": "0"},
    ),
    PYTRITON,
)
