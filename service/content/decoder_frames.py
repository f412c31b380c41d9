"""The frames between the service and its decoder processes.

A request is a pickled job and a body. A reply never is a pickle, because a decoder reads hostile files: it is
JSON and the bytes of arrays.
"""

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson

from service import errors
from service.content.body_jobs import Job
from service.content.inference_requests import InferenceBody, RequestedOutput
from service.errors import RequestError
from service.models.tensors import Array

_SIZES = struct.Struct("<QQ")
SIZES_BYTES = _SIZES.size

READY = b"R"
"""A decoder's first byte, before any reply."""

Result = Array | Mapping[str, Any] | InferenceBody
Log = list[tuple[int, str]]
"""Levels and messages that a decoder logged."""


def pack_request(job: Job, body: bytes) -> tuple[bytes, bytes]:
    """Return a request's head and its body, to be written one after the other."""
    packed = pickle.dumps(job)
    return _SIZES.pack(len(packed), len(body)) + packed, body


def read_request(read: Callable[[int], bytes]) -> tuple[Job, bytes] | None:
    """Read a request; None at the end of the stream. read: returns this many bytes, fewer at the end."""
    sizes = read(SIZES_BYTES)
    if len(sizes) < SIZES_BYTES:
        return None
    job_bytes, body_bytes = _SIZES.unpack(sizes)
    job: Job = pickle.loads(read(job_bytes))
    return job, read(body_bytes)


def pack_reply(result: Result | RequestError, log: Log) -> tuple[bytes, bytes]:
    """Return a reply's head and the bytes of its arrays, empty if it has none."""
    head: dict[str, Any] = {"log": log}
    data = b""
    if isinstance(result, RequestError):
        head["error"] = [type(result).__name__, str(result)]
    elif isinstance(result, np.ndarray):
        data = result.tobytes()
        head |= {"dtype": result.dtype.str, "shape": result.shape}
    elif isinstance(result, InferenceBody):
        data = b"".join(array.tobytes() for array in result.inputs.values())
        arrays = [(name, array.dtype.str, array.shape) for name, array in result.inputs.items()]
        outputs = [tuple(output) for output in result.outputs]
        head["inference"] = result._asdict() | {"inputs": arrays, "outputs": outputs}
    else:
        head["fields"] = result
    packed = orjson.dumps(head)
    return _SIZES.pack(len(packed), len(data)) + packed, data


def read_reply(read: Callable[[int], bytes]) -> tuple[Result | RequestError, Log]:
    """Read a reply. Raises EOFError if the stream ends."""
    sizes = read(SIZES_BYTES)
    if len(sizes) < SIZES_BYTES:
        raise EOFError
    head_bytes, data_bytes = _SIZES.unpack(sizes)
    packed, data = read(head_bytes), read(data_bytes)
    if len(packed) < head_bytes or len(data) < data_bytes:
        raise EOFError
    head = orjson.loads(packed)
    log = [(level, message) for level, message in head["log"]]
    if "error" in head:
        name, message = head["error"]
        kind = getattr(errors, name)
        assert issubclass(kind, RequestError)
        return kind(message), log
    if "fields" in head:
        return head["fields"], log
    if "inference" in head:
        return _inference(head["inference"], data), log
    return np.ndarray(tuple(head["shape"]), np.dtype(head["dtype"]), data), log


def _inference(fields: dict[str, Any], data: bytes) -> InferenceBody:
    inputs, begin = {}, 0
    for name, dtype, shape in fields["inputs"]:
        array = np.ndarray(tuple(shape), np.dtype(dtype), data, begin)
        inputs[name] = np.require(array, requirements="A")
        begin += array.nbytes
    outputs = tuple(RequestedOutput(*output) for output in fields["outputs"])
    return InferenceBody(**fields | {"inputs": inputs, "outputs": outputs})
