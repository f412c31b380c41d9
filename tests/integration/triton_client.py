"""Asks a running service everything that Triton's clients can ask, and compares the answers with one another.

Run as `python triton_client.py HTTP GRPC DIGITS` by the interpreter of .cache/clients, which has tritonclient
and nothing of inkserve. HTTP, GRPC: addresses such as 127.0.0.1:8000. DIGITS: a file of raw 28x28 digits 0
to 9. Prints how many requests were answered as expected.
"""

import asyncio
import itertools
import sys
from typing import Any

import numpy as np
import tritonclient.grpc as rpc
import tritonclient.http as blocking
import tritonclient.http.aio as concurrent
from tritonclient.utils import InferenceServerException

HOST, RPC_HOST, DIGITS = sys.argv[1:]
IMAGES = np.fromfile(DIGITS, np.uint8).reshape(-1, 28, 28)
MODEL, GENERATOR = "mlp", "gan"


def images_input(kind: Any, binary: bool) -> Any:
    tensor = kind("images", list(IMAGES.shape), "UINT8")
    tensor.set_data_from_numpy(IMAGES, binary_data=binary)
    return tensor


def metadata(client: blocking.InferenceServerClient) -> int:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("none")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    (images,) = client.get_model_metadata(MODEL)["inputs"]
    assert images == {"name": "images", "datatype": "UINT8", "shape": [-1, 28, 28]}
    assert client.get_model_config(MODEL, "1")["max_batch_size"] > 1
    index = {each["name"]: each["state"] for each in client.get_model_repository_index()}
    assert index[MODEL] == index[GENERATOR] == "READY"
    before, *_ = client.get_inference_statistics(MODEL, "1")["model_stats"]
    client.infer(MODEL, [images_input(blocking.InferInput, True)])
    after, *_ = client.get_inference_statistics(MODEL)["model_stats"]
    assert after["inference_count"] == before["inference_count"] + len(IMAGES)
    for name in ("success", "queue", "compute_infer"):
        one, other = before["inference_stats"][name], after["inference_stats"][name]
        assert other["count"] == one["count"] + 1
        assert other["ns"] > one["ns"]
    every = {each["name"] for each in client.get_inference_statistics()["model_stats"]}
    assert {MODEL, GENERATOR} <= every
    return 13


def digits(client: blocking.InferenceServerClient) -> tuple[np.ndarray, int]:
    """Classify the digits in every combination of formats. Returns their probabilities, too."""
    seen = []
    for binary_input, binary_output, coding, request_id, as_sent in itertools.product(
        (True, False), (True, False, None), (None, "gzip", "deflate"), ("", "an id"), (True, False)
    ):
        outputs = [blocking.InferRequestedOutput("probabilities", binary_data=bool(binary_output))]
        result = client.infer(
            MODEL,
            [images_input(blocking.InferInput, binary_input)],
            outputs=None if binary_output is None else outputs,
            request_id=request_id,
            request_compression_algorithm=coding,
            response_compression_algorithm=coding,
            priority=1 if as_sent else 2,
            timeout=None if as_sent else 20_000_000,
        )
        assert result.get_response().get("id", "") == request_id
        seen.append(result.as_numpy("probabilities"))
    assert all((each == seen[0]).all() for each in seen)
    assert seen[0].argmax(1).tolist() == list(range(10))
    return seen[0], len(seen)


def classes(client: blocking.InferenceServerClient) -> int:
    for binary in (True, False):
        asked = blocking.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
        result = client.infer(MODEL, [images_input(blocking.InferInput, True)], outputs=[asked])
        texts = [
            text.decode() if isinstance(text, bytes) else text
            for text in result.as_numpy("probabilities")[:, 0]
        ]
        assert [text.split(":")[1:] for text in texts] == [[str(digit)] * 2 for digit in range(10)]
    return 2


def generation(client: blocking.InferenceServerClient) -> int:
    size = client.get_model_metadata(GENERATOR)["inputs"][0]["shape"][1]
    z = blocking.InferInput("z", [3, size], "FP32")
    z.set_data_from_numpy(np.random.default_rng(0).normal(size=(3, size)).astype(np.float32))
    label = blocking.InferInput("label", [3], "INT64")
    label.set_data_from_numpy(np.array([1, 2, 3]))
    result = client.infer(GENERATOR, [z, label])
    (output,) = result.get_response()["outputs"]
    images = result.as_numpy(output["name"])
    assert (images.dtype, images.shape) == (np.uint8, (3, 28, 28))
    again = client.async_infer(GENERATOR, [label, z]).get_result()
    assert (again.as_numpy(output["name"]) == images).all()
    return 2


def errors(client: blocking.InferenceServerClient) -> int:
    images = images_input(blocking.InferInput, True)
    wrong = [
        ("404", lambda: client.infer("none", [images])),
        ("404", lambda: client.infer(MODEL, [images], model_version="99")),
        ("400", lambda: client.infer(GENERATOR, [images])),
        ("400", lambda: client.infer(MODEL, [images], sequence_id=7)),
        ("400", lambda: client.infer(MODEL, [images], outputs=[blocking.InferRequestedOutput("none")])),
        ("504", lambda: client.infer(MODEL, [images], timeout=1)),
        ("404", lambda: client.load_model(MODEL)),
        ("404", lambda: client.get_system_shared_memory_status()),
    ]
    for status, ask in wrong:
        error = error_of(ask)
        assert error.status() == status, error
        assert "an exception occurred in the client" not in str(error), error
    return len(wrong)


def error_of(ask: Any) -> InferenceServerException:
    try:
        ask()
    except InferenceServerException as error:
        return error
    raise AssertionError("expected an error")


async def concurrently() -> int:
    """Ask many at once, each something else: no answer may reach another request."""
    async with concurrent.InferenceServerClient(HOST) as client:

        async def ask(digit: int) -> None:
            tensor = concurrent.InferInput("images", [1, 28, 28], "UINT8")
            tensor.set_data_from_numpy(IMAGES[digit : digit + 1])
            result = await client.infer(MODEL, [tensor], request_id=f"{digit}")
            assert result.get_response()["id"] == f"{digit}"
            assert result.as_numpy("probabilities").argmax() == digit

        asked = [ask(number % 10) for number in range(200)]
        await asyncio.gather(*asked)
        return len(asked)


def over_grpc(expected: np.ndarray) -> int:
    """Ask the same over gRPC. expected: the probabilities that came over HTTP."""
    with rpc.InferenceServerClient(RPC_HOST) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL, "1")
        assert not client.is_model_ready("none")
        assert client.get_model_metadata(MODEL).inputs[0].shape == [-1, 28, 28]
        assert client.get_model_config(MODEL).config.max_batch_size > 1
        assert MODEL in {each.name for each in client.get_model_repository_index().models}
        (told,) = client.get_inference_statistics(MODEL, "1").model_stats
        assert told.inference_stats.success.count > 0
        assert {each.name for each in client.get_inference_statistics().model_stats} >= {MODEL, GENERATOR}
        tensor = rpc.InferInput("images", list(IMAGES.shape), "UINT8")
        tensor.set_data_from_numpy(IMAGES)
        result = client.infer(MODEL, [tensor], request_id="an id", priority=2, timeout=20_000_000)
        assert result.get_response().id == "an id"
        assert (result.as_numpy("probabilities") == expected).all()
        asked = rpc.InferRequestedOutput("probabilities", class_count=1)
        (texts,) = client.infer(MODEL, [tensor], outputs=[asked]).as_numpy("probabilities").T
        assert [text.decode().split(":")[1:] for text in texts] == [[str(digit)] * 2 for digit in range(10)]
        for status, ask in (
            ("NOT_FOUND", lambda: client.infer("none", [tensor])),
            ("INVALID_ARGUMENT", lambda: client.infer(GENERATOR, [tensor])),
            ("DEADLINE_EXCEEDED", lambda: client.infer(MODEL, [tensor], timeout=1)),
            ("UNIMPLEMENTED", lambda: client.load_model(MODEL)),
        ):
            assert error_of(ask).status() == f"StatusCode.{status}"
    return 15


with blocking.InferenceServerClient(HOST, concurrency=4) as client:
    metadata_requests = metadata(client)
    expected, digits_requests = digits(client)
    others = classes(client) + generation(client) + errors(client)
    print(metadata_requests + digits_requests + others + asyncio.run(concurrently()) + over_grpc(expected))
