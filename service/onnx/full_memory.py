"""Recognises that a device's memory is full, and says what was wanted, what is free and what to change."""

import re
from contextlib import suppress

import onnxruntime as ort

from service.errors import EngineError, OutOfMemory
from service.onnx import cuda
from service.settings import Provider

SIGNS = re.compile(
    r"failed to allocate memory|smaller than requested bytes|out.of.memory|alloc_?failed|bad.alloc"
    r"|memory ?allocation|resource allocation failed",
    re.IGNORECASE,
)
"""In the messages of onnxruntime's arena, of CUDA's runtime and driver, of cuBLAS, cuDNN and C++."""

WANTED = re.compile(r"requested (?:buffer of size|bytes of) (\d+)")


def one_line(error: BaseException) -> str:
    """Return a library's message without the line ends that onnxruntime's have, within and at the end."""
    return " ".join(str(error).split())


def is_full(error: BaseException) -> bool:
    """Whether a library's error says that there was not enough memory."""
    return isinstance(error, MemoryError) or SIGNS.search(str(error)) is not None


def out_of_memory(
    error: BaseException,
    provider: Provider,
    device_id: int,
    rows: int | None,
    limit: int | None,
) -> OutOfMemory:
    """Return the error to raise for one of which `is_full` is true.

    rows: of the batch that needed the memory; None while a model is loaded. limit: max_device_memory_bytes.
    """
    what = "the model" if rows is None else f"a batch of {rows} rows"
    where = "this machine's memory" if provider == "cpu" else f"the memory of GPU {device_id}"
    wanted = WANTED.search(str(error))
    facts = [f"{int(wanted[1]):,} bytes were wanted at once"] if wanted else []
    if provider != "cpu":
        with suppress(EngineError):  # the caller's error matters more
            free, total = cuda.memory(device_id, cuda.runtime(ort.cuda_version))
            facts.append(f"{free:,} of {total:,} are free")
    if limit is not None:
        facts.append(f"max_device_memory_bytes is {limit:,}")
    advice = [] if limit is None else ["raise max_device_memory_bytes"]
    advice += [] if rows is None else ["lower max_batch_size"]
    advice.append("serve fewer models" if provider == "cpu" else "serve fewer models or pods on this device")
    seen = f" ({'; '.join(facts)})" if facts else ""
    return OutOfMemory(
        f"{where} is full: {what} did not fit{seen}; {', or '.join(advice)}. Cause: {one_line(error)}"
    )
