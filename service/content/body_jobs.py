"""What can be done with a body away from its request: decode it into rows, or read its short fields.

A job and its result can cross to another process. Knows nothing of HTTP.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from service.content import codecs, encodings, json_bodies
from service.content.encodings import Coding
from service.content.forms import Part, read_files
from service.content.inference_bodies import read_inference
from service.content.inference_requests import InferenceBody, ModelTensors
from service.content.json_bodies import JsonNames
from service.content.npy import rows_from_npy
from service.content.picture_kinds import sniff
from service.content.pictures import PictureLimits, PixelBudget, TooLargeForLoop
from service.errors import PayloadTooLarge, UnsupportedMedia
from service.models.manifest import Preprocess, TensorSpec
from service.models.tensors import Array

Format = Literal["rows", "undeclared", "picture", "json", "form", "npy"]

ON_LOOP_BYTES = 16 * 1024
"""Larger bodies are decoded by a decoder process; the same holds for the body without its content coding."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Bounds on one body, see the settings of the same names."""

    max_body_bytes: int
    max_request_rows: int
    max_json_values: int
    pictures: PictureLimits = field(default_factory=PictureLimits)


@dataclass(frozen=True, slots=True)
class RowsJob:
    """Decodes a body into rows.

    kind: the declared media type, for a form with its parameters.
    """

    format: Format
    kind: str
    coding: Coding
    spec: TensorSpec
    preprocess: Preprocess
    limits: BodyLimits
    names: JsonNames

    def run(self, body: bytes, *, on_loop: bool = False) -> Array:
        """Return the rows. Raises RequestError; TooLargeForLoop if `on_loop` and it would take long."""
        body = plain(body, self.coding, self.limits, on_loop)
        budget = PixelBudget(self.limits.pictures, on_loop)
        most = self.limits.max_request_rows
        if self.format == "json":
            _check_json(body, self.limits)
            value = json_bodies.read_rows(body, self.names)
            return codecs.rows_from_json(value, self.spec, most, budget, self.preprocess)
        if self.format == "npy":
            return rows_from_npy(body, self.spec, most)
        if self.format == "form":
            return self._form_rows(body, budget)
        if self.format == "picture" or (self.format == "undeclared" and sniff(body)):
            declared = self.kind if self.format == "picture" else ""
            return codecs.image_to_rows(body, self.spec, budget, self.preprocess, declared)
        return codecs.rows_from_raw(body, self.spec, most)

    def _form_rows(self, body: bytes, budget: PixelBudget) -> Array:
        """Return the rows of every file of a form, in order: a picture or raw rows."""
        most = self.limits.max_request_rows
        rows = np.concatenate([self._part_rows(part, budget) for part in read_files(self.kind, body, most)])
        if len(rows) > most:
            raise PayloadTooLarge(f"form has {len(rows)} images, expected at most {most}")
        return rows

    def _part_rows(self, part: Part, budget: PixelBudget) -> Array:
        """Return the rows of a file.

        Clients declare a file whose name they do not know as application/octet-stream (curl does so for
        .webp), so there the first bytes decide.
        """
        content, kind = part.content, part.kind
        if kind.startswith("image/"):
            return codecs.image_to_rows(content, self.spec, budget, self.preprocess, kind)
        if kind not in ("", "application/octet-stream"):
            raise UnsupportedMedia(
                f"form has a file of type {kind[:80]!r}, expected an image or application/octet-stream"
            )
        if sniff(content):
            return codecs.image_to_rows(content, self.spec, budget, self.preprocess)
        return codecs.rows_from_raw(content, self.spec, self.limits.max_request_rows)


@dataclass(frozen=True, slots=True)
class FieldsJob:
    """Reads the fields of a JSON object; of the rows only that they are there."""

    coding: Coding
    limits: BodyLimits
    names: JsonNames

    def run(self, body: bytes, *, on_loop: bool = False) -> dict[str, Any]:
        """Return the fields, with True for the rows. Raises RequestError, TooLargeForLoop."""
        body = plain(body, self.coding, self.limits, on_loop)
        _check_json(body, self.limits)
        fields = json_bodies.read_object(body, self.names)
        if fields.get(self.names.rows) is not None:
            fields[self.names.rows] = True
        return fields


@dataclass(frozen=True, slots=True)
class InferenceJob:
    """Reads a request of the Open Inference Protocol. json_bytes: as in `read_inference`."""

    coding: Coding
    json_bytes: int | None
    model: ModelTensors
    limits: BodyLimits

    def run(self, body: bytes, *, on_loop: bool = False) -> InferenceBody:
        """Return the request. Raises RequestError, TooLargeForLoop."""
        return self.read(plain(body, self.coding, self.limits, on_loop))

    def read(self, body: bytes | memoryview) -> InferenceBody:
        """Return the request in a body without a content coding. Raises RequestError."""
        _check_json(bytes(body[: self.json_bytes]), self.limits)
        return read_inference(body, self.json_bytes, self.model, self.limits.max_request_rows)


Job = RowsJob | FieldsJob | InferenceJob


def plain(body: bytes, coding: Coding, limits: BodyLimits, on_loop: bool) -> bytes:
    """Return the body without its content coding. Raises RequestError, TooLargeForLoop."""
    if not coding:
        return body
    if not on_loop:
        return encodings.decode(body, coding, limits.max_body_bytes)
    try:
        return encodings.decode(body, coding, min(ON_LOOP_BYTES, limits.max_body_bytes))
    except PayloadTooLarge:
        if limits.max_body_bytes <= ON_LOOP_BYTES:
            raise
        raise TooLargeForLoop from None


def _check_json(body: bytes, limits: BodyLimits) -> None:
    json_bodies.JsonMeter(limits.max_json_values).add(body)
