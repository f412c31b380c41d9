"""Runs one model's batches on one device: its session, its buckets, and the buffers of each.

Knows nothing of requests, queues or deadlines. One thread at a time may call it.
"""

import logging
import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort

from service.errors import EngineError, ManifestError, OutOfMemory, RowsFailed
from service.models.manifest import STRINGS_ADVICE, Manifest, TensorSpec
from service.models.samples import random_rows
from service.models.tensors import Array, dtype_of
from service.onnx import cuda
from service.onnx.buffers import Binding, DeviceBinding, DeviceBuffer, HostBinding, OverlappedBinding
from service.onnx.comparable import open_comparable
from service.onnx.equal_bits import Arrays, CannotCompare, Compared, compare_sizes, rows_to_compare
from service.onnx.session import EngineOptions, explained, open_as_far_as_possible
from service.onnx.streams import streams_of

logger = logging.getLogger(__name__)

SLOWER = 1.25
"""On a GPU, a batch size that takes this many times as long a row as a smaller one is not used. On an H100
cuDNN takes 46 ms for 4,096 rows of a convolution, while four batches of 1,024 take 6."""

TRIES = 3
"""A size is left out only if it was slow this often, because other work can only add time."""

WARM_UP_SECONDS = 0.5
"""On a CPU, only as many batch sizes are timed as are expected to take no longer than this together. 32 rows
of `flow` alone take 1 to 1.6 s."""

COMPARING_SECONDS = 1.0
"""No further batch size is compared with the fixed one after this long. One that is left out costs speed, but
never changes a bit."""

MOST_RUNS_APART = 32
"""A batch that failed runs again in so many parts at most: one wrong row among 256 needs 16. The rows of the
parts that are left fail too."""

CONVOLUTIONS = {"Conv", "ConvInteger", "ConvTranspose", "QLinearConv"}
"""ONNX's convolutions. onnxruntime records a graph's nodes before it fuses these with their neighbours."""


@dataclass(frozen=True)
class _Bucket:
    """One batch size. inputs: the first rows of the buffers, which all buckets of a slot share."""

    inputs: tuple[Array, ...]
    binding: Binding


_Buffers = dict[str, Array]
"""Host memory by tensor name, for the largest batch."""

_Slot = dict[int, _Bucket]
"""The memory of one batch in flight: every batch size, on the same buffers."""


def bucket_sizes(max_batch_size: int, per_octave: int = 1) -> tuple[int, ...]:
    """Return batch sizes up to max_batch_size, with `per_octave` sizes per power of two.

    >>> bucket_sizes(6)
    (1, 2, 4, 6)
    >>> bucket_sizes(20, per_octave=4)
    (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20)
    """
    powers = [1 << power for power in range(max_batch_size.bit_length())]
    sizes = {power + power * step // per_octave for power in powers for step in range(per_octave)}
    return (*sorted(size for size in sizes if size < max_batch_size), max_batch_size)


class Engine:
    """A loaded model.

    buckets: the batch sizes that are used. The warm-up leaves out slow_buckets, and differing_buckets: those
    in which a row has other bits than in the fixed size.

    The constructor raises EngineError if the provider is unavailable, and ManifestError if the graph's
    tensors differ from the manifest's.
    """

    def __init__(self, graph: Path, manifest: Manifest, options: EngineOptions) -> None:
        self._session, options = open_as_far_as_possible(graph, options)
        self._options = options
        self._graph = graph
        self._manifest = manifest
        self.slow_buckets: tuple[int, ...] = ()
        self.differing_buckets: tuple[int, ...] = ()
        self.buckets = _buckets(self._session, options)
        self._seconds = dict.fromkeys(self.buckets, math.inf)
        _check_tensors(manifest.inputs, self._session.get_inputs(), "input")
        _check_tensors(manifest.outputs, self._session.get_outputs(), "output")
        self.depth = 2 if options.overlaps else 1
        try:
            self._idle = [self._slot(manifest, number) for number in range(self.depth)]
        except EngineError:
            raise
        except Exception as error:  # onnxruntime raises its own types if the device's memory is full
            context = f"{graph}: buffers cannot be allocated on the device"
            raise explained(error, options, context, self.buckets[-1]) from error

    def warm_up(self, stop: Callable[[], bool] = lambda: False) -> None:
        """Run the buckets whose first run is slower than later ones, and time them.

        On a GPU that is every bucket. The largest runs first and grows the memory arena to its final size.
        The smallest follows: TensorRT rebuilds its engine for a shape outside the range that it knows, so it
        builds only twice. With CUDA graphs, call this from the thread that will call `begin`, because
        onnxruntime keeps a thread's graphs only for that thread. Each bucket runs twice: the first run
        captures, the second is the first replay.
        stop: asked between two runs. Raises EngineError if it says so.
        """
        if self._options.provider == "cpu":
            self._warm_up_cpu(stop)
        else:
            self._warm_up_gpu(stop)
        if self._options.fixed_size is not None and len(self.buckets) > 1:
            self._leave_out_differing(self._options.fixed_size, stop)

    def _warm_up_gpu(self, stop: Callable[[], bool]) -> None:
        for size in (self.buckets[-1], *self.buckets[:-1]):
            _check(stop)
            # The slots alternate: `begin` takes the one that has been idle longest.
            for _ in range(self.depth):
                self._time(size)
            self._seconds[size] = max(self._time(size) for _ in range(self.depth))
        self._leave_out_slow(stop)

    def _warm_up_cpu(self, stop: Callable[[], bool]) -> None:
        """Run the largest bucket, then only the powers of two, and interpolate the other buckets' times.

        A CPU's kernels are not tuned to shapes. Once the largest and the smallest bucket have run, the first
        run of any other takes as long as its second: over 15 starts their medians differed by 3 to 10 us
        (mlp, mlp-int8, cnn, vae-encoder, one thread). All 28 buckets of five models took 0.5 s.

        If that would take longer than WARM_UP_SECONDS, only smaller buckets are timed, and a row is taken to
        need as long in the larger ones as in the last of these.

        None is left out as slow: on an idle machine none is (60 warm-ups of the shipped models), and on a
        busy one neither the clock nor the thread's CPU time can tell, which both vary by more than twice.
        """
        smallest, largest = self.buckets[0], self.buckets[-1]
        self._time(smallest)
        if self._time(smallest) * largest / smallest <= WARM_UP_SECONDS:
            self._time(largest)
        timed: list[int] = []
        seconds: list[float] = []
        for size in sorted({smallest, largest, *(size for size in self.buckets if size.bit_count() == 1)}):
            _check(stop)
            if timed and sum(seconds) + seconds[-1] * size / timed[-1] > WARM_UP_SECONDS:
                break
            timed.append(size)
            seconds.append(self._time(size))
        if timed[-1] < largest:
            seconds.append(seconds[-1] * largest / timed[-1])
            timed.append(largest)
        # Make the times non-decreasing: interference only ever adds time.
        rising = np.minimum.accumulate(seconds[::-1])[::-1]
        self._seconds = {size: float(np.interp(size, timed, rising)) for size in self.buckets}

    def _leave_out_differing(self, fixed: int, stop: Callable[[], bool]) -> None:
        """Keep only the buckets in which rows have the bits that they have in the fixed size.

        A class of sizes is never chosen by how fast it is: a seed would have other bits after another start.
        """
        try:
            compared = self._compare(fixed, stop)
        except CannotCompare as error:
            self.buckets = (fixed,)
            logger.warning("%s: %s; it runs only in batches of %d rows", self._graph, error, fixed)
            return
        self.buckets, self.differing_buckets = (tuple(sorted(sizes)) for sizes in compared)
        logger.info(
            "%s: batches of %s rows give each row the same bits; others, which are not used: %s",
            self._graph,
            ", ".join(map(str, self.buckets)),
            ", ".join(map(str, self.differing_buckets)) or "none",
        )

    def _compare(self, fixed: int, stop: Callable[[], bool]) -> Compared:
        """Compare the buckets with the fixed size, the smallest first. Raises CannotCompare.

        For a single image a slow model gains most by a small batch, and the time may not suffice for all.
        """
        try:
            run = open_comparable(self._graph, self._manifest, self._options)
        except EngineError as error:
            raise CannotCompare(f"its batch sizes cannot be compared: {error}") from error

        def run_unless_stopped(inputs: Arrays) -> Arrays:
            _check(stop)
            return run(inputs)

        values = sum(math.prod(spec.shape[1:]) for spec in self._manifest.outputs)
        rows = rows_to_compare(self.buckets[-1], values)
        inputs = random_rows(self._manifest, rows, np.random.default_rng(0))
        others = [size for size in self.buckets if size != fixed]
        return compare_sizes(run_unless_stopped, inputs, fixed, others, values, COMPARING_SECONDS)

    def _leave_out_slow(self, stop: Callable[[], bool]) -> None:
        """Keep only the buckets that take about as long a row as the smaller ones, or less."""
        kept: list[int] = []
        left_out: list[int] = []
        fastest = math.inf
        for size in self.buckets:
            tries = 1
            while self._seconds[size] / size > SLOWER * fastest and tries < TRIES:
                _check(stop)
                self._seconds[size] = min(self._seconds[size], self._time(size))
                tries += 1
            slow = self._seconds[size] / size > SLOWER * fastest
            (left_out if slow else kept).append(size)
            fastest = min(fastest, self._seconds[size] / size)
        if left_out:
            times = ", ".join(f"{size} ({1e3 * self._seconds[size]:.3g} ms)" for size in left_out)
            logger.warning(
                "%s: batches of %s rows take over %g times as long a row as smaller ones, and are not used",
                self._graph,
                times,
                SLOWER,
            )
        self.buckets, self.slow_buckets = tuple(kept), tuple(left_out)

    def seconds_for(self, rows: int) -> float:
        """Return how long a batch of `rows` rows took at warm-up, measured or interpolated."""
        return self._seconds[self.bucket_for(rows)]

    def bucket_for(self, rows: int) -> int:
        """Return the batch size that `rows` rows are padded to, 1 <= rows <= buckets[-1]."""
        return next(size for size in self.buckets if size >= rows)

    def run(self, parts: Sequence[tuple[Array, ...]], rows: int) -> tuple[Array, ...]:
        """Run the parts' rows as one batch; blocks the calling thread. See `begin` for the rest."""
        return self.begin(parts, rows)()

    def begin(self, parts: Sequence[tuple[Array, ...]], rows: int) -> Callable[[], tuple[Array, ...]]:
        """Start the parts' rows as one batch; may return before it is done.

        parts: one tuple per request, of one array per input in the manifest's order, each (n, ...)
            with the dtype and shape of the manifest; the n add up to `rows`.
        Returns a function that waits for the outputs; call it once, with at most `depth` batches in flight.
            It returns one array per output in the manifest's order, (rows, ...), owned by the caller.
        Both raise EngineError if the device or the graph fails, and RowsFailed if only some rows fail, such
        as those with an index beyond a table. If the device's memory is full, the batch runs once more in
        halves, where smaller buckets exist for them.
        """
        bucket = self._idle[0][self.bucket_for(rows)]
        for index, buffer in enumerate(bucket.inputs):
            np.concatenate([arrays[index] for arrays in parts], out=buffer[:rows])
        # The rows after these keep an earlier batch's data: padding, whose outputs are not read.
        try:
            return partial(self._end, self._launch(bucket, rows), bucket, rows)
        except OutOfMemory as error:
            half = (rows + 1) // 2
            if rows == 1 or self.bucket_for(half) == self.bucket_for(rows):
                raise
            logger.warning("%s; its %d rows are run in two halves", error, rows)
            inputs = [buffer[:rows].copy() for buffer in bucket.inputs]
        except EngineError as error:
            made = self._run_apart(bucket, rows, error)
            return lambda: made
        return partial(_joined, [self._run_part(inputs, 0, half), self._run_part(inputs, half, rows)])

    def _end(self, wait: Callable[[], tuple[Array, ...]], bucket: _Bucket, rows: int) -> tuple[Array, ...]:
        try:
            return wait()
        except OutOfMemory:
            raise
        except EngineError as error:
            return self._run_apart(bucket, rows, error)

    def _run_apart(self, bucket: _Bucket, rows: int, error: EngineError) -> tuple[Array, ...]:
        """Run a batch that failed in halves, and these again, to find the rows that fail.

        Returns the outputs if no half fails. Raises the error for a single row, else RowsFailed.
        """
        inputs = [buffer[:rows].copy() for buffer in bucket.inputs]
        for buffer in bucket.inputs:
            buffer[:rows] = 0  # or what failed would be the padding of later batches
        if rows == 1:
            raise error
        outputs = tuple(np.zeros((rows, *spec.shape[1:]), dtype_of(spec)) for spec in self._manifest.outputs)
        failed = np.ones(rows, bool)
        untried, runs = deque(_halves(0, rows)), 0
        while untried and runs < MOST_RUNS_APART:
            start, stop = untried.popleft()
            runs += 1
            try:
                made = self._run_part(inputs, start, stop)
            except EngineError:
                untried += _halves(start, stop) if stop - start > 1 else []
                continue
            for output, part in zip(outputs, made, strict=True):
                output[start:stop] = part
            failed[start:stop] = False
        if failed.any():
            raise RowsFailed(str(error), outputs, failed) from error
        return outputs

    def _run_part(self, inputs: Sequence[Array], start: int, stop: int) -> tuple[Array, ...]:
        """Run some rows of a batch's inputs as a batch of their own, in a bucket of the free slot."""
        bucket = self._idle[0][self.bucket_for(stop - start)]
        for array, buffer in zip(inputs, bucket.inputs, strict=True):
            buffer[: stop - start] = array[start:stop]
        try:
            return self._launch(bucket, stop - start)()
        except EngineError:
            for buffer in bucket.inputs:
                buffer[: stop - start] = 0  # as above
            raise

    def _launch(self, bucket: _Bucket, rows: int) -> Callable[[], tuple[Array, ...]]:
        try:
            bucket.binding.launch(rows)
        except Exception as error:  # onnxruntime raises its own types, RuntimeError and more
            raise self._failed(error, rows) from error
        return partial(self._wait, self._idle.pop(0), bucket, rows)

    def _wait(self, slot: _Slot, bucket: _Bucket, rows: int) -> tuple[Array, ...]:
        try:
            return tuple(output[:rows].copy() for output in bucket.binding.wait())
        except Exception as error:  # as above
            raise self._failed(error, rows) from error
        finally:
            self._idle.append(slot)

    def _failed(self, error: Exception, rows: int) -> EngineError:
        """Return the error to raise for one of onnxruntime's in a batch of `rows` rows."""
        model = f"{self._manifest.name} version {self._manifest.version}"
        return explained(error, self._options, model, self.bucket_for(rows))

    def _time(self, size: int) -> float:
        """Run a bucket on its buffers' current contents; returns the seconds that it took."""
        started = time.perf_counter()
        self._launch(self._idle[0][size], size)()
        return time.perf_counter() - started

    def _slot(self, manifest: Manifest, number: int) -> _Slot:
        most = self.buckets[-1]
        make_input = self._pinned_buffer if self._options.pins_memory else _buffer
        make_output = self._pinned_buffer if self._options.overlaps else _buffer
        inputs = {spec.name: make_input(spec, most) for spec in manifest.inputs}
        outputs = {spec.name: make_output(spec, most) for spec in manifest.outputs}
        first_graph = 1 + number * len(self.buckets)  # 0 is onnxruntime's own
        bind = self._overlapped if self._options.overlaps else self._blocking
        return {
            size: _Bucket(tuple(buffer[:size] for buffer in inputs.values()), binding)
            for size, binding in zip(self.buckets, bind(inputs, outputs, first_graph), strict=True)
        }

    def _pinned_buffer(self, spec: TensorSpec, rows: int) -> Array:
        """Return a buffer like `_buffer`'s, in memory that stays pinned as long as the engine exists."""
        array = cuda.whole_pages((rows, *spec.shape[1:]), dtype_of(spec))
        unpin = cuda.pin(array, self._options.device_id, cuda.runtime(ort.cuda_version))
        # When the process exits, the driver frees everything.
        weakref.finalize(self, unpin).atexit = False
        return array

    def _blocking(self, inputs: _Buffers, outputs: _Buffers, first_graph: int) -> Iterator[Binding]:
        """Bind each bucket to the first rows of the buffers; on a GPU, to its own device memory."""
        for graph_id, size in enumerate(self.buckets, first_graph):
            views_in = {name: buffer[:size] for name, buffer in inputs.items()}
            views_out = {name: buffer[:size] for name, buffer in outputs.items()}
            if self._options.provider == "cpu":
                yield HostBinding(self._session, views_in, views_out)
            else:
                yield DeviceBinding(self._session, views_in, views_out, self._options.device_id, graph_id)

    def _overlapped(self, inputs: _Buffers, outputs: _Buffers, first_graph: int) -> Iterator[Binding]:
        """Bind each bucket to the first rows of device memory of the buffers' size."""
        device_id = self._options.device_id
        streams = streams_of(device_id, ort.cuda_version)
        device_inputs = {name: DeviceBuffer.of(buffer, device_id) for name, buffer in inputs.items()}
        device_outputs = {name: DeviceBuffer.of(buffer, device_id) for name, buffer in outputs.items()}
        for graph_id, size in enumerate(self.buckets, first_graph):
            yield OverlappedBinding(
                self._session, size, device_inputs, device_outputs, device_id, graph_id, streams
            )


def _halves(start: int, stop: int) -> list[tuple[int, int]]:
    middle = (start + stop + 1) // 2
    return [(start, middle), (middle, stop)]


def _joined(outputs: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    return tuple(np.concatenate(arrays) for arrays in zip(*outputs, strict=True))


def _check(stop: Callable[[], bool]) -> None:
    if stop():
        raise EngineError("the warm-up was stopped")


def _buckets(session: ort.InferenceSession, options: EngineOptions) -> tuple[int, ...]:
    """Return the options' buckets; with convolutions, only small ones and the fixed size, or the first."""
    if options.convolution_rows is None or not _has_convolutions(session):
        return options.buckets
    most = options.convolution_rows
    suitable = tuple(size for size in options.buckets if size <= most or size == options.fixed_size)
    return suitable or options.buckets[:1]


def _has_convolutions(session: ort.InferenceSession) -> bool:
    """Look for convolutions in the session's record of which provider runs which node."""
    parts = session.get_provider_graph_assignment_info()
    return any(node.op_type in CONVOLUTIONS for part in parts for node in part.get_nodes())


def _check_tensors(specs: Sequence[TensorSpec], nodes: Sequence[ort.NodeArg], kind: str) -> None:
    """Compare tensors with the manifest's. A graph may have more outputs than the manifest names."""
    named = {spec.name for spec in specs}
    seen = {node.name: (node.type, node.shape) for node in nodes}
    if set(seen) != named and (kind == "input" or not named <= set(seen)):
        raise ManifestError(
            f"the graph has the {kind}s {sorted(seen)}, the manifest names {[spec.name for spec in specs]}"
        )
    for spec in specs:
        datatype = seen[spec.name][0]
        if datatype == "tensor(string)":
            raise ManifestError(f"{kind} {spec.name} is {datatype} in the graph; {STRINGS_ADVICE}")
        if datatype != _onnxruntime_type(spec):
            raise ManifestError(
                f"{kind} {spec.name} is {datatype} in the graph, the manifest says {_onnxruntime_type(spec)}"
            )
        shape = tuple(seen[spec.name][1])
        if not shape or isinstance(shape[0], int) or shape[1:] != spec.shape[1:]:
            raise ManifestError(
                f"{kind} {spec.name} has shape {list(shape)} in the graph, expected a free batch axis "
                f"and {list(spec.shape)}"
            )


def _onnxruntime_type(spec: TensorSpec) -> str:
    name = {"float32": "float", "float64": "double"}.get(dtype_of(spec).name, dtype_of(spec).name)
    return f"tensor({name})"


def _buffer(spec: TensorSpec, rows: int) -> Array:
    return np.zeros((rows, *spec.shape[1:]), dtype_of(spec))
