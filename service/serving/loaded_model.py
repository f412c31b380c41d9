"""A model version that is ready to run: its engine, its batcher, and the batches not counted yet."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from service.batching.batcher import Batcher
from service.batching.device import Device
from service.batching.queue import BatchQueue, BatchRecord
from service.batching.work import Worked, WorkMeter
from service.errors import RepositoryError
from service.models.catalogue import ModelInfo
from service.models.folder import read_info
from service.models.manifest import FP16_SUFFIX, MODEL_FILE, Manifest
from service.models.precision import is_float16
from service.models.signatures import verified
from service.models.verification import Stamp, stamp, verify
from service.observability.metrics import BatchMetrics, Metrics, ScoreMetrics
from service.onnx.engine import Engine
from service.serving.checks import InputCheck
from service.serving.tuning import engine_options
from service.settings import Settings

logger = logging.getLogger(__name__)

TraceBatch = Callable[[str, BatchRecord], None]

RECORDS = 256
"""Batches whose records are kept before they are counted, unless the metrics are collected earlier: counting
each at once would take longer than everything else about a small batch."""


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model version that is ready to run.

    check: of a request's inputs.
    scores: counts the batches' scores, if the model has a threshold for them.
    records: the batches that are not counted yet. work: what they are counted by, in addition to the metrics.
    """

    info: ModelInfo
    engine: Engine
    batcher: Batcher
    metrics: BatchMetrics
    check: InputCheck
    work: WorkMeter
    scores: ScoreMetrics | None = None
    records: list[BatchRecord] = field(default_factory=list)

    def count_batches(self) -> None:
        """Count the batches that have run since the last call."""
        for batch in self.records:
            self.metrics.observe(
                reason=batch.reason,
                rows=batch.rows,
                padded_rows=self.engine.bucket_for(batch.rows),
                compute_seconds=batch.compute_seconds,
                queue_seconds=batch.queue_seconds,
                request_rows=batch.request_rows,
                failed=batch.failed,
            )
        if self.records:
            last = self.records[-1]
            failed = [batch for batch in self.records if batch.failed]
            failed_seconds = sum(batch.compute_seconds * batch.failed_requests for batch in failed)
            seconds = sum(batch.compute_seconds * batch.requests for batch in self.records)
            self.metrics.observe_requests(
                answered_seconds=seconds - failed_seconds,
                failed_seconds=failed_seconds,
                failed_requests=sum(batch.failed_requests for batch in failed),
                failed_rows=sum(batch.failed_rows for batch in failed),
                last_ended=time.time() - time.monotonic() + last.started + last.compute_seconds,
            )
        if self.scores is not None:
            scored = [batch.scored for batch in self.records if batch.scored is not None]
            if scored:
                self.scores.observe(np.concatenate(scored))
        self.work.count(self.records)
        self.records.clear()


def open_engine(folder: Path, settings: Settings) -> tuple[ModelInfo, Engine, Stamp]:
    """Verify and open the version in a folder; blocks. Raises RepositoryError, EngineError, SettingsError.

    Returns the stamp of the folder, by which a change is seen, though a copy of it may have been opened.
    """
    before = stamp(folder, read_info(folder).manifest)
    with verified(folder, settings.trusted_keys) as to_open:
        info, engine = _open(to_open, settings)
    if stamp(folder, info.manifest) != before:
        raise RepositoryError(f"{folder} was written to while it was opened")
    return info, engine, before


def _open(folder: Path, settings: Settings) -> tuple[ModelInfo, Engine]:
    info = read_info(folder)
    verify(folder, info.manifest)
    try:
        engine = Engine(folder / MODEL_FILE, info.manifest, engine_options(settings, info.manifest))
    except RepositoryError as error:
        raise type(error)(f"{folder}: {error}") from error
    if settings.provider == "cpu" and is_float16(folder / MODEL_FILE):
        logger.info("%s", _advice(info.manifest))
    return info, engine


def _advice(manifest: Manifest) -> str:
    """Return what to serve on a CPU in place of a float16 model."""
    source = manifest.name.removesuffix(FP16_SUFFIX)
    better = "its float32 version" if source == manifest.name else source
    return (
        f"{manifest.name} version {manifest.version} is in float16, which is for GPUs: on a CPU onnxruntime "
        f"turns it into float32, which saves no time; serve {better}"
    )


def assemble(
    info: ModelInfo,
    engine: Engine,
    device: Device,
    settings: Settings,
    metrics: Metrics,
    trace_batch: TraceBatch | None,
    worked: Worked,
) -> LoadedModel:
    """Put a queue in front of a warm engine. Called on the event loop.

    worked: the sums that the version's batches are added to.
    trace_batch: receives each batch that has run with traced requests, and its model.
    """
    manifest = info.manifest
    queue = BatchQueue(
        engine.buckets[-1],
        settings.max_queue_rows,
        settings.max_batch_delay_seconds,
        settings.max_queue_requests,
        device.low_share,
    )
    records: list[BatchRecord] = []

    def record_and_trace(batch: BatchRecord) -> None:
        records.append(batch)
        if trace_batch is not None and batch.traceparents:
            trace_batch(manifest.name, batch)

    record = records.append if trace_batch is None else record_and_trace
    batcher = Batcher(device, engine, queue, record, manifest.version, manifest.ood_output())
    check = InputCheck(manifest, settings.max_request_rows)
    work = WorkMeter(engine.seconds_for, engine.buckets, lambda: batcher.full_batch_rows, worked)
    counted = metrics.of_batches(manifest.name, manifest.version)
    limit = manifest.abstain_above
    scores = None if limit is None else metrics.of_scores(manifest.name, manifest.version, limit)
    info = replace(
        info,
        batch_sizes=engine.buckets,
        slow_batch_sizes=engine.slow_buckets,
        differing_batch_sizes=engine.differing_buckets,
    )
    return LoadedModel(info, engine, batcher, counted, check, work, scores, records)
