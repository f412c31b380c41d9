"""The predictor of one process: the versions of the models folder on one device.

Opens, verifies, warms and drains them; `swap` swaps them. A version that cannot be loaded makes startup fail;
on a reload it changes nothing.
"""

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from service.batching.device import Device
from service.batching.request import Array, Done, InferenceRequest, Priority
from service.batching.retries import Refusal
from service.errors import InkserveError, RepositoryError
from service.memory import give_back_free_memory
from service.models.catalogue import Catalogue
from service.models.folder import Key, find_versions, read_info
from service.models.manifest import Manifest
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.checks import check_inputs
from service.serving.loaded_model import RECORDS, LoadedModel, TraceBatch, assemble, open_engine
from service.serving.predictor import Cancel
from service.serving.swap import Served, log_changes
from service.serving.tuning import BRIEF_SECONDS, ON_LOOP_SECONDS
from service.settings import Settings

logger = logging.getLogger(__name__)


class LocalPredictor:
    """The predictor of a single process: every model of the folder on one device.

    trace_batch: receives each batch that has run with traced requests, and its model.
    """

    def __init__(self, settings: Settings, metrics: Metrics, trace_batch: TraceBatch | None = None) -> None:
        self._settings = settings
        self._metrics = metrics
        self._trace_batch = trace_batch
        on_loop_seconds = ON_LOOP_SECONDS if settings.provider == "cpu" else 0.0
        self._device = Device(settings.provider, on_loop_seconds, BRIEF_SECONDS)
        self._served = Served()
        self._ready = False
        self._reloading = asyncio.Lock()
        metrics.registry.before_collect(self._count_batches)

    async def start(self) -> None:
        """Load every model. Raises RepositoryError or EngineError for the first that cannot be served."""
        found = find_versions(self._settings.models_dir, self._settings.serve_versions)
        if not found:
            raise RepositoryError(f"{self._settings.models_dir} holds no models, expected <name>/<version>/")
        self._swap([await self._load(folder) for folder in found.values()])
        self._ready = True

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows; see `Predictor.submit`."""
        key = request.model, request.version
        loaded = self._served.by_request.get(key) or self._served.find(*key)
        inputs, rows = request.inputs, request.rows
        arrays = []
        for name, dtype, shape in loaded.tensors:
            array = inputs.get(name)
            if array is None or array.dtype != dtype or array.shape != (rows, *shape):
                break
            arrays.append(array)
        fits = len(arrays) == len(inputs) == len(loaded.tensors)
        if not (fits and loaded.plain and 0 < rows <= self._settings.max_request_rows):
            arrays = self._checked(loaded.info.manifest, request)
        if len(loaded.records) >= RECORDS:
            loaded.count_batches()
        item = loaded.batcher.submit(request, tuple(arrays), done, admitted=admitted)
        return partial(loaded.batcher.cancel, item)

    def _checked(self, manifest: Manifest, request: InferenceRequest) -> list[Array]:
        """Return the request's inputs in the graph's order. Raises InvalidInput, PayloadTooLarge."""
        rows = check_inputs(manifest, request.inputs, self._settings.max_request_rows)
        if rows != request.rows:
            raise ValueError(f"request says {request.rows} rows, its inputs have {rows}")
        return [request.inputs[spec.name] for spec in manifest.inputs]

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return the reason to reject this many rows now, or None; see `Predictor.check_admission`."""
        loaded = self._served.by_request.get((model, version)) or self._served.find(model, version)
        return loaded.batcher.check_admission(rows, seconds, priority)

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        """See `Predictor.note_rejection`."""
        return self._served.find(model, version).batcher.note_rejection(refusal, rows)

    def models(self) -> Catalogue:
        """Return the models that are served now."""
        return self._served.catalogue

    def ready(self) -> bool:
        """Whether every model is loaded and warm, and new work is accepted."""
        return self._ready

    async def reload(self) -> list[str]:
        """Load new and changed versions, swap them in, then drain and free the replaced ones.

        Returns a line for each version that could not be loaded; the model's versions served before stay.
        The next reload waits for this one to end: there are never more than two generations in memory, and no
        CUDA graph is captured while device memory is freed.
        """
        async with self._reloading:
            try:
                found = find_versions(self._settings.models_dir, self._settings.serve_versions)
            except RepositoryError as error:
                logger.error("nothing was reloaded: %s", error)
                return [str(error)]
            before = list(self._served)
            kept, problems = [], []
            for key, folder in found.items():
                try:
                    kept.append(await self._load_if_changed(key, folder))
                except InkserveError as error:
                    problems.append(str(error))
                    logger.error("a model version was not loaded: %s", error)
                    kept.extend(self._served.versions(key[0]))
            replaced = self._swap(kept)
            log_changes(before, self._served)
            await asyncio.gather(*(loaded.batcher.close() for loaded in replaced))
            _count_batches(replaced)
            del before, replaced
            await asyncio.to_thread(give_back_free_memory)
        return problems

    async def close(self) -> None:
        """Accept no more work, finish the accepted requests, stop the device's thread."""
        self._ready = False
        await asyncio.gather(*(loaded.batcher.close() for loaded in self._served))
        self._device.close()

    def stop_being_ready(self) -> None:
        """Report unready, so that load balancers stop sending; requests are still answered."""
        self._ready = False

    def _swap(self, models: Iterable[LoadedModel]) -> list[LoadedModel]:
        """Serve exactly these and watch their queues; returns those that are no longer served."""
        replaced = self._served.swap(models)
        for name in {loaded.info.manifest.name for loaded in self._served}:
            self._metrics.watch_model(
                name, partial(self._rows_waiting, name), partial(self._requests_waiting, name)
            )
        return replaced

    def _rows_waiting(self, name: str) -> int:
        return sum(loaded.batcher.rows_waiting for loaded in self._served.versions(name))

    def _requests_waiting(self, name: str) -> int:
        return sum(loaded.batcher.requests_waiting for loaded in self._served.versions(name))

    async def _load_if_changed(self, key: Key, folder: Path) -> LoadedModel:
        current = self._served.get(key)
        if current is not None and current.info == await asyncio.to_thread(read_info, folder):
            return current
        return await self._load(folder)

    async def _load(self, folder: Path) -> LoadedModel:
        name = folder.parent.name
        try:
            info, engine = await asyncio.to_thread(open_engine, folder, self._settings)
            await self._warm_up(engine)
        except InkserveError:
            self._metrics.model_loads.labels(name, "failed").inc()
            raise
        self._metrics.model_loads.labels(name, "loaded").inc()
        logger.info("loaded %s version %d", name, info.manifest.version)
        return assemble(info, engine, self._device, self._settings, self._metrics, self._trace_batch)

    def _count_batches(self) -> None:
        _count_batches(self._served)

    async def _warm_up(self, engine: Engine) -> None:
        """Warm up an engine; on CUDA, in the thread that runs the batches, between two of them.

        A CUDA graph can only be replayed by the thread that captured it, and while it is captured no other
        thread may so much as copy. Other providers capture none, and so need not hold up the batches.
        """
        if self._settings.provider == "cuda":
            await self._device.call(engine.warm_up)
        else:
            await asyncio.to_thread(engine.warm_up)


def _count_batches(models: Iterable[LoadedModel]) -> None:
    for loaded in models:
        loaded.count_batches()
