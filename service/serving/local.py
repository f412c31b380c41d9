"""The predictor of one process: the versions of the models folder on one device.

Opens, verifies, warms and drains them; `swap` swaps them. A version that cannot be loaded is logged, counted
and listed, and touches no other: the model's next lower good version is served. Startup fails only if nothing
can be served, or a default model that the settings name is not.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from service.batching.device import Device
from service.batching.mirror import QueueState
from service.batching.request import Done, GroupDone, InferenceRequest, Priority, RequestGroup
from service.batching.retries import Refusal
from service.batching.work import Worked
from service.errors import InkserveError, ProviderError, RepositoryError
from service.memory import give_back_free_memory
from service.models.catalogue import Catalogue, Failure
from service.models.folder import Key, Scan, is_bare, is_empty, read_info, scan
from service.models.manifest import Manifest
from service.models.verification import Stamp, stamp, verify
from service.observability.metrics import Metrics
from service.onnx.engine import Engine
from service.serving.checks import unmet_default
from service.serving.loaded_model import RECORDS, LoadedModel, TraceBatch, assemble, open_engine
from service.serving.outputs import check_outputs
from service.serving.predictor import Cancel, CancelOne
from service.serving.recycled_memory import RecycledMemory
from service.serving.swap import Served, log_changes
from service.serving.tuning import BRIEF_SECONDS, ON_LOOP_SECONDS
from service.settings import Settings

logger = logging.getLogger(__name__)

SECOND_LOOK_SECONDS = 2.0
"""A version that was served and is missing is looked for again after this long: network storage, a remounted
volume and a swapped link all show an empty folder for a moment."""


class LocalPredictor:
    """The predictor of a single process: every model of the folder on one device.

    trace_batch: receives each batch that has run with traced requests, and its model.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        trace_batch: TraceBatch | None = None,
        second_look_seconds: float = SECOND_LOOK_SECONDS,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._trace_batch = trace_batch
        on_loop_seconds = ON_LOOP_SECONDS if settings.provider == "cpu" else 0.0
        self._device = Device(settings.provider, on_loop_seconds, BRIEF_SECONDS)
        self._worked = Worked()
        self._served = Served()
        self._memory = RecycledMemory()
        self._stamps: dict[Key, Stamp] = {}
        self._second_look_seconds = second_look_seconds
        self._stopping = False
        self._ready = False
        self._serves_defaults = False
        self._reloading = asyncio.Lock()
        metrics.registry.before_collect(self._count_batches)
        metrics.watch_queues(self._all_queued, self._all_running)
        metrics.busy_seconds.watch("device", lambda: self._device.busy_seconds)
        metrics.work_seconds.watch("device", lambda: self._worked.seconds)

    async def start(self) -> None:
        """Load every model that can be served.

        Raises RepositoryError or EngineError if none can, or if a default model is not among them.
        """
        found = await asyncio.to_thread(scan, self._settings.models_dir)
        models, errors = await self._load_all(found)
        failures = self._report(found, errors)
        if not models:
            first = next(iter(errors.values()), None)
            if isinstance(first, InkserveError):
                raise first
            problem = failures[0].reason if failures else "it holds no models, expected <name>/<version>/"
            raise RepositoryError(f"nothing in {self._settings.models_dir} can be served: {problem}")
        self._swap(models, failures)
        unmet = unmet_default(self._settings, self._served.catalogue)
        if unmet is not None:
            raise RepositoryError(unmet)
        self._ready = True

    def submit(self, request: InferenceRequest, done: Done, *, admitted: bool = False) -> Cancel:
        """Run a request's rows; see `Predictor.submit`."""
        key = request.model, request.version
        loaded = self._served.by_request.get(key) or self._served.find(*key)
        inputs, rows, check = request.inputs, request.rows, loaded.check
        arrays = []
        for name, dtype, shape in check.tensors:  # as in `InputCheck.arrays`, without the calls
            array = inputs.get(name)
            if array is None or array.dtype != dtype or array.shape != (rows, *shape):
                break
            arrays.append(array)
        fits = len(arrays) == len(inputs) == len(check.tensors)
        plain = fits and check.plain and 0 < rows <= self._settings.max_request_rows
        checked = tuple(arrays) if plain else check.checked(inputs, rows)
        if len(loaded.records) >= RECORDS:
            loaded.count_batches()
        item = loaded.batcher.submit(request, checked, done, admitted=admitted)
        return partial(loaded.batcher.cancel, item)

    def submit_group(self, group: RequestGroup, deliver: GroupDone) -> CancelOne:
        """Run the rows of requests that came together; see `GroupPredictor.submit_group`."""
        try:
            loaded = self._served.find(group.model, group.version)
            if min(group.rows) > 0:
                arrays = loaded.check.arrays(group.inputs, sum(group.rows))
                if len(loaded.records) >= RECORDS:
                    loaded.count_batches()
                queued = loaded.batcher.submit_group(group, arrays, deliver)
                if queued is not None:
                    return partial(loaded.batcher.cancel_one, queued)
        except InkserveError:
            pass  # whichever request it is about will get it below
        return self._submit_each(group, deliver)

    def _submit_each(self, group: RequestGroup, deliver: GroupDone) -> CancelOne:
        loop = asyncio.get_running_loop()
        cancels: list[Cancel] = []
        for index, request in enumerate(group.requests()):
            done = partial(deliver, index, index + 1)
            try:
                cancels.append(self.submit(request, done))
            except Exception as error:  # the request's edge: the others are submitted all the same
                cancels.append(loop.call_soon(done, error).cancel)
        return lambda index: cancels[index]()

    def memory(self, size: int) -> memoryview | None:
        """Return memory that earlier bodies were in; see `Predictor.memory`."""
        return self._memory.empty(size)

    def check_admission(
        self, model: str, version: int | None, rows: int, seconds: float, priority: Priority = "normal"
    ) -> Refusal | None:
        """Return the reason to reject this many rows now, or None; see `Predictor.check_admission`."""
        loaded = self._served.by_request.get((model, version)) or self._served.find(model, version)
        return loaded.batcher.check_admission(rows, seconds, priority)

    def queue_state(self, model: str, version: int | None) -> QueueState | None:
        """Return the state of a model version's queue; see `GroupPredictor.queue_state`."""
        return self._served.find(model, version).batcher.queue_state()

    def note_rejection(self, model: str, version: int | None, refusal: Refusal, rows: int) -> float:
        """See `Predictor.note_rejection`."""
        return self._served.find(model, version).batcher.note_rejection(refusal, rows)

    def models(self) -> Catalogue:
        """Return the models that are served now."""
        return self._served.catalogue

    def ready(self) -> bool:
        """Whether the default models are served, loaded and warm, and new work is accepted."""
        return self._ready and self._serves_defaults

    async def reload(self) -> list[str]:
        """Load new and changed versions, swap them in, then drain and free the replaced ones.

        Returns a line for each version that could not be loaded; the model's versions served before stay.
        The next reload waits for this one to end: there are never more than two generations in memory, and no
        CUDA graph is captured while device memory is freed.
        """
        async with self._reloading:
            before = list(self._served)
            try:
                found = await self._look()
                models, errors = await self._load_all(found)
            except (RepositoryError, ProviderError) as error:
                logger.error("nothing was reloaded: %s", error)
                return [str(error)]
            failures = self._report(found, errors)
            replaced = self._swap(models or before, failures)
            log_changes(before, self._served)
            await asyncio.gather(*(loaded.batcher.close() for loaded in replaced))
            _count_batches(replaced)
            del before, models, replaced
            await asyncio.to_thread(give_back_free_memory)
        return [failure.reason for failure in failures]

    def stop_loading(self) -> None:
        """Load no further model: `start` ends once the thread that loads has finished its current step."""
        self._stopping = True

    async def close(self) -> None:
        """Accept no more work, finish the accepted requests, stop the device's thread."""
        self._ready = False
        await asyncio.gather(*(loaded.batcher.close() for loaded in self._served))
        self._device.close()
        self._memory.close()

    def stop_being_ready(self) -> None:
        """Report unready, so that load balancers stop sending; requests are still answered."""
        self._ready = False

    async def _look(self) -> Scan:
        """Look at the models folder, and again if a served version is missing from it.

        Raises RepositoryError if the folder is missing or holds no models any more: that is never an order to
        drop all that is served.
        """
        found = await asyncio.to_thread(scan, self._settings.models_dir)
        if self._missing(found):
            await asyncio.sleep(self._second_look_seconds)
            found = await asyncio.to_thread(scan, self._settings.models_dir)
        if not found.versions:
            raise RepositoryError(
                f"models folder {self._settings.models_dir} holds no models any more, "
                "the loaded ones stay; to remove the last model, stop the service"
            )
        return found

    def _missing(self, found: Scan) -> set[Key]:
        return self._served.all_keys() - found.keys()

    async def _load_all(self, found: Scan) -> tuple[list[LoadedModel], dict[Key, Exception]]:
        """Return the versions to serve, and why others could not be loaded."""
        models: list[LoadedModel] = []
        errors: dict[Key, Exception] = {}
        for name, folders in found.versions.items():
            models += await self._load_model(name, folders, errors)
        for name in {failure.name for failure in found.failures} - found.versions.keys():
            models += self._served.versions(name)  # its folder cannot be read: that is no removal
        return models, errors

    async def _load_model(
        self, name: str, folders: Mapping[int, Path], errors: dict[Key, Exception]
    ) -> list[LoadedModel]:
        """Return a model's versions to serve: all good ones, or only the highest; see `serve_versions`."""
        loaded: list[LoadedModel] = []
        failed = False
        for version in sorted(folders, reverse=True):
            if self._stopping:
                break
            current = self._served.get((name, version))
            try:
                if is_empty(folders[version]) and current is None:
                    continue  # its upload has just begun
                loaded.append(await self._load_if_changed((name, version), folders[version]))
            except ProviderError:
                raise  # it is wrong with the machine: every other version would fail alike
            except Exception as error:  # one version never touches another, whatever is wrong with it
                self._metrics.model_loads.labels(name, "failed").inc()
                errors[name, version] = error
                failed = True
                if current is not None:
                    loaded.append(current)
            if loaded and self._settings.serve_versions == "latest":
                break
        served = self._served.versions(name)
        # What is served is good, and a bad version on disk is no order to go back to an older one.
        if not loaded or (failed and max(map(_version, served), default=0) > max(map(_version, loaded))):
            return served
        return loaded

    def _report(self, found: Scan, errors: Mapping[Key, Exception]) -> list[Failure]:
        """Return what cannot be served, and log what was not logged by the reload before."""
        failures = list(found.failures)
        known = set(self._served.catalogue.failures)
        for failure in found.failures:
            if failure not in known:
                logger.error("a model was not loaded: %s", failure.reason)
        for key, error in errors.items():
            failure = Failure.of(*key, error)
            failures.append(failure)
            if failure not in known:
                unexpected = None if isinstance(error, InkserveError) else error
                logger.error("%s/%d was not loaded: %s", *key, failure.reason, exc_info=unexpected)
        return failures

    def _swap(self, models: Iterable[LoadedModel], failures: Iterable[Failure]) -> list[LoadedModel]:
        """Serve exactly these and watch their queues; returns those that are no longer served."""
        replaced = self._served.swap(models, failures)
        self._stamps = {key: self._stamps[key] for key in self._served.all_keys()}
        unmet = unmet_default(self._settings, self._served.catalogue)
        if unmet is not None and self._serves_defaults:
            logger.error("not ready any more: %s", unmet)
        self._serves_defaults = unmet is None
        for name in {loaded.info.manifest.name for loaded in self._served}:
            self._metrics.watch_model(
                name, partial(self._rows_waiting, name), partial(self._requests_waiting, name)
            )
        for name in {
            each.info.manifest.name for each in self._served if each.info.manifest.task == "generation"
        }:
            self._metrics.count_agreement(name, 0, 0)
            self._metrics.count_coalesced(name, 0)
        return replaced

    def _rows_waiting(self, name: str) -> int:
        return sum(loaded.batcher.rows_waiting for loaded in self._served.versions(name))

    def _requests_waiting(self, name: str) -> int:
        return sum(loaded.batcher.requests_waiting for loaded in self._served.versions(name))

    def spared_on_loop_seconds(self) -> float:
        """Return the time on the event loop that full batches would have spared."""
        return self._worked.spared_on_loop_seconds

    def _all_queued(self) -> int:
        return sum(loaded.batcher.requests_waiting for loaded in self._served)

    def _all_running(self) -> int:
        return sum(loaded.batcher.requests_running for loaded in self._served)

    async def _load_if_changed(self, key: Key, folder: Path) -> LoadedModel:
        current = self._served.get(key)
        if current is not None and current.info == await asyncio.to_thread(read_info, folder):
            seen = await asyncio.to_thread(stamp, folder, current.info.manifest)
            if seen != self._stamps[key]:  # written again: to other contents, or to the same
                await asyncio.to_thread(verify, folder, current.info.manifest)
                self._stamps[key] = seen
            return current
        return await self._load(key, folder)

    async def _load(self, key: Key, folder: Path) -> LoadedModel:
        info, engine, stamped = await asyncio.to_thread(open_engine, folder, self._settings)
        try:
            await self._warm_up(engine, info.manifest)
        except InkserveError as error:
            raise type(error)(f"{folder}: {error}") from error
        self._stamps[key] = stamped
        self._metrics.model_loads.labels(key[0], "loaded").inc()
        how = ", without a manifest" if await asyncio.to_thread(is_bare, folder) else ""
        logger.info("loaded %s version %d%s", *key, how)
        return assemble(
            info, engine, self._device, self._settings, self._metrics, self._trace_batch, self._worked
        )

    def _count_batches(self) -> None:
        _count_batches(self._served)

    async def _warm_up(self, engine: Engine, manifest: Manifest) -> None:
        """Warm up an engine and check its outputs; on CUDA, in the thread that runs the batches.

        A CUDA graph can only be replayed by the thread that captured it, and while it is captured no other
        thread may so much as copy. Other providers capture none, and so need not hold up the batches.
        """

        def warm_up() -> None:
            engine.warm_up(lambda: self._stopping)
            check_outputs(engine, manifest)

        if self._settings.provider == "cuda":
            await self._device.call(warm_up)
        else:
            await asyncio.to_thread(warm_up)


def _version(loaded: LoadedModel) -> int:
    return loaded.info.manifest.version


def _count_batches(models: Iterable[LoadedModel]) -> None:
    for loaded in models:
        loaded.count_batches()
