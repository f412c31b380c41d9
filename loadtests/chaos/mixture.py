"""The mixed requests: models, sizes, formats, both of the service's paths, and what onnxruntime answers.

Every pixel is known here, so every response is compared with what onnxruntime computes in this process from
the same rows. The pictures have the size of the models' input and a dark background, which the service is
documented to leave unchanged. Built once from a seed; nothing here sends anything.
"""

import base64
import io
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import orjson
from numpy.typing import NDArray
from PIL import Image

from loadtests.chaos.client import Answer, request
from loadtests.machine import ROOT
from loadtests.peers.contestants import newest_graph
from loadtests.peers.wire import JSON, OCTETS, TOLERANCE

CLASSIFIERS = ("cnn", "cnn-int8", "mlp", "mlp-int8")
GENERATORS = ("gan", "vae")
DIGITS = ROOT / "tests" / "digits" / "digits.raw"
GENERATOR_ROWS = 16
"""The service's --fixed-batch-size, at which it runs generators."""

GREY_TOLERANCE = 1
"""A generated pixel is a float rounded to a grey level: an error of 1e-6 may cross the boundary."""

SHIFTS = ((0, 0), (1, 0), (0, 1), (-1, 0), (0, -1), (1, 1), (-1, -1), (2, 0))
SIZES = (1, 1, 1, 1, 1, 1, 2, 3, 8, 32)
FEW = (1, 1, 1, 2, 5)
"""Sizes in the formats that are expensive to read: with more rows they would be most of the work."""

LARGE_ROWS = 256
REJECTIONS = (429, 503, 504)
"""What a request whose deadline is too short may be answered."""

Images = NDArray[np.uint8]
Check = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Mixed:
    """One request. statuses: those it may be answered with besides 200. check: of a body of status 200.

    leaves: whether the client closes the connection without waiting for the response.
    """

    kind: str
    payload: bytes
    check: Check
    statuses: tuple[int, ...] = ()
    leaves: bool = False

    def accepts(self, answer: Answer) -> bool:
        """Whether the response is right."""
        if answer.status == 200:
            return self.check(answer.body)
        return answer.status in self.statuses


@dataclass(frozen=True)
class Kind:
    """A kind of request. weight: its part of the mixture. make: draws one."""

    name: str
    weight: float
    make: Callable[[random.Random], tuple[bytes, Check]]
    statuses: tuple[int, ...] = ()
    leaves: bool = False

    def draw(self, chance: random.Random) -> Mixed:
        """Draw a request."""
        payload, check = self.make(chance)
        return Mixed(self.name, payload, check, self.statuses, self.leaves)


def requests(seed: int, pool: int = 600) -> Iterator[Mixed]:
    """An endless mixture, drawn from a pool of so many different requests; the same for the same seed."""
    chance = random.Random(seed)
    kinds = chance.choices(KINDS, [kind.weight for kind in KINDS], k=pool)
    made = [kind.draw(chance) for kind in [*KINDS, *kinds[len(KINDS) :]]]  # each kind at least once
    weights = _weights(made)
    while True:
        yield from chance.choices(made, weights, k=4096)


def _weights(made: Sequence[Mixed]) -> list[float]:
    """Weights with which each kind has its part, however often it is in the pool."""
    of = {kind.name: kind.weight for kind in KINDS}
    counts = {name: sum(each.kind == name for each in made) for name in of}
    return [of[each.kind] / counts[each.kind] for each in made]


def _raw(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance)
    return _post(model, images.tobytes(), {"Content-Type": OCTETS}), _json_check(model, images)


def _raw_to_raw(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance)
    headers = {"Content-Type": OCTETS, "Accept": OCTETS}
    return _post(model, images.tobytes(), headers), _raw_check(model, images)


def _large(chance: random.Random) -> tuple[bytes, Check]:
    model = chance.choice(("mlp", "mlp-int8"))
    images = _images(chance, LARGE_ROWS)
    headers = {"Content-Type": OCTETS, "Accept": OCTETS}
    return _post(model, images.tobytes(), headers), _raw_check(model, images)


def _chunked(chance: random.Random) -> tuple[bytes, Check]:
    """Raw rows in chunks, which cut them anywhere: takes the ASGI path."""
    model, images = _model_and_images(chance)
    body, pieces = images.tobytes(), []
    while body:
        size = chance.randint(1, len(body))
        pieces.append(b"%x\r\n%s\r\n" % (size, body[:size]))
        body = body[size:]
    head = f"POST /classify?model={model} HTTP/1.1\r\nHost: x\r\nContent-Type: {OCTETS}\r\n"
    chunks = b"".join([*pieces, b"0\r\n\r\n"])
    return head.encode() + b"Transfer-Encoding: chunked\r\n\r\n" + chunks, _json_check(model, images)


def _lists(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance, rows=chance.choice(FEW))
    shaped = images if chance.random() < 0.5 else images.reshape(len(images), -1)
    body = orjson.dumps({"images": shaped.tolist()})
    return _post(model, body, {"Content-Type": JSON}), _json_check(model, images)


def _base64(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance, rows=chance.choice(FEW))
    encode = _png if chance.random() < 0.5 else np.ndarray.tobytes
    rows = [base64.b64encode(encode(image)).decode() for image in images]
    return _post(model, orjson.dumps({"images": rows}), {"Content-Type": JSON}), _json_check(model, images)


def _picture(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance, rows=1)
    return _post(model, _png(images[0]), {"Content-Type": "image/png"}), _json_check(model, images)


def _form(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance, rows=chance.choice(FEW))
    parts = []
    for number, image in enumerate(images):
        kind, content = ("image/png", _png(image)) if chance.random() < 0.7 else (OCTETS, image.tobytes())
        disposition = f'Content-Disposition: form-data; name="images"; filename="{number}"'
        parts.append(f"--limit\r\n{disposition}\r\nContent-Type: {kind}\r\n\r\n".encode() + content + b"\r\n")
    headers = {"Content-Type": "multipart/form-data; boundary=limit"}
    return _post(model, b"".join(parts) + b"--limit--\r\n", headers), _json_check(model, images)


def _generation(chance: random.Random) -> tuple[bytes, Check]:
    model, rows = chance.choice(GENERATORS), chance.randint(1, 4)
    z, expected = _latents(model, chance.randrange(40), rows)
    path = f"/generate?model={model}&count={rows}"
    headers = {"Content-Type": OCTETS, "Accept": OCTETS}

    def check(body: bytes) -> bool:
        if len(body) != expected.size:
            return False
        seen = np.frombuffer(body, np.uint8).reshape(expected.shape)
        return bool((np.abs(seen.astype(np.int16) - expected) <= GREY_TOLERANCE).all())

    return request("POST", path, z.tobytes(), headers), check


def _probe(chance: random.Random) -> tuple[bytes, Check]:
    path = chance.choice(("/v2/health/live", "/v2/health/ready", "/models"))
    return request("GET", path), lambda _: True


def _late(chance: random.Random) -> tuple[bytes, Check]:
    model, images = _model_and_images(chance)
    headers = {"Content-Type": OCTETS, "inkserve-timeout": f"{chance.uniform(1e-4, 5e-3):.5f}"}
    return _post(model, images.tobytes(), headers), _json_check(model, images)


def _half(chance: random.Random) -> tuple[bytes, Check]:
    payload, check = chance.choice((_raw, _lists, _form, _chunked))(chance)
    return payload[: chance.randrange(1, len(payload))], check


KINDS = (
    Kind("raw", 50, _raw),
    Kind("raw to raw", 12, _raw_to_raw),
    Kind("256 rows", 0.5, _large),
    Kind("chunked", 4, _chunked),
    Kind("lists", 5, _lists),
    Kind("base64", 5, _base64),
    Kind("PNG", 8, _picture),
    Kind("form", 4, _form),
    Kind("generation", 0.3, _generation),
    Kind("probe", 4, _probe),
    Kind("deadline", 2.5, _late, statuses=REJECTIONS),
    Kind("leaves after sending", 2, _raw, leaves=True),
    Kind("leaves in the middle", 2, _half, leaves=True),
)


def _post(model: str, body: bytes, headers: dict[str, str]) -> bytes:
    return request("POST", f"/classify?model={model}", body, headers)


def _model_and_images(chance: random.Random, rows: int | None = None) -> tuple[str, Images]:
    model = chance.choices(CLASSIFIERS, (1, 1, 10, 10))[0]
    most = 3 if model.startswith("cnn") else max(SIZES)
    return model, _images(chance, rows or min(most, chance.choice(SIZES)))


def _images(chance: random.Random, rows: int) -> Images:
    known = _known_images()
    return known[[chance.randrange(len(known)) for _ in range(rows)]]


@cache
def _known_images() -> Images:
    """The ten digits of tests/digits, shifted: (80, 28, 28)."""
    digits = np.fromfile(DIGITS, np.uint8).reshape(-1, 28, 28)
    return np.concatenate([np.roll(digits, shift, (1, 2)) for shift in SHIFTS])


@cache
def _expected_of(model: str) -> dict[bytes, NDArray[np.float32]]:
    """onnxruntime's probabilities of every known image, by its bytes."""
    images = _known_images()
    probabilities = _session(model).run(["probabilities"], {"images": images})[0]
    return {image.tobytes(): row for image, row in zip(images, probabilities, strict=True)}


def _expected(model: str, images: Images) -> NDArray[np.float32]:
    known = _expected_of(model)
    return np.stack([known[image.tobytes()] for image in images])


@cache
def _latents(model: str, seed: int, rows: int) -> tuple[NDArray[np.float32], NDArray[np.int16]]:
    """Latents and the images that onnxruntime makes of them, with the labels 0, 1, ...: (rows, 28, 28)."""
    session = _session(model)
    size = next(each.shape[1] for each in session.get_inputs() if each.name == "z")
    z = np.zeros((GENERATOR_ROWS, size), np.float32)
    z[:rows] = np.random.default_rng([seed, rows]).standard_normal((rows, size), np.float32)
    inputs: dict[str, NDArray[Any]] = {"z": z}
    if any(each.name == "label" for each in session.get_inputs()):
        labels = np.zeros(GENERATOR_ROWS, np.int64)
        labels[:rows] = np.arange(rows) % 10
        inputs["label"] = labels
    images = session.run(None, inputs)[0]
    return z[:rows], images[:rows].astype(np.int16)


@cache
def _session(model: str) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    graph: Path = newest_graph(ROOT / "models", model)
    return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _png(image: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def _json_check(model: str, images: Images) -> Check:
    expected = _expected(model, images)

    def check(body: bytes) -> bool:
        try:
            seen = [_in_order(each["probabilities"]) for each in orjson.loads(body)["predictions"]]
        except (KeyError, TypeError, orjson.JSONDecodeError):
            return False
        return _close(np.array(seen, np.float32), expected)

    return _once_per_body(check)


def _in_order(probabilities: dict[str, float]) -> list[float]:
    """The probabilities of the labels 0 to 9."""
    return [probabilities[label] for label in "0123456789"]


def _raw_check(model: str, images: Images) -> Check:
    expected = _expected(model, images)

    def check(body: bytes) -> bool:
        return len(body) == expected.nbytes and _close(
            np.frombuffer(body, np.float32).reshape(-1, 10), expected
        )

    return _once_per_body(check)


def _close(seen: NDArray[np.float32], expected: NDArray[np.float32]) -> bool:
    return seen.shape == expected.shape and bool((np.abs(seen - expected) <= TOLERANCE).all())


def _once_per_body(check: Check, most: int = 16) -> Check:
    """Do not compare a body again that has passed: most responses to one request are the same bytes."""
    passed: set[bytes] = set()

    def known(body: bytes) -> bool:
        if body in passed:
            return True
        right = check(body)
        if right and len(passed) < most:
            passed.add(body)
        return right

    return known
