"""The models folder: find, verify, load, warm, swap, drain. Serves what it loaded in this process.

A version that cannot be loaded stops the start; on a reload it changes nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.queue import BatchQueue, BatchRecord, Outcome
from service.errors import InkserveError, RepositoryError
from service.memory import give_back_free_memory
from service.models.catalogue import Catalogue, ModelInfo
from service.models.folder import Key, find_versions, read_info
from service.models.manifest import MODEL_FILE, Manifest, sha256_of
from service.models.tensors import Array
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.checks import check_inputs
from service.serving.predictor import Cancel, Done, Inference
from service.serving.tuning import (
    BRIEF_SECONDS,
    INLINE_SECONDS,
    engine_options,
)
from service.settings import Settings

logger = logging.getLogger(__name__)

TraceBatch = Callable[[str, BatchRecord], None]


@dataclass(frozen=True)
class _Loaded:
    """A model version that is ready to run."""

    info: ModelInfo
    engine: Engine
    batcher: Batcher


class Repository:
    """The predictor of a single process: every model of the folder on one device.

    trace_batch: told of each batch that has run, and of its model.
    """

    def __init__(
        self, settings: Settings, metrics: Metrics, trace_batch: TraceBatch = lambda _, __: None
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._trace_batch = trace_batch
        inline_seconds = INLINE_SECONDS if settings.provider == "cpu" else 0.0
        self._device = Device(settings.provider, inline_seconds, BRIEF_SECONDS)
        self._loaded: dict[Key, _Loaded] = {}
        self._catalogue = Catalogue([])
        self._ready = False
        self._reloading = asyncio.Lock()

    async def start(self) -> None:
        """Load every model. Raises RepositoryError or EngineError for the first that cannot be served."""
        found = find_versions(self._settings.models_dir, self._settings.serve_versions)
        if not found:
            raise RepositoryError(f"{self._settings.models_dir} holds no models, expected <name>/<version>/")
        self._swap([await self._load(folder) for folder in found.values()])
        self._ready = True

    def begin(
        self, model: str, version: int | None, inputs: Mapping[str, Array], deadline: float, done: Done
    ) -> Cancel:
        """Begin to run a request's rows; see `Predictor.begin`."""
        manifest = self._catalogue.find(model, version).manifest
        rows = check_inputs(manifest, inputs, self._settings.max_request_rows)
        arrays = tuple([inputs[spec.name] for spec in manifest.inputs])
        batcher = self._loaded[model, manifest.version].batcher
        item = batcher.submit(arrays, rows, deadline, partial(_tell, done, manifest))
        return partial(batcher.cancel, item)

    def refusal(self, model: str, version: int | None, rows: int, seconds: float) -> str | None:
        """Why so many rows would not be queued now; see `Predictor.refusal`."""
        manifest = self._catalogue.find(model, version).manifest
        return self._loaded[model, manifest.version].batcher.refusal(rows, seconds)

    def models(self) -> Catalogue:
        """The models that are being served now."""
        return self._catalogue

    def ready(self) -> bool:
        """Whether every model is loaded and warm, and new work is accepted."""
        return self._ready

    async def reload(self) -> list[str]:
        """Load what is new or changed, swap it in, drain and free what it replaces.

        Returns a line for each version that could not be loaded; whatever was served instead of it
        still is. The next reload waits for this one to its end: there are never more than two generations in
        memory, and no CUDA graph is captured while device memory is freed.
        """
        async with self._reloading:
            try:
                found = find_versions(self._settings.models_dir, self._settings.serve_versions)
            except RepositoryError as error:
                return [str(error)]
            kept, problems = [], []
            for key, folder in found.items():
                try:
                    kept.append(await self._load_if_changed(key, folder))
                except InkserveError as error:
                    problems.append(str(error))
                    logger.error("a model version was not loaded: %s", error)
                    kept.extend(loaded for other, loaded in self._loaded.items() if other[0] == key[0])
            replaced = self._swap(kept)
            await asyncio.gather(*(loaded.batcher.close() for loaded in replaced))
            del replaced
            await asyncio.to_thread(give_back_free_memory)
        return problems

    async def close(self) -> None:
        """Stop taking work, answer what was accepted, end the device's thread."""
        self._ready = False
        await asyncio.gather(*(loaded.batcher.close() for loaded in self._loaded.values()))
        self._device.close()

    def stop_being_ready(self) -> None:
        """Tell load balancers to send no more, while what they send is still answered."""
        self._ready = False

    def _swap(self, models: Iterable[_Loaded]) -> list[_Loaded]:
        """Serve exactly these; returns those that were served before and no longer are."""
        before = list(self._loaded.values())
        self._loaded = {(m.info.manifest.name, m.info.manifest.version): m for m in models}
        self._catalogue = Catalogue(loaded.info for loaded in self._loaded.values())
        for name in {key[0] for key in self._loaded}:
            self._metrics.watch_model(
                name, partial(self._rows_waiting, name), partial(self._requests_waiting, name)
            )
        return [loaded for loaded in before if loaded not in self._loaded.values()]

    def _rows_waiting(self, name: str) -> int:
        return sum(batcher.rows_waiting for batcher in self._batchers(name))

    def _requests_waiting(self, name: str) -> int:
        return sum(batcher.requests_waiting for batcher in self._batchers(name))

    def _batchers(self, name: str) -> Iterator[Batcher]:
        return (loaded.batcher for key, loaded in self._loaded.items() if key[0] == name)

    async def _load_if_changed(self, key: Key, folder: Path) -> _Loaded:
        current = self._loaded.get(key)
        if current is not None and current.info == await asyncio.to_thread(read_info, folder):
            return current
        return await self._load(folder)

    async def _load(self, folder: Path) -> _Loaded:
        name = folder.parent.name
        try:
            info, engine = await asyncio.to_thread(self._open, folder)
            await self._warm_up(engine)
        except InkserveError:
            self._metrics.model_loads.labels(name, "failed").inc()
            raise
        self._metrics.model_loads.labels(name, "loaded").inc()
        settings = self._settings
        queue = BatchQueue(
            engine.buckets[-1],
            settings.max_queue_rows,
            settings.max_batch_delay_seconds,
            settings.max_queue_requests,
        )
        metrics = self._metrics.of_batches(name)

        def record(batch: BatchRecord) -> None:
            metrics.observe(
                reason=batch.reason,
                rows=batch.rows,
                padded_rows=engine.bucket_for(batch.rows),
                compute_seconds=batch.compute_seconds,
                queue_seconds=batch.queue_seconds,
                failed=batch.failed,
            )
            self._trace_batch(name, batch)

        batcher = Batcher(self._device, engine, queue, record)
        logger.info("loaded %s version %d", name, info.manifest.version)
        return _Loaded(info, engine, batcher)

    def _open(self, folder: Path) -> tuple[ModelInfo, Engine]:
        info = read_info(folder)
        graph = folder / MODEL_FILE
        if not graph.is_file():
            raise RepositoryError(f"{graph} is missing")
        digest = sha256_of(graph)
        if digest != info.manifest.sha256:
            raise RepositoryError(f"{graph} has sha256 {digest}, its manifest expects {info.manifest.sha256}")
        try:
            engine = Engine(graph, info.manifest, engine_options(self._settings, info.manifest))
        except RepositoryError as error:
            raise type(error)(f"{folder}: {error}") from error
        return info, engine

    async def _warm_up(self, engine: Engine) -> None:
        """On CUDA in the thread that runs the batches, between two of them.

        A CUDA graph can only be replayed by the thread that captured it, and while it is captured no other
        thread may so much as copy. The rest takes longer to warm up and need not hold up the batches.
        """
        if self._settings.provider == "cuda":
            await self._device.call(engine.warm_up)
        else:
            await asyncio.to_thread(engine.warm_up)


def _tell(done: Done, manifest: Manifest, outcome: Outcome) -> None:
    """Give the arrays of an answer their names."""
    if isinstance(outcome, Exception):
        done(outcome)
        return
    outputs = {spec.name: array for spec, array in zip(manifest.outputs, outcome.outputs, strict=True)}
    done(
        Inference(
            manifest.version, outputs, outcome.queue_seconds, outcome.compute_seconds, outcome.batch_rows
        )
    )
