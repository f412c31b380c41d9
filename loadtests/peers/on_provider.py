"""Run a peer on an execution provider, with inkserve's own onnxruntime if that is a GPU's.

A peer's requirements name onnxruntime for the CPU. On a GPU it gets the onnxruntime and the CUDA libraries
that inkserve runs on, so that the servers differ and the engine does not.
"""

import importlib.util
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from loadtests.machine import cores
from loadtests.peers.contestants import Contestant, newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.peers.wire import agrees
from loadtests.processes import free_port, serving
from service.onnx.session import PROVIDERS
from service.settings import Provider

CUDA_PACKAGES = "nvidia"
"""onnxruntime looks for CUDA's libraries in this folder next to its own (`onnxruntime.preload_dlls`)."""


@contextmanager
def serving_on(provider: Provider, contestant: Contestant, models_dir: Path) -> Iterator[int]:
    """Install and run a peer on the provider; yields its port once one image gets the right answer.

    Raises NotInstalled, ServerFailed, or OSError if its interpreter does not run.
    """
    contestant.install()
    with shared_packages() as folder:
        if provider != "cpu" and contestant.own_packages:
            contestant = replace(contestant, first_packages=folder)
        port = free_port()
        command, environment = contestant.launch(port, models_dir, cores())
        environment["ORT_PROVIDER"] = PROVIDERS[provider]
        image = images_of(1)
        expected = right_answer(newest_graph(models_dir, contestant.model), image)

        def ready() -> bool:
            return agrees(port, contestant.path, contestant.wire, image, expected)

        with serving(command, ready, directory=contestant.directory, environment=environment):
            yield port


@contextmanager
def shared_packages() -> Iterator[Path]:
    """Yield a folder with links to inkserve's onnxruntime and, if they are packages, CUDA's libraries."""
    with tempfile.TemporaryDirectory(prefix="inkserve-engine-") as name:
        folder = Path(name)
        for location in _locations("onnxruntime")[:1]:
            _link(folder / "onnxruntime", location)
        (folder / CUDA_PACKAGES).mkdir()
        for location in _locations(CUDA_PACKAGES):
            for package in location.iterdir():
                _link(folder / CUDA_PACKAGES / package.name, package)
        yield folder


def _locations(package: str) -> list[Path]:
    """A package's folders; NVIDIA's may be spread over several."""
    spec = importlib.util.find_spec(package)
    return [Path(each).absolute() for each in (spec.submodule_search_locations or ())] if spec else []


def _link(link: Path, target: Path) -> None:
    if not link.exists():
        link.symlink_to(target)
