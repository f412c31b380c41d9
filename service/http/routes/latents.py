"""POST /encode: images -> latents. POST /decode: latents -> images. POST /reconstruct: both in turn."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content.json_bodies import JsonNames
from service.content.npy import npy_from_array
from service.errors import InvalidInput, ModelNotFound, PayloadTooLarge, UnsupportedMedia
from service.http.headers import CLASSIFIER
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import read_query
from service.http.responses import Response, to_json
from service.http.routes import generate
from service.http.routes.asking import AskingEndpoint
from service.http.routes.bodies import Body
from service.http.routes.classify import body_format
from service.http.routes.generated import LABELLED_ROWS, Generated, HeaderPair, labels_header
from service.http.routes.prompts import Asker
from service.http.routes.schemas import DecodeRequest, EncodeQuery
from service.http.routes.shared import (
    Target,
    find_target,
    model_headers,
    off_loop,
    parse_version,
    raw_response,
    server_timing,
)
from service.http.types import JSON, NPY, OCTETS, Headers, Receive, Scope
from service.models.manifest import ENCODER_SUFFIX, Manifest
from service.models.tensors import Array
from service.serving.checks import check_inputs
from service.serving.predictor import Predictor

QUERY = tuple(EncodeQuery.model_fields)
"""The query of all three routes."""
ENCODE_OFFERED = (JSON, OCTETS, NPY)
"""Media types of the responses of /encode, the default one first."""
DECODE_ACCEPTED = (JSON, OCTETS, NPY)
"""Media types of the bodies of /decode."""
IMAGES_OFFERED = generate.OFFERED
"""Media types of the responses of /decode and /reconstruct."""
DECODE_NAMES = JsonNames(tuple(DecodeRequest.model_fields), "latents", lists=("labels",))
TO_JSON_ON_LOOP_ROWS = 256
"""Latents of more rows are written as JSON on a thread."""


class Labels(NamedTuple):
    """The label input, (rows,), or None if the model has none.

    classifier: the name of the model that read them; None if the client named them.
    """

    indexes: NDArray[np.int64] | None
    classifier: str | None = None

    def names(self, manifest: Manifest) -> list[str] | None:
        """Return each row's label, None if the model has none."""
        return None if self.indexes is None else [manifest.labels[index] for index in self.indexes]

    def headers(self, manifest: Manifest) -> tuple[HeaderPair, ...]:
        """Return the headers that tell them."""
        names = self.names(manifest)
        if names is None:
            return ()
        told = (labels_header(names),) if len(names) <= LABELLED_ROWS else ()
        if self.classifier is None:
            return told
        return (*told, (CLASSIFIER.wire, self.classifier.encode("ascii")))


class Latents(AskingEndpoint):
    """The three endpoints."""

    async def encode(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer images with their latents."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._pinned("encoding", query, self._settings.default_encoder)
        call.model = target.manifest.name
        accepted = negotiate(headers, ENCODE_OFFERED)
        asker = self._asker(headers, receive, call)
        images = await self._images(scope, headers, asker, target.manifest, image_spec(target.manifest))
        labels, result = await self._encoded(asker, target, query, images, in_header=accepted != JSON)
        latents = result.outputs[0]
        if accepted == JSON:
            with self._encode_seconds.of("json").timing():
                return await _as_json(target.manifest, labels, result)
        more = labels.headers(target.manifest)
        if accepted == OCTETS:
            return raw_response(target, result, latents, more)
        name = target.manifest.name
        every = (*model_headers(name, result.version), *more)
        return Response(npy_from_array(latents), NPY, headers=every, timing=server_timing(result), model=name)

    async def decode(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer latents with images."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._decoder(query)
        manifest = target.manifest
        call.model = manifest.name
        accepted = negotiate(headers, IMAGES_OFFERED)
        asker = self._asker(headers, receive, call)
        kind = media_type(headers)
        async with self._bodies.reading(scope, headers, receive, kind, asker.deadline) as body:
            z, named = await self._latents(body, kind, manifest)
        del body  # its latents are kept, while they wait and run
        if named is not None and "label" in query:
            raise InvalidInput("label is in the query and labels are in the body, expected one of them")
        labels = Labels(_indexes(_names(query, named), len(z), manifest, default_mixed=True))
        result = await asker.infer(target, _with_labels("z", z, labels), len(z))
        more = labels.headers(manifest)
        return await Generated(manifest, result, labels.indexes, headers=more).respond(
            accepted, self._encode_seconds
        )

    async def reconstruct(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer images with what the decoder makes of their latents."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        encoder = self._pinned("encoding", query, self._settings.default_encoder)
        call.model = encoder.manifest.name
        decoder = decoder_of(self._predictor, encoder.manifest)
        accepted = negotiate(headers, IMAGES_OFFERED)
        asker = self._asker(headers, receive, call)
        images = await self._images(scope, headers, asker, encoder.manifest, image_spec(encoder.manifest))
        labels, encoded = await self._encoded(asker, encoder, query, images, in_header=accepted != JSON)
        own = _relabelled(labels, encoder.manifest, decoder.manifest)
        inputs = _with_labels("z", encoded.outputs[0], own)
        rows = check_inputs(decoder.manifest, inputs, self._settings.max_request_rows)
        result = await asker.infer(decoder, inputs, rows)
        facts = {"encoder": encoder.manifest.name, "classifier": labels.classifier}
        more = own.headers(decoder.manifest)
        return await Generated(decoder.manifest, result, own.indexes, facts, more).respond(
            accepted, self._encode_seconds
        )

    async def _encoded(
        self, asker: Asker, target: Target, query: Mapping[str, str], images: Array, *, in_header: bool
    ) -> tuple[Labels, InferenceResult]:
        """Return the labels that the images were encoded with, and their latents.

        in_header: whether labels that a classifier reads must fit a header.
        """
        manifest, rows = target.manifest, len(images)
        if manifest.input("label") is None or "label" in query:
            labels = Labels(_indexes(_names(query, None), rows, manifest, default_mixed=False))
        elif in_header and rows > LABELLED_ROWS:
            raise PayloadTooLarge(
                f"request has {rows} images and no label, expected at most {LABELLED_ROWS}, whose labels "
                f"fit a header, or Accept: {JSON}"
            )
        else:
            labels = await self._read(asker, manifest, images)
        inputs = _with_labels(image_spec(manifest).name, images, labels)
        check_inputs(manifest, inputs, self._settings.max_request_rows)
        return labels, await asker.infer(target, inputs, rows)

    async def _read(self, asker: Asker, manifest: Manifest, images: Array) -> Labels:
        """Let the default classifier read the images' labels. Raises InvalidInput if it cannot."""
        try:
            reader = find_target(
                self._predictor, "classification", None, None, self._settings.default_classifier
            )
        except ModelNotFound:
            raise InvalidInput(
                f"label is missing, and no classifier is served: {manifest.name} needs one"
            ) from None
        spec, own = reader.manifest.inputs[0], image_spec(manifest)
        if (spec.datatype, spec.shape) != (own.datatype, own.shape):
            raise InvalidInput(
                f"label is missing, and {reader.manifest.name} cannot read it: its input is {spec.datatype} "
                f"{list(spec.shape)}, that of {manifest.name} {own.datatype} {list(own.shape)}"
            )
        reader = Target(reader.manifest, reader.manifest.version)
        result = await asker.infer(reader, {spec.name: images}, len(images))
        names = [reader.manifest.labels[index] for index in result.outputs[0].argmax(axis=1)]
        return Labels(_known(names, "label", manifest), reader.manifest.name)

    async def _latents(
        self, body: Body, kind: str, manifest: Manifest
    ) -> tuple[Array, str | Sequence[Any] | None]:
        """Return the latents in the body, (rows, size), and the labels beside them, None without."""
        spec = manifest.input("z")
        assert spec is not None  # a generator's manifest has it
        spec = spec.model_copy(update={"name": "latents"})
        if kind not in DECODE_ACCEPTED:
            raise UnsupportedMedia(f"Content-Type is {kind[:80]!r}, expected {' or '.join(DECODE_ACCEPTED)}")
        form = body_format(kind)
        named = (await self._bodies.fields(body, DECODE_NAMES)).get("labels") if form == "json" else None
        z = await self._bodies.rows(body, form, spec, DECODE_NAMES)
        if not np.isfinite(z).all():
            raise InvalidInput("latents hold a value that is not finite, expected numbers")
        return z, named

    def _decoder(self, query: Mapping[str, str]) -> Target:
        """Return the generator that the query names, or else that of the default encoder."""
        if "model" in query:
            return self._pinned("generation", query, None)
        encoder = self._pinned("encoding", {}, self._settings.default_encoder).manifest
        version = parse_version(query)
        return decoder_of(self._predictor, encoder, version)


def decoder_of(predictor: Predictor, encoder: Manifest, version: int | None = None) -> Target:
    """Return the generator that draws an encoder's latents: its name without ENCODER_SUFFIX, of its version.

    version: another than the encoder's. Raises ModelNotFound.
    """
    name = encoder.name.removesuffix(ENCODER_SUFFIX)
    if name == encoder.name:
        raise ModelNotFound(
            f"encoder {name} has no generator: its name does not end in {ENCODER_SUFFIX}, expected a `model`"
        )
    return find_target(predictor, "generation", name, version or encoder.version, None)


def image_spec(manifest: Manifest) -> Any:
    """Return the input of an encoder that holds the images."""
    return next(spec for spec in manifest.inputs if spec.name != "label")


async def _as_json(manifest: Manifest, labels: Labels, result: InferenceResult) -> Response:
    named = {spec.name: array for spec, array in zip(manifest.outputs, result.outputs, strict=True)}
    answer = {
        "model": manifest.name,
        "version": result.version,
        "classifier": labels.classifier,
        "labels": labels.names(manifest),
        "latents": result.outputs[0],
        "outputs": named,
    }
    many = len(result.outputs[0]) > TO_JSON_ON_LOOP_ROWS
    body = await off_loop(many, to_json, answer)
    return Response(body, timing=server_timing(result), model=manifest.name)


def _with_labels(name: str, rows: Array, labels: Labels) -> Mapping[str, Array]:
    return {name: rows} if labels.indexes is None else {name: rows, "label": labels.indexes}


def _names(query: Mapping[str, str], named: str | Sequence[Any] | None) -> list[str] | None:
    """Return the labels that a request names, in its query or in its body; None if it names none."""
    if named is None:
        return query["label"].split(",") if "label" in query else None
    given = named if isinstance(named, list) else [named]
    for label in given:
        if isinstance(label, bool) or not isinstance(label, str | int):
            raise InvalidInput(f"labels holds {str(label)[:40]!r}, expected names of labels")
    return [str(label) for label in given]


def _indexes(
    names: Sequence[str] | None, rows: int, manifest: Manifest, *, default_mixed: bool
) -> NDArray[np.int64] | None:
    """Return the label input, (rows,), or None for a model without one. Raises InvalidInput.

    names: one for all rows, or one for each. default_mixed: without names, row i gets the i-th label, and the
        labels start again after the last.
    """
    if manifest.input("label") is None:
        if names is not None:
            raise InvalidInput(f"label is {','.join(names)[:40]!r}, but model {manifest.name} accepts none")
        return None
    if names is None or [*names] == [generate.MIXED]:
        if not default_mixed:
            raise InvalidInput(f"label is {generate.MIXED!r}, expected one of {', '.join(manifest.labels)}")
        return np.arange(rows, dtype=np.int64) % len(manifest.labels)
    if len(names) not in (1, rows):
        raise InvalidInput(f"request has {len(names)} labels and {rows} rows, expected one label or {rows}")
    known = _known(names, "label", manifest)
    return known if len(known) == rows else np.repeat(known, rows)


def _known(names: Sequence[str], field: str, manifest: Manifest) -> NDArray[np.int64]:
    """Return the places of these names among a model's labels. Raises InvalidInput for an unknown one."""
    places = {label: index for index, label in enumerate(manifest.labels)}
    for name in names:
        if name not in places:
            known = ", ".join(manifest.labels[:20])
            raise InvalidInput(f"{field} is {name[:40]!r}, expected one of {known} of {manifest.name}")
    return np.array([places[name] for name in names], np.int64)


def _relabelled(labels: Labels, encoder: Manifest, decoder: Manifest) -> Labels:
    """Return an encoder's labels as its decoder's, by their names."""
    names = labels.names(encoder)
    if names is None or decoder.input("label") is None:
        if decoder.input("label") is not None:
            raise InvalidInput(f"encoder {encoder.name} knows no label, but model {decoder.name} needs one")
        return Labels(None, labels.classifier)
    return Labels(_known(names, "label", decoder), labels.classifier)
