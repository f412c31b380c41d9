"""Images that a model made -> the response that holds them: a PNG, JSON, raw pixels or an animation."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content import codecs
from service.content.animations import APNG, WEBP, animation
from service.http.headers import LABELS, SEED
from service.http.responses import Response, to_json
from service.http.routes.shared import Target, model_headers, off_loop, raw_response, server_timing
from service.http.types import OCTETS, PNG
from service.models.manifest import Manifest
from service.observability.histograms import DeferredHistogram

ENCODE_ON_LOOP_IMAGES = 16
"""At most this many images are encoded on the event loop: a thread would take longer."""

LABELLED_ROWS = 256
"""At most this many rows have their labels in a header: proxies allow a head of some kilobytes."""

HeaderPair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Generated:
    """Images that a model version made, and what the response says of them.

    labels: the label input, (rows,), if there was one. headers: more headers.
    facts: more members of a JSON answer, before the images. each: more members of each image in JSON.
    columns: of the sheet, if it matters.
    """

    manifest: Manifest
    result: InferenceResult
    labels: NDArray[np.int64] | None
    facts: Mapping[str, object] = field(default_factory=dict)
    headers: tuple[HeaderPair, ...] = ()
    each: Sequence[Mapping[str, object]] = ()
    columns: int | None = None

    async def respond(self, accepted: str, encode_seconds: DeferredHistogram) -> Response:
        """Return the response in the accepted media type. encode_seconds: receives what encoding takes."""
        images: NDArray[np.uint8] = self.result.outputs[0]
        if accepted == OCTETS:
            return raw_response(Target(self.manifest, None), self.result, images, self.headers)
        timing, name = server_timing(self.result), self.manifest.name
        many = len(images) > ENCODE_ON_LOOP_IMAGES
        if accepted == PNG:
            with encode_seconds.of("png").timing():
                body = await off_loop(many, _sprite_png, images, self.columns)
        elif accepted in (WEBP, APNG):
            with encode_seconds.of("animation").timing():
                body = await off_loop(True, animation, images, accepted)
        else:
            facts = {"model": name, "version": self.result.version}
            with encode_seconds.of("json").timing():
                pictures = await off_loop(many, _pictures, images, self._members(len(images)))
                body = to_json({**facts, **self.facts, "images": pictures})
            return Response(body, headers=self.headers, timing=timing, model=name)
        headers = (*model_headers(name, self.result.version), *self.headers)
        return Response(body, accepted, headers=headers, timing=timing, model=name)

    def _members(self, rows: int) -> Sequence[Mapping[str, object]]:
        names: Sequence[str | None] = [None] * rows
        if self.labels is not None:
            names = [self.manifest.labels[index] for index in self.labels]
        more = self.each or [{}] * rows
        return [{"label": name, "digit": name, **said} for name, said in zip(names, more, strict=True)]


def seed_header(seed: int) -> HeaderPair:
    """Return the header that names the seed of the latents."""
    return SEED.wire, str(seed).encode("ascii")


def labels_header(names: Sequence[str]) -> HeaderPair:
    """Return the header that lists labels, separated by commas; see `headers.LABELS`."""
    return LABELS.wire, joined(names)


def joined(names: Sequence[str]) -> bytes:
    """Return labels as a header's value lists them."""
    return ",".join(quote(name, safe=" !#$&'()*+./:;<=>?@[]^_`{|}~-") for name in names).encode("ascii")


def _sprite_png(images: NDArray[np.uint8], columns: int | None) -> bytes:
    return codecs.png_from_image(codecs.sprite(images, columns) if len(images) > 1 else images[0])


def _pictures(
    images: NDArray[np.uint8], members: Sequence[Mapping[str, object]]
) -> list[Mapping[str, object]]:
    """Return each image, as `schemas.GeneratedImage` describes it."""
    return [
        {**said, "png": base64.b64encode(codecs.png_from_image(image)).decode("ascii")}
        for said, image in zip(members, images, strict=True)
    ]
