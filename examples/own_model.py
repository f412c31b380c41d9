"""Serve an ONNX model of your own, from export to response.

    python examples/own_model.py

Builds a classifier of 32 x 32 colour images that names the strongest colour, publishes it as version 1,
starts a service on it and posts a PNG; then publishes version 2 and lets the service load it. Needs `onnx`,
which `make data` installs, and the service's own packages.
"""

import contextlib
import hashlib
import io
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

NAME = "colours"
LABELS = ("red", "green", "blue")
RELOAD_SECONDS = 30.0
ROOT = Path(__file__).parents[1]


def build_graph(sharpness: float) -> onnx.ModelProto:
    """Return a graph from uint8 pixels (-1, 32, 32, 3) to float32 probabilities (-1, 3).

    The cast, the scaling and the softmax are nodes: the service adds nothing to a graph.
    sharpness: how far apart the probabilities of two colours lie.
    """
    nodes = [
        helper.make_node("Cast", ["images"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels", "height_and_width"], ["means"], keepdims=0),  # (-1, 3)
        helper.make_node("Mul", ["means", "scale"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    constants = [
        numpy_helper.from_array(np.array([1, 2], np.int64), "height_and_width"),
        numpy_helper.from_array(np.array(sharpness / 255, np.float32), "scale"),
    ]
    graph = helper.make_graph(
        nodes,
        NAME,
        [helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 32, 32, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def publish(models_dir: Path, version: int, model: onnx.ModelProto) -> None:
    """Write models_dir/colours/<version>/{model.onnx,manifest.json}.

    The folder gets its name last, so that a service never sees half a version. Never change a version once it
    is published: publish the next one.
    """
    graph = model.SerializeToString()
    manifest = {
        "name": NAME,
        "version": version,
        "task": "classification",
        "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, 32, 32, 3]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, 3]}],
        "labels": LABELS,
        "sha256": hashlib.sha256(graph).hexdigest(),
    }
    folder = models_dir / NAME / str(version)
    unfinished = models_dir / f".{NAME}-{version}"
    unfinished.mkdir(parents=True)
    (unfinished / "model.onnx").write_bytes(graph)
    (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=2))
    folder.parent.mkdir(exist_ok=True)
    unfinished.rename(folder)


@contextlib.contextmanager
def serving(models_dir: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run `python -m service` on a free port; yields the process and its URL, once it is ready."""
    command = [sys.executable, "-m", "service", "--models-dir", str(models_dir), "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                print(line, end="")
                if ready := re.search(r"ready at (http://[^,\s]+)", line):
                    yield process, ready[1]
                    return
            raise SystemExit("the service did not start")
        finally:
            process.terminate()


def picture(colour: tuple[int, int, int]) -> bytes:
    """Return a PNG of one colour. Its size does not matter: the service resizes it to the model's input."""
    file = io.BytesIO()
    Image.new("RGB", (200, 100), colour).save(file, "PNG")
    return file.getvalue()


def ask(url: str, image: bytes) -> dict[str, Any]:
    """Return the service's response to a picture."""
    request = urllib.request.Request(f"{url}/classify?model={NAME}", image)
    with urllib.request.urlopen(request, timeout=10) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def served_version(url: str) -> int:
    """Return the version that the service uses for requests without a version."""
    with urllib.request.urlopen(f"{url}/models/{NAME}", timeout=10) as response:
        return int(json.load(response)["version"])


def main() -> None:
    """Publish, serve and ask; then publish again, reload and ask again."""
    with tempfile.TemporaryDirectory() as folder:
        models_dir = Path(folder)
        publish(models_dir, 1, build_graph(sharpness=4.0))
        with serving(models_dir) as (process, url):
            print(json.dumps(ask(url, picture((250, 120, 0)))))
            publish(models_dir, 2, build_graph(sharpness=8.0))
            process.send_signal(signal.SIGHUP)
            until = time.monotonic() + RELOAD_SECONDS
            while served_version(url) != 2:  # version 1 answers until version 2 is loaded and warm
                if time.monotonic() > until:
                    raise SystemExit(f"version 2 is not served after {RELOAD_SECONDS:g} s")
                time.sleep(0.05)
            print(json.dumps(ask(url, picture((250, 120, 0)))))


if __name__ == "__main__":
    main()
