"""Reads the bodies of /classify and /generate: as declared, bounded, and off the event loop if large."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.content.body_jobs import (
    ON_LOOP_BYTES,
    BodyLimits,
    FieldsJob,
    Format,
    InferenceJob,
    Job,
    RowsJob,
)
from service.content.decoder_frames import Result
from service.content.decoders import DecoderPool
from service.content.encodings import Coding
from service.content.inference_requests import InferenceBody, ModelTensors
from service.content.json_bodies import JsonMeter, JsonNames
from service.content.picture_kinds import sniff
from service.content.pictures import PictureLimits, TooLargeForLoop
from service.errors import UnsupportedCoding
from service.http.disconnects import DisconnectWatch
from service.http.held_bodies import HeldBodies
from service.http.requests import read_body
from service.http.types import JSON, OCTETS, Headers, Receive, Scope
from service.models.manifest import Preprocess, TensorSpec
from service.models.tensors import Array
from service.observability.histograms import DeferredHistogram, Tally
from service.settings import Settings

CONTENT_ENCODING = b"content-encoding"

_CODINGS: Mapping[bytes, Coding] = {
    b"": "",
    b"identity": "",
    b"gzip": "gzip",
    b"x-gzip": "gzip",
    b"deflate": "deflate",
}


@dataclass(frozen=True, slots=True)
class Body:
    """A request's body as it came. kind: its whole Content-Type. deadline: as `time.monotonic` counts."""

    content: bytes
    kind: str
    coding: Coding
    receive: Receive
    deadline: float


class BodyDecoder:
    """Decodes bodies: small ones on the event loop, others in a pool of processes."""

    def __init__(self, settings: Settings, watch: DisconnectWatch, seconds: DeferredHistogram) -> None:
        """seconds: receives the time of each body that is decoded, by its format."""
        self._watch = watch
        self._seconds = seconds
        self._limits = _limits(settings)
        self._held = HeldBodies(settings.max_waiting_bytes // max(1, settings.workers))
        self._pool = DecoderPool(
            settings.decoders,
            settings.max_decode_seconds,
            settings.max_decode_memory_bytes,
            settings.max_decode_queue,
        )

    @asynccontextmanager
    async def reading(
        self, scope: Scope, headers: Headers, receive: Receive, kind: str, deadline: float
    ) -> AsyncIterator[Body]:
        """Read the request's body, which counts as held until the block ends. kind: its media type.

        Raw rows do not count: they need no decoder, and the queue bounds them.
        Raises UnsupportedCoding, PayloadTooLarge, BuffersFull.
        """
        coding = _coding(scope) if CONTENT_ENCODING in headers else ""
        most = self._limits.max_body_bytes
        declared = headers.get(b"content-type", b"").decode("latin-1")
        if kind == OCTETS and not coding:
            content = await read_body(headers, receive, most)
            yield Body(content, declared, coding, receive, deadline)
            return
        meter = JsonMeter(self._limits.max_json_values) if kind == JSON and not coding else None
        with self._held.hold() as held:

            def check(piece: bytes) -> None:
                held.add(piece)
                if meter is not None:
                    meter.add(piece)

            content = await read_body(headers, receive, most, check)
            yield Body(content, declared, coding, receive, deadline)

    async def rows(
        self,
        body: Body,
        form: Format,
        spec: TensorSpec,
        names: JsonNames,
        preprocess: Preprocess = "none",
    ) -> Array:
        """Return the body's rows of a tensor. preprocess: as in `codecs.image_to_rows`."""
        if form == "undeclared" and not body.coding and sniff(body.content) is None:
            form = "rows"
        job = self.rows_job(form, body.kind, spec, names, preprocess, body.coding)
        is_raw = form == "rows" and not body.coding  # the rows are the body's own bytes
        with nullcontext() if is_raw else self.seconds_of(form).timing():
            result = await self._run(job, body, len(body.content) <= ON_LOOP_BYTES or is_raw)
        assert isinstance(result, np.ndarray)
        return result

    async def fields(self, body: Body, names: JsonNames) -> dict[str, Any]:
        """Return the fields of a JSON body, with True for its rows if it has any."""
        job = FieldsJob(body.coding, self._limits, names)
        with self.seconds_of("json").timing():
            result = await self._run(job, body, len(body.content) <= ON_LOOP_BYTES)
        assert isinstance(result, dict)
        return result

    async def inference(self, body: Body, json_bytes: int | None, model: ModelTensors) -> InferenceBody:
        """Return the request in a body of the Open Inference Protocol. json_bytes: see `read_inference`.

        The bytes of tensors need no decoding, so only the JSON decides whether the event loop reads it.
        """
        job = self.inference_job(json_bytes, model, body.coding)
        text_bytes = len(body.content) if json_bytes is None or body.coding else json_bytes
        with self.seconds_of("inference").timing():
            result = await self._run(job, body, text_bytes <= ON_LOOP_BYTES)
        assert isinstance(result, InferenceBody)
        return result

    def rows_job(
        self,
        form: Format,
        declared: str,
        spec: TensorSpec,
        names: JsonNames,
        preprocess: Preprocess,
        coding: Coding = "",
    ) -> RowsJob:
        """Return what decodes such bodies into rows. declared: their whole Content-Type."""
        kind = declared if form == "form" else declared.partition(";")[0].strip().lower()
        return RowsJob(form, kind, coding, spec, preprocess, self._limits, names)

    def inference_job(self, json_bytes: int | None, model: ModelTensors, coding: Coding = "") -> InferenceJob:
        """Return what reads such bodies of the Open Inference Protocol."""
        return InferenceJob(coding, json_bytes, model, self._limits)

    def seconds_of(self, form: str) -> Tally:
        """Return what receives the time of each body in a format that is decoded."""
        return self._seconds.of(form)

    async def _run(self, job: Job, body: Body, on_loop: bool) -> Result:
        if on_loop:
            with suppress(TooLargeForLoop):
                return job.run(body.content, on_loop=True)
        return await self._watch.guard(body.receive, self._pool.run(job, body.content, body.deadline))


def _coding(scope: Scope) -> Coding:
    """Return the body's content coding. Raises UnsupportedCoding."""
    sent = b", ".join(value.strip().lower() for name, value in scope["headers"] if name == CONTENT_ENCODING)
    coding = _CODINGS.get(sent)
    if coding is None:
        shown = sent[:80].decode("latin-1")
        raise UnsupportedCoding(f"Content-Encoding is {shown!r}, expected gzip, deflate or identity")
    return coding


def _limits(settings: Settings) -> BodyLimits:
    pictures = PictureLimits(
        settings.max_image_pixels,
        settings.max_jpeg_pixels,
        settings.max_jpeg_scans,
        settings.max_request_pixels,
        settings.max_picture_bytes,
    )
    return BodyLimits(settings.max_body_bytes, settings.max_request_rows, settings.max_json_values, pictures)
