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
"""The tasks whose models run only in batch sizes that give a row the same bits, by the setting
`determinism`."""

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

COMPARED_PROVIDERS: frozenset[Provider] = frozenset({"cpu", "cuda"})
COMPARED_TASKS: frozenset[Task] = frozenset({"generation"})
"""Models that may run in each batch size that has the bits of the fixed one, because the warm-up compares
them; the others that `determinism` selects run only in the fixed one. TensorRT, which builds an engine for a
range of sizes, has never run. Random rows tell less of other tasks: text-image gives one of ten digits other
bits if it is alone in its batch, but none of 300 images of noise."""

COMPARED_PER_OCTAVE = 2
"""Sizes per power of two that are compared: four would take twice as long, and with one the 18 rows that a
batch has if 64 connections ask for single images are padded to 32."""

ON_LOOP_SECONDS = 0.010
BRIEF_SECONDS = 0.0003
"""On a CPU, batches that take no longer than this run on the event loop itself: with a device thread, the GIL
would change hands at every callback of the loop. mlp, 64 connections: 20,000 requests/s on the loop, 15,000
on the thread (2 AVX-512 cores, shared with wrk and other work). A model too slow for 64 rows in 10 ms gains
less: with single rows of cnn (0.55 ms) on the loop, the p99 at a third of the capacity was 9.6 ms, and 6.6 ms
with all of them on the thread, at the same capacity (medians of four pairs, two cores)."""


def default_threads(cores: int) -> int:
    """Return onnxruntime's threads for one batch: all cores, or all but one if there are more than two.

    The event loop gets that core. On two cores the MLP served 6,100 requests/s with two threads and 5,600
    with one.
    """
    return cores if cores <= 2 else cores - 1


def engine_options(settings: Settings, manifest: Manifest) -> EngineOptions:
    """Return how a model is opened: its bucket sizes, its threads and the provider's options."""
    threads = settings.intra_op_threads or default_threads(available_cores())
    convolution_rows = max(CONVOLUTION_ROWS, CONVOLUTION_ROWS_PER_THREAD * threads)
    is_fixed = manifest.task in DETERMINISTIC_TASKS[settings.determinism]
    return EngineOptions(
        settings.provider,
        settings.device_id,
        threads,
        _fixed_sizes(settings, manifest.task)
        if is_fixed
        else bucket_sizes(settings.max_batch_size, BUCKETS_PER_OCTAVE[settings.provider]),
        settings.cuda_graphs,
        convolution_rows if settings.provider == "cpu" else None,
        settings.pinned_memory,
        settings.overlap_copies,
        settings.max_device_memory_bytes,
        settings.tf32,
        settings.fixed_batch_size if is_fixed else None,
    )


def _fixed_sizes(settings: Settings, task: Task) -> tuple[int, ...]:
    """Return the sizes that a model may run in whose rows always have the same bits."""
    fixed = settings.fixed_batch_size
    if settings.provider not in COMPARED_PROVIDERS or task not in COMPARED_TASKS:
        return (fixed,)
    return tuple(sorted({*bucket_sizes(settings.max_batch_size, COMPARED_PER_OCTAVE), fixed}))
