"""How a model runs on this machine: threads, bucket sizes, time on the event loop."""

from typing import get_args

from service.machine import available_cores
from service.models.manifest import Manifest, Task
from service.onnx.engine import bucket_sizes
from service.onnx.session import EngineOptions
from service.settings import Determinism, Provider, Settings

DETERMINISTIC_TASKS: dict[Determinism, frozenset[Task]] = {
    "off": frozenset(),
    "generation": frozenset({"generation", "search", "captioning"}),
    "all": frozenset(get_args(Task)),
}
"""The tasks whose models always run at one fixed batch size, by the setting `determinism`."""

BUCKETS_PER_OCTAVE: dict[Provider, int] = {"cpu": 4, "cuda": 1, "tensorrt": 1}
"""Bucket sizes per power of two. On a CPU a padding row costs as much as any other: 28 % of all rows were
padding with one size, 2 to 8 % with four. On a GPU padding is free, and each bucket needs memory for its
captured graph."""

CONVOLUTION_ROWS = 32
CONVOLUTION_ROWS_PER_THREAD = 16
"""On a CPU a graph with convolutions gains nothing from larger batches, because it uses each weight at
hundreds of places of an image. CPU time per row in batches of 32 and of 256, in us on one AVX-512 core: cnn
128 and 134, cnn-int8 46 and 48, vae-encoder 31 and 32, gan 129 and 138, vae 108 and 112. The activations of
cnn take 45 MB for 256 rows and 5 MB for 32, which the arena keeps. Threads share a batch: each gets 16
rows."""

ON_LOOP_SECONDS = 0.010
BRIEF_SECONDS = 0.001
"""On a CPU, batches that take no longer than this run on the event loop itself: with a device thread, the GIL
would change hands at every callback of the loop. mlp, 64 connections: 20,000 requests/s on the loop, 15,000
on the thread (2 AVX-512 cores, shared with wrk and other work). A model too slow for 64 rows in 10 ms gains
less, and gets 1 ms."""


def default_threads(cores: int) -> int:
    """Return onnxruntime's threads for one batch: all cores, or all but one if there are more than two.

    The event loop gets that core. On two cores the MLP served 6,100 requests/s with two threads and 5,600
    with one.
    """
    return cores if cores <= 2 else cores - 1


def engine_options(settings: Settings, manifest: Manifest) -> EngineOptions:
    """Return how a model is opened: its bucket sizes, its threads and the provider's options."""
    fixed = manifest.task in DETERMINISTIC_TASKS[settings.determinism]
    threads = settings.intra_op_threads or default_threads(available_cores())
    convolution_rows = max(CONVOLUTION_ROWS, CONVOLUTION_ROWS_PER_THREAD * threads)
    return EngineOptions(
        settings.provider,
        settings.device_id,
        threads,
        (settings.fixed_batch_size,)
        if fixed
        else bucket_sizes(settings.max_batch_size, BUCKETS_PER_OCTAVE[settings.provider]),
        settings.cuda_graphs,
        convolution_rows if settings.provider == "cpu" else None,
        settings.pinned_memory,
        settings.overlap_copies,
        settings.max_device_memory_bytes,
        settings.tf32,
    )
