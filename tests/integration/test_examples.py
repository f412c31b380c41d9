"""examples/: each program, run as its own text says, against a real service."""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnxruntime
import pytest
import torch
import yaml

from examples import client, from_torch
from tests.support.charts import SCHEMAS
from tests.support.live import ROOT, Service, serving
from training.arguments import build_parser

DIGIT = ROOT / "tests" / "digits" / "7.png"
SEVENS = ROOT / "docs" / "sevens.png"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with serving() as service:
        yield service


def url_of(service: Service) -> str:
    return f"http://127.0.0.1:{service.port}"


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def run_client(service: Service, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "examples/client.py", "--url", url_of(service), *arguments)


def test_curl_sh_gets_every_answer_that_it_asks_for(service: Service, tmp_path: Path) -> None:
    done = run("examples/curl.sh", url_of(service), OUT=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    asked = [index for index, line in enumerate(lines) if line.startswith("# ")]
    answers = [lines[index + 1] for index in asked]
    assert len(answers) == 11
    assert [p["label"] for p in json.loads(answers[0])["predictions"]] == ["7"]
    assert [p["label"] for p in json.loads(answers[1])["predictions"]] == ["3", "7"]
    assert [p["label"] for p in json.loads(answers[2])["predictions"]] == ["5"]
    probabilities = np.fromfile(tmp_path / "probabilities.f32", np.float32).reshape(10, 10)
    assert (probabilities.argmax(axis=1) == np.arange(10)).all()
    assert [p["label"] for p in json.loads(answers[4])["predictions"]] == ["7"]
    assert (tmp_path / "sevens.png").read_bytes() == SEVENS.read_bytes()
    assert len(json.loads((tmp_path / "vae.json").read_bytes())["images"]) == 2
    assert answers[9].endswith("(status 400)")
    assert "expected a multiple of 784" in answers[9]
    assert "cnn" in [model["name"] for model in json.loads(answers[10])["models"]]
    assert json.loads(lines[-1]) == {"ready": True}


def test_curl_sh_fails_if_nobody_answers() -> None:
    assert run("examples/curl.sh", "http://127.0.0.1:1").returncode != 0


def test_the_client_classifies_files(service: Service) -> None:
    done = run_client(service, "classify", str(DIGIT), str(DIGIT.with_name("seven.jpg")))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == ["7", "7"]


def test_the_client_generates_the_same_bytes_for_the_same_seed(service: Service, tmp_path: Path) -> None:
    out = tmp_path / "sevens.png"
    done = run_client(service, "generate", "7", "--count", "16", "--seed", "1", "--out", str(out))
    assert (done.returncode, done.stderr) == (0, "")
    assert out.read_bytes() == SEVENS.read_bytes()


def test_the_client_reports_the_services_own_message(service: Service) -> None:
    done = run_client(service, "generate", "cat")
    assert done.returncode == 1
    assert "400: " in done.stderr
    assert "'cat', expected one of 0, 1, 2" in done.stderr


def test_the_client_names_an_address_at_which_nobody_answers() -> None:
    done = run(sys.executable, "examples/client.py", "--url", "http://127.0.0.1:1", "generate", "7")
    assert done.returncode == 1
    assert "nobody answers at http://127.0.0.1:1" in done.stderr


@contextmanager
def busy_server(answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, one after another: a real service sheds only under load."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            seen.append(self.path)
            status, headers, body = answers[len(seen) - 1]
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", seen
        finally:
            server.shutdown()
            thread.join()


SHED = b'{"error":"the queue is full"}'
ANSWER = b'{"predictions":[{"label":"7","probability":1.0}]}'


@pytest.mark.parametrize("status", [429, 503])
def test_the_client_waits_as_long_as_retry_after_says(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("time.sleep", waits.append)
    shed = (status, {"retry-after": "3"}, SHED)
    with busy_server([shed, shed, (200, {}, ANSWER)]) as (url, seen):
        predictions = client.Client(url).classify(b"pixels")
    assert predictions[0]["label"] == "7"
    assert len(seen) == 3
    assert len(waits) == 2
    assert all(2.4 <= seconds <= 3.6 for seconds in waits)  # 3 s, spread by a fifth


def test_the_client_gives_up_after_its_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    with busy_server([(503, {}, SHED)] * 2) as (url, seen), pytest.raises(client.ServiceError) as caught:
        client.Client(url, attempts=2).classify(b"pixels")
    assert str(caught.value) == "503: the queue is full"
    assert len(seen) == 2


def test_the_client_does_not_repeat_its_own_mistakes() -> None:
    with busy_server([(400, {}, b"not JSON")]) as (url, seen), pytest.raises(client.ServiceError) as caught:
        client.Client(url).classify(b"pixels")
    assert str(caught.value) == "400: not JSON"
    assert len(seen) == 1


def test_own_model_is_served_and_replaced_by_its_next_version() -> None:
    done = run(sys.executable, "examples/own_model.py")
    assert done.returncode == 0, done.stdout + done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [answer["version"] for answer in answers] == [1, 2]
    labels = [answer["predictions"][0]["label"] for answer in answers]
    first, second = (answer["predictions"][0]["probability"] for answer in answers)
    assert labels == ["red", "red"]
    assert first < second < 1


def trainjob() -> dict[str, Any]:
    job: dict[str, Any] = yaml.safe_load((ROOT / "examples" / "trainjob.yaml").read_text())
    return job


def test_an_exported_network_reads_pictures_that_it_was_not_trained_on(tmp_path: Path) -> None:
    done = run(sys.executable, "examples/from_torch.py", str(tmp_path))
    assert done.returncode == 0, done.stderr
    session = onnxruntime.InferenceSession(tmp_path / "shapes" / "1" / "model.onnx")
    pictures, classes = from_torch.batch(torch.Generator().manual_seed(1))
    (probabilities,) = session.run(["probabilities"], {"images": pictures.numpy()})
    assert (probabilities.argmax(1) == classes.numpy()).mean() > 0.9


def test_the_trainjob_fits_its_definition() -> None:
    schema = json.loads((SCHEMAS / "trainjob.json").read_text())
    jsonschema.Draft7Validator.check_schema(schema)
    jsonschema.validate(trainjob(), schema)
    for path in (("spec",), ("spec", "trainer"), ("spec", "runtimePatches", 0, "trainingRuntimeSpec")):
        wrong: Any = trainjob()
        part = wrong
        for step in path:
            part = part[step]
        part["notAField"] = 1
        with pytest.raises(jsonschema.ValidationError, match="notAField"):
            jsonschema.validate(wrong, schema)


def test_the_trainjobs_command_is_one_that_training_takes() -> None:
    launcher, module, name, *arguments = trainjob()["spec"]["trainer"]["command"]
    assert (launcher, module, name) == ("torchrun", "-m", "training")
    options = build_parser("", dict.fromkeys(("data", "train"), lambda _: 0), ["cnn"]).parse_args(arguments)
    (mount,) = patched(trainjob())["containers"][0]["volumeMounts"]
    for path in (options.data_dir, options.run_dir):
        assert path.is_relative_to(mount["mountPath"])
    assert options.resume
    (volume,) = patched(trainjob())["volumes"]
    assert volume["name"] == mount["name"]


def patched(job: dict[str, Any]) -> dict[str, Any]:
    """What the job changes in its pods."""
    (patch,) = job["spec"]["runtimePatches"]
    (replicated,) = patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
    pod: dict[str, Any] = replicated["template"]["spec"]["template"]["spec"]
    return pod
