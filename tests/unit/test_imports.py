"""Imports point one way: read off the sources, so that nothing needs to be imported to know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HTTP = (
    "service.http.app",
    "service.http.dispatch",
    "service.http.error_responses",
    "service.http.fast.endpoint",
    "service.http.requests",
    "service.content.codecs",
    "service.http.routes",
    "service.http.server",
    "service.split.worker",
)


def modules(package: str) -> dict[str, Path]:
    files = sorted((ROOT / package).rglob("*.py"))
    return {".".join(file.relative_to(ROOT).with_suffix("").parts): file for file in files}


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return names


def within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("file", modules("service").values(), ids=modules("service"))
def test_the_service_imports_neither_torch_nor_training(file: Path) -> None:
    assert not [
        each for each in imported(file) if within(each, ("torch", "training", "onnx", "lightning_fabric"))
    ]


@pytest.mark.parametrize("file", modules("training").values(), ids=modules("training"))
def test_training_imports_only_models_latents_and_errors_of_the_service(file: Path) -> None:
    allowed = ("service.models", "service.content.latents", "service.errors")
    assert not [
        each
        for each in imported(file)
        if within(each, ("service",)) and not within(each, allowed) and each != "service"
    ]


@pytest.mark.parametrize(("name", "file"), modules("service").items())
def test_only_the_engine_knows_onnxruntime(name: str, file: Path) -> None:
    assert within(name, ("service.onnx",)) or not any(
        within(each, ("onnxruntime",)) for each in imported(file)
    )


@pytest.mark.parametrize(("name", "file"), modules("service").items())
def test_only_tracing_knows_opentelemetry(name: str, file: Path) -> None:
    assert name == "service.observability.tracing" or not any(
        within(each, ("opentelemetry",)) for each in imported(file)
    )


def test_without_tracing_opentelemetrys_sdk_is_not_loaded() -> None:
    script = (
        "import sys, service.http.app, service.split.worker, service.split.engine_server\n"
        "import service.serving.local, service.__main__\n"
        "unwanted = ('opentelemetry.sdk', 'service.observability.tracing')\n"
        "print([name for name in sys.modules if name.startswith(unwanted)])"
    )
    command = [sys.executable, "-c", script]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert ended.stdout == "[]\n"


@pytest.mark.parametrize(
    "name",
    [
        "service.split.worker",
        "service.split.supervisor",
        "service.split.engine_server",
        "service.batching.queue",
    ],
)
def test_what_an_http_worker_loads_leads_to_no_engine(name: str) -> None:
    files = modules("service") | {"service": ROOT / "service" / "__init__.py"}
    seen, left = set(), [name]
    while left:
        each = left.pop()
        if each in files and each not in seen:
            seen.add(each)
            left += imported(files[each])
    assert "service.onnx.engine" not in seen


@pytest.mark.parametrize(
    "name",
    [
        *("batching.queue", "batching.batcher", "batching.device", "batching.on_loop"),
        *("onnx.engine", "onnx.session", "onnx.streams", "onnx.cuda", "onnx.buffers"),
        *("serving.local", "serving.predictor", "models.manifest", "models.tensors", "content.latents"),
        *("split.frames", "split.messages", "split.engine_server", "split.engine_client"),
        *("split.child_process", "split.metric_totals", "split.supervisor"),
    ],
)
def test_inference_knows_nothing_of_http(name: str) -> None:
    names = imported(ROOT / "service" / f"{name.replace('.', '/')}.py")
    assert not [each for each in names if within(each, ("fastapi", "starlette", "uvicorn", *HTTP))]
