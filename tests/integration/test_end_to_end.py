"""The real service: a process of its own, a real socket, the shipped models, real digits."""

import asyncio
import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from PIL import Image

from service.batching.retries import MAX_RETRY_SECONDS
from service.models.folder import latest_version
from service.models.manifest import Manifest, read_manifest
from tests.support.live import RAW, RAW_ANSWER, ROOT, Connection, Service, connected, post_all, serving

MODELS = ROOT / "models"
DIGITS = ROOT / "tests" / "digits"
MNIST = ROOT / "data" / "mnist"

needs_mnist = pytest.mark.skipif(
    not list(MNIST.glob("t10k-images*")) and not os.environ.get("CI"),
    reason="MNIST is not in data/mnist: `make data` fetches it",
)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    # Nobody here is in a hurry: a deadline would refuse requests on a machine with other work.
    with serving("--models-dir", str(MODELS), "--request-timeout-seconds", "120") as service:
        yield service


@pytest.fixture(scope="module")
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The test images, (10000, 28, 28), and their labels."""
    from training.datasets.splits import load  # only here: the service's tests do without training

    test = load(MNIST).test
    return test.images, test.labels


def manifest_of(name: str) -> Manifest:
    return read_manifest(latest_version(MODELS / name))


@needs_mnist
@pytest.mark.parametrize("model", ["mlp", "cnn", pytest.param("vit", marks=pytest.mark.nightly)])
@pytest.mark.parametrize("rows", [1, 256])
async def test_all_test_images_give_exactly_the_accuracy_in_the_manifest(
    service: Service, mnist: tuple[np.ndarray, np.ndarray], model: str, rows: int
) -> None:
    images, labels = mnist
    bodies = [images[start : start + rows].tobytes() for start in range(0, len(images), rows)]
    answers = await post_all(service.port, f"/classify?model={model}", bodies, RAW_ANSWER)
    assert {answer.status for answer in answers} == {200}
    probabilities = np.concatenate([np.frombuffer(a.body, "<f4").reshape(-1, 10) for a in answers])
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    manifest = manifest_of(model)
    assert correct == round(float(manifest.metrics["test_accuracy"]) * len(labels))
    session = ort.InferenceSession(MODELS / model / str(manifest.version) / "model.onnx")
    (expected,) = session.run([manifest.outputs[0].name], {manifest.inputs[0].name: images})
    # A caller who got another's rows would be off by far more; kernels of two batch sizes differ by less.
    assert np.abs(probabilities - expected).max() < 1e-4


@pytest.mark.parametrize("digit", range(10))
@pytest.mark.parametrize("model", ["mlp", "cnn"])
async def test_the_shipped_digits_are_read(service: Service, model: str, digit: int) -> None:
    async with connected(service.port) as connection:
        body = (DIGITS / f"{digit}.png").read_bytes()
        answer = await connection.ask("POST", f"/classify?model={model}", body, {"content-type": "image/png"})
    assert answer.status == 200
    assert f'"label":"{digit}"'.encode() in answer.body


async def test_the_same_seed_gives_the_same_bytes_under_load(service: Service) -> None:
    async def generate(connection: Connection, path: str) -> bytes:
        answer = await connection.ask("GET", path, headers={"accept": "application/octet-stream"})
        assert answer.status == 200
        return answer.body

    async with connected(service.port) as connection:
        for model in ("gan", "vae"):
            path = f"/generate?model={model}&digit=7&count=5&seed=1"
            alone = await generate(connection, path)

            async def caller(number: int, model: str = model, path: str = path, alone: bytes = alone) -> None:
                async with connected(service.port) as other:
                    for turn in range(5):
                        noise = f"/generate?model={model}&count={1 + (number + turn) % 20}&seed={number}"
                        await generate(other, noise)
                        assert await generate(other, path) == alone

            await asyncio.gather(*(caller(number) for number in range(16)))


async def test_generated_sevens_are_read_as_sevens(service: Service) -> None:
    async with connected(service.port) as connection:
        for model in ("gan", "vae"):
            path = f"/generate?model={model}&digit=7&count=100&seed=3"
            images = await connection.ask("GET", path, headers={"accept": "application/octet-stream"})
            answer = await connection.ask("POST", "/classify?model=cnn", images.body, RAW_ANSWER)
            read = np.frombuffer(answer.body, "<f4").reshape(100, 10).argmax(axis=1)
            assert (read == 7).mean() > 0.9


async def test_sixteen_sevens_are_a_png(service: Service) -> None:
    async with connected(service.port) as connection:
        answer = await connection.ask("GET", "/generate?digit=7&count=16&seed=1")
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.body)) as sheet:
        assert np.asarray(sheet).mean() > 5


def test_the_service_has_not_loaded_torch(service: Service) -> None:
    maps = Path(f"/proc/{service.process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "torch" not in maps


async def test_the_first_requests_import_nothing_of_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    with serving("--models-dir", str(MODELS)) as service:
        async with connected(service.port) as connection:
            bodies = {"application/octet-stream": bytes(784), "image/png": (DIGITS / "7.png").read_bytes()}
            answers = [
                await connection.ask("POST", "/classify?model=mlp", body, {"content-type": content_type})
                for content_type, body in bodies.items()
            ]
            answers.append(await connection.ask("GET", "/generate?digit=7&seed=1"))
        assert [answer.status for answer in answers] == [200, 200, 200]
        service.stop()
        assert service.process.stderr is not None
        lines = [line for line in service.process.stderr if line.startswith("import time:")]
    imported = {line.split("|")[2].strip().partition(".")[0] for line in lines}
    assert imported <= {"PIL"}  # Pillow loads its formats when the first picture comes, in 3 ms


async def test_a_service_that_has_started_looks_for_garbage(
    add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    async def collections(connection: Connection) -> float:
        text = (await connection.ask("GET", "/metrics")).body.decode()
        found = re.search(r'^python_gc_collections_total{generation="0"} (\S+)', text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    add_classifier()
    with serving("--models-dir", str(tmp_path), "--max-request-rows", "16384") as service:
        async with connected(service.port) as connection:
            before = await collections(connection)
            answer = await connection.ask("POST", "/classify", bytes(784 * 16384), RAW)  # 32,768 dictionaries
            assert answer.status == 200
            assert await collections(connection) > before


async def test_a_client_that_leaves_is_noticed(add_slow: Callable[[], Path]) -> None:
    with serving("--models-dir", str(add_slow())) as service:
        async with connected(service.port) as leaving:
            await leaving.send("POST", "/classify", bytes(784 * 4000), RAW)
            await asyncio.sleep(0.1)
        async with connected(service.port) as connection:
            for _ in range(100):
                metrics = (await connection.ask("GET", "/metrics")).body.decode()
                if 'route="/classify",status="499"} 1.0' in metrics:
                    break
                await asyncio.sleep(0.05)
            else:
                pytest.fail("the request of a client that left was not cancelled")
            assert 'inkserve_rows_waiting{model="slow"} 0.0' in metrics
            assert 'inkserve_requests_waiting{model="slow"} 0.0' in metrics


async def test_a_full_queue_answers_429_at_once_and_loses_nobody_else(add_slow: Callable[[], Path]) -> None:
    limits = ("--max-queue-rows", "8", "--max-request-rows", "8", "--max-batch-size", "4")
    with serving("--models-dir", str(add_slow()), *limits) as service:
        answers = await post_all(service.port, "/classify", [bytes(784)] * 200, RAW)
    statuses = [answer.status for answer in answers]
    assert set(statuses) == {200, 429}
    for refused in (answer for answer in answers if answer.status == 429):
        # Later ones are promised later seconds; how many fit into one second depends on the machine's pace.
        assert 1 <= int(refused.headers["retry-after"]) <= MAX_RETRY_SECONDS
        assert b"expected at most 8 in the queue" in refused.body


async def test_sigterm_answers_what_was_accepted_and_exits_0(add_slow: Callable[[], Path]) -> None:
    with serving("--models-dir", str(add_slow()), "--drain-seconds", "0.3") as service:

        async def ask() -> int:
            async with connected(service.port) as connection:
                return (await connection.ask("POST", "/classify", bytes(784 * 200), RAW)).status

        asking = [asyncio.ensure_future(ask()) for _ in range(20)]
        async with connected(service.port) as probe:
            ran = re.compile(
                rb'inkserve_batches_total\{model="slow",reason="(full|idle)",version="1"\} [1-9]'
            )
            while not ran.search((await probe.ask("GET", "/metrics")).body):
                await asyncio.sleep(0.01)
            service.process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.1)
            assert (await probe.ask("GET", "/v2/health/ready")).headers["connection"] == "close"
        for path, status in (("/v2/health/ready", 503), ("/v2/health/live", 200)):
            async with connected(service.port) as probe:
                assert (await probe.ask("GET", path)).status == status
        assert await ask() == 200
        assert await asyncio.gather(*asking) == [200] * 20
        assert await asyncio.to_thread(service.process.wait, 60) == 0


@pytest.mark.parametrize("arguments", [["serve"], ["engine"], ["serve", "--workers", "1"]])
def test_sigterm_while_a_model_loads_ends_at_once(
    arguments: list[str], add_classifier: Callable[..., Path], tmp_path: Path
) -> None:
    for version in range(1, 201):
        add_classifier(version=version)
    folder = ["--models-dir", str(tmp_path), "--serve-versions", "all"]
    command = [sys.executable, "-m", "service", *arguments, *folder, "--port", "0"]
    command += ["--socket", str(tmp_path / "engine.sock")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = [next(line for line in process.stderr if " loaded " in line)]
        process.terminate()
        lines += process.stderr
        assert process.wait(timeout=10) == 0
    assert sum(" loaded " in line for line in lines) < 200


async def test_sighup_serves_a_new_version(add_classifier: Callable[..., Path], tmp_path: Path) -> None:
    add_classifier()
    with serving("--models-dir", str(tmp_path)) as service:
        add_classifier(version=2)
        service.process.send_signal(signal.SIGHUP)
        async with connected(service.port) as connection:
            for _ in range(200):
                body = (await connection.ask("POST", "/classify", bytes(784), RAW)).body
                if b'"version":2' in body:
                    return
                await asyncio.sleep(0.02)
        pytest.fail("version 2 was not served")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--models-dir", "/nowhere"], 1, "models folder /nowhere is missing"),
        (["--provider", "cuda", "--device-id", "99"], 1, "provider cuda"),
        (["--port", "99999"], 2, "port: Input should be less than or equal to 65535"),
    ],
)
def test_a_start_that_cannot_be_is_refused_in_one_line(
    add_classifier: Callable[..., Path], tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    add_classifier()
    add_classifier(name="second")
    command = [sys.executable, "-m", "service", "--port", "0", "--models-dir", str(tmp_path), *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == code
    problems = [line for line in ended.stderr.splitlines() if " INFO " not in line]
    assert len(problems) == 1 or "99" in arguments, (
        problems
    )  # each model may fail on a device that is not there
    assert message in problems[-1]
    assert "Traceback" not in ended.stderr
