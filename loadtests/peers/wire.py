"""The format in which each server accepts images and returns probabilities."""

import base64
import http.client
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import orjson
from numpy.typing import NDArray

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]
Headers = Mapping[str, str]

OCTETS = "application/octet-stream"
JSON = "application/json"
V2_HEADER = "Inference-Header-Content-Length"

TOLERANCE = 1e-4
"""Between a server's probabilities and onnxruntime's: float32 sums in another order, or other versions."""


@dataclass(frozen=True)
class Wire:
    """One format of request and response.

    encode: images (n, 28, 28) to body and headers. decode: a response's headers, in lower case, and its body
    to probabilities (n, 10).
    """

    encode: Callable[[Images], tuple[bytes, Headers]]
    decode: Callable[[Headers, bytes], Probabilities]


def ask(
    port: int, path: str, wire: Wire, images: Images, timeout_seconds: float = 30.0
) -> tuple[int, Probabilities | None]:
    """Send one request: returns the status, and the probabilities if it is 200. Raises OSError."""
    body, headers = wire.encode(images)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        connection.request("POST", path, body, dict(headers))
        response = connection.getresponse()
        answer = response.read()
    except http.client.HTTPException as error:
        raise ConnectionError(f"not HTTP: {error!r}") from error
    finally:
        connection.close()
    if response.status != 200:
        return response.status, None
    return 200, wire.decode({name.lower(): value for name, value in response.getheaders()}, answer)


def agrees(port: int, path: str, wire: Wire, images: Images, expected: Probabilities) -> bool:
    """Whether the server returns the expected probabilities. Raises OSError."""
    _, seen = ask(port, path, wire, images)
    return seen is not None and seen.shape == expected.shape and np.allclose(seen, expected, atol=TOLERANCE)


def _as_probabilities(value: object) -> Probabilities:
    return np.asarray(value, np.float32).reshape(-1, 10)


def _encode_raw(images: Images) -> tuple[bytes, Headers]:
    return images.tobytes(), {"Content-Type": OCTETS, "Accept": OCTETS}


def _decode_raw(_: Headers, body: bytes) -> Probabilities:
    return np.frombuffer(body, np.float32).reshape(-1, 10)


def _encode_lists(images: Images) -> tuple[bytes, Headers]:
    return orjson.dumps({"images": images.tolist()}), {"Content-Type": JSON}


def _decode_object(_: Headers, body: bytes) -> Probabilities:
    return _as_probabilities(orjson.loads(body)["probabilities"])


def _decode_list(_: Headers, body: bytes) -> Probabilities:
    return _as_probabilities(orjson.loads(body))


def _base64(images: Images) -> str:
    return base64.b64encode(images.tobytes()).decode("ascii")


def _encode_base64(images: Images) -> tuple[bytes, Headers]:
    return orjson.dumps({"images": _base64(images)}), {"Content-Type": JSON}


def _encode_base64_list(images: Images) -> tuple[bytes, Headers]:
    return orjson.dumps({"images": [_base64(image) for image in images]}), {"Content-Type": JSON}


def _encode_v2_base64(images: Images) -> tuple[bytes, Headers]:
    tensor = {
        "name": "images",
        "shape": [len(images), 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [_base64(image) for image in images],
    }
    return orjson.dumps({"inputs": [tensor]}), {"Content-Type": JSON}


def _decode_v2_json(_: Headers, body: bytes) -> Probabilities:
    return _as_probabilities(orjson.loads(body)["outputs"][0]["data"])


def _encode_v2_binary(images: Images) -> tuple[bytes, Headers]:
    raw = images.tobytes()
    tensor = {
        "name": "images",
        "shape": list(images.shape),
        "datatype": "UINT8",
        "parameters": {"binary_data_size": len(raw)},
    }
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    header = orjson.dumps({"inputs": [tensor], "outputs": outputs})
    return header + raw, {"Content-Type": OCTETS, V2_HEADER: str(len(header))}


def _decode_v2_binary(headers: Headers, body: bytes) -> Probabilities:
    return _decode_raw(headers, body[int(headers[V2_HEADER.lower()]) :])


RAW = Wire(_encode_raw, _decode_raw)
LISTS = Wire(_encode_lists, _decode_object)
BASE64 = Wire(_encode_base64, _decode_object)
BASE64_LIST = Wire(_encode_base64_list, _decode_list)
V2_BASE64 = Wire(_encode_v2_base64, _decode_v2_json)
V2_BINARY = Wire(_encode_v2_binary, _decode_v2_binary)
