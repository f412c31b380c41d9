"""POST /explain: images -> what in them speaks for a label. All of its rows run at low priority."""

import asyncio
import base64
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from service.batching.request import InferenceResult
from service.content import codecs
from service.content.attributions import (
    MAX_STEPS,
    IntegratedGradients,
    Lime,
    Map,
    Occlusion,
    Perturbation,
)
from service.content.latents import MAX_SEED
from service.content.overlay import overlay
from service.errors import InvalidInput, ModelNotFound, PayloadTooLarge
from service.http.headers import COST, EXPLAINED
from service.http.lifecycle import Call
from service.http.negotiation import negotiate
from service.http.requests import parse_bool, parse_int, read_query
from service.http.responses import Response, to_json
from service.http.routes.asking import AskingEndpoint
from service.http.routes.generated import joined
from service.http.routes.prompts import Asker
from service.http.routes.schemas import ExplainQuery
from service.http.routes.shared import (
    Target,
    find_target,
    model_headers,
    server_timing,
)
from service.http.types import JSON, PNG, Headers, Receive, Scope
from service.models.manifest import GRADIENT_SUFFIX, ImageLayout, Manifest, TensorSpec
from service.models.tensors import Array
from service.serving.checks import check_inputs

QUERY = tuple(ExplainQuery.model_fields)
OFFERED = (JSON, PNG)
"""Media types of responses, the default one first."""

METHODS = ("occlusion", "lime", "integrated_gradients")
PATCH, SAMPLES, STEPS = 4, 200, 64
"""What a method does if the query does not say."""

MAX_IMAGES = 16
"""At most this many images of a request are explained: people look at them."""

MAX_ROWS = 4096
"""At most this many rows run for one request, so that its cost is bounded; for 16 images any default fits."""

MAX_BYTES = 64 * 1024 * 1024
"""At most this many bytes of perturbed images are made for one request."""


class Explain(AskingEndpoint):
    """The endpoint."""

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer images with explanations."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._pinned("classification", query, self._settings.default_classifier)
        manifest = target.manifest
        call.model = manifest.name
        options = _read(query, manifest, negotiate(headers, OFFERED))
        gradients = None if options.perturbation else self._gradients_of(manifest)
        asker = self._asker(headers, receive, call, "low")
        spec = manifest.inputs[0]
        images = await self._images(scope, headers, asker, manifest, spec)
        check_inputs(manifest, {spec.name: images}, self._settings.max_request_rows)
        work = _Work(asker, target, gradients, options, images, self._settings.max_request_rows)
        explanations = await work.run()
        # Off the event loop: a map of 28x28 takes a quarter of a millisecond, its picture half of one.
        return await asyncio.to_thread(work.respond, explanations)

    def _gradients_of(self, classifier: Manifest) -> Target:
        """Return the gradient model of a classifier. Raises ModelNotFound."""
        name, version = f"{classifier.name}{GRADIENT_SUFFIX}", classifier.version
        try:
            found = find_target(self._predictor, "gradient", name, version, None)
        except ModelNotFound:
            raise ModelNotFound(
                f"model {classifier.name} has no gradients: {name}, version {version}, is not loaded; "
                f"expected another method, {METHODS[0]} or {METHODS[1]}"
            ) from None
        seen, expected = found.manifest.outputs[0].shape, classifier.inputs[0].shape
        if seen != expected:
            raise InvalidInput(
                f"{name} has gradients of {list(seen)}, {classifier.name} reads {list(expected)}"
            )
        return found


@dataclass(frozen=True, slots=True)
class _Options:
    """What the query and Accept ask for.

    perturbation, integrated: the method, one of the two. label: the target's index, None for the top one.
    accepted: the response's media type. shows: whether JSON has overlays.
    """

    method: str
    layout: ImageLayout
    perturbation: Perturbation | None
    integrated: IntegratedGradients | None
    label: int | None
    accepted: str
    shows: bool

    @property
    def rows_each(self) -> int:
        """How many rows run for each image."""
        if self.integrated is not None:
            return 1 + self.integrated.steps
        assert self.perturbation is not None
        return 1 + self.perturbation.count(self.layout)


@dataclass(frozen=True, slots=True)
class _Explained:
    """One image's explanation. probability: the label's."""

    label: int
    probability: float
    attributions: Map


def _read(query: Mapping[str, str], manifest: Manifest, accepted: str) -> _Options:
    """Read the query. Raises InvalidInput."""
    spec = manifest.inputs[0]
    layout = spec.image_layout()
    if layout is None:
        seen = f"{spec.name} of model {manifest.name} is {spec.datatype} {list(spec.shape)}"
        raise InvalidInput(f"{seen}, expected images: only these can be explained")
    method = query.get("method", METHODS[0])
    if method not in METHODS:
        raise InvalidInput(f"method is {method[:40]!r}, expected one of {', '.join(METHODS)}")
    side = min(layout.height, layout.width)
    most = partial(_number, query)
    patch = most("patch", min(PATCH, side), 1, side)
    stride = most("stride", max(1, patch // 2), 1, side)
    samples = most("samples", SAMPLES, 1, MAX_ROWS - 1)
    seed = most("seed", 0, 0, MAX_SEED)
    steps = most("steps", STEPS, 1, MAX_STEPS)
    perturbation: Perturbation | None = None
    if method == "occlusion":
        perturbation = Occlusion(patch, stride)
    elif method == "lime":
        perturbation = Lime(patch, samples, seed)
    integrated = IntegratedGradients(steps) if perturbation is None else None
    shows = parse_bool("show_overlay", query.get("show_overlay", "false"))
    if shows and accepted == PNG:
        raise InvalidInput(f"show_overlay is given with Accept: {PNG}, which holds only overlays")
    label = _label(query, manifest)
    return _Options(method, layout, perturbation, integrated, label, accepted, shows)


def _number(query: Mapping[str, str], name: str, fallback: int, low: int, high: int) -> int:
    return parse_int(name, query[name], low, high) if name in query else fallback


def _label(query: Mapping[str, str], manifest: Manifest) -> int | None:
    """Return the index of the label that the query names, or None. Raises InvalidInput."""
    target = query.get("target")
    if target is None:
        return None
    if target not in manifest.labels:
        raise InvalidInput(f"target is {target[:40]!r}, expected one of {', '.join(manifest.labels)}")
    return manifest.labels.index(target)


@dataclass(slots=True)
class _Work:
    """One request's explanations, from its images to the response.

    images: (n, ...) uint8. most: rows of one request to a model; more run one request after another.
    rows, seconds, last: what they cost, and the last result.
    """

    asker: Asker
    target: Target
    gradients: Target | None
    options: _Options
    images: Array
    most: int
    rows: int = 0
    seconds: float = 0.0
    last: InferenceResult | None = field(default=None)

    async def run(self) -> list[_Explained]:
        """Return each image's explanation. Raises PayloadTooLarge, and the errors of `Predictor.submit`."""
        self._check_cost()
        started = time.perf_counter()
        if self.options.perturbation is not None:
            explanations = await self._perturb(self.options.perturbation)
        else:
            explanations = await self._integrate()
        self.seconds = time.perf_counter() - started
        return explanations

    def _check_cost(self) -> None:
        """Raise PayloadTooLarge for more images or rows than one request may have."""
        images, each = len(self.images), self.options.rows_each
        if images > MAX_IMAGES:
            raise PayloadTooLarge(f"request has {images} images, expected at most {MAX_IMAGES}")
        if images * each > MAX_ROWS:
            raise PayloadTooLarge(
                f"{self.options.method} of {images} images takes {images * each} rows, expected at most "
                f"{MAX_ROWS}: {each} for each image"
            )
        held = images * each * self.images[0].size * (1 if self.options.perturbation else 4)  # as float32
        if held > MAX_BYTES:
            raise PayloadTooLarge(
                f"{self.options.method} makes images of {held} bytes, expected at most {MAX_BYTES}"
            )

    async def _perturb(self, method: Perturbation) -> list[_Explained]:
        layout = self.options.layout
        rows = await asyncio.to_thread(
            lambda: np.concatenate([method.rows(image, layout) for image in self.images])
        )
        probabilities = await self._infer(self.target, {self.target.manifest.inputs[0].name: rows})
        every = probabilities.reshape(len(self.images), -1, probabilities.shape[1])
        labels = self._labels(every[:, 0])
        return await asyncio.to_thread(
            lambda: [
                _Explained(label, float(each[0, label]), method.attribute(image, layout, each[:, label]))
                for label, each, image in zip(labels, every, self.images, strict=True)
            ]
        )

    async def _integrate(self) -> list[_Explained]:
        method, layout, gradients = self.options.integrated, self.options.layout, self.gradients
        assert method is not None
        assert gradients is not None
        probabilities = await self._infer(self.target, {self.target.manifest.inputs[0].name: self.images})
        labels = self._labels(probabilities)
        rows = await asyncio.to_thread(lambda: np.concatenate([method.rows(image) for image in self.images]))
        name = _image_input(gradients.manifest).name
        inputs = {name: rows, "label": np.repeat(np.array(labels, np.int64), method.steps)}
        seen = await self._infer(gradients, inputs)
        every = seen.reshape(len(self.images), method.steps, *seen.shape[1:])
        return await asyncio.to_thread(
            lambda: [
                _Explained(label, float(row[label]), method.attribute(image, layout, each))
                for label, row, image, each in zip(labels, probabilities, self.images, every, strict=True)
            ]
        )

    def _labels(self, probabilities: NDArray[np.float32]) -> list[int]:
        """Return the index of each image's target."""
        if self.options.label is not None:
            return [self.options.label] * len(probabilities)
        return [int(best) for best in probabilities.argmax(1)]

    async def _infer(self, target: Target, inputs: Mapping[str, Array]) -> Array:
        """Run rows in as few requests as may be; returns the model's first output."""
        count = len(next(iter(inputs.values())))
        parts = []
        for start in range(0, count, self.most):
            part = {name: array[start : start + self.most] for name, array in inputs.items()}
            self.last = await self.asker.infer(target, part, min(self.most, count - start))
            parts.append(self.last.outputs[0])
        self.rows += count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def respond(self, explanations: Sequence[_Explained]) -> Response:
        """Return the response, in the accepted media type. Takes a millisecond or more."""
        assert self.last is not None
        manifest, options = self.target.manifest, self.options
        timing, milliseconds = server_timing(self.last), round(1e3 * self.seconds, 3)
        if options.accepted == PNG:
            pictures = self._overlays(explanations)
            picture = pictures[0] if len(pictures) == 1 else 255 - codecs.sprite(255 - np.stack(pictures))
            targets = joined([manifest.labels[each.label] for each in explanations])
            headers = (
                *model_headers(manifest.name, manifest.version),
                (EXPLAINED.wire, targets),
                (COST.wire, b"rows=%d, milliseconds=%.1f" % (self.rows, milliseconds)),
            )
            content = codecs.png_from_image(picture)
            return Response(content, PNG, headers=headers, timing=timing, model=manifest.name)
        answers = [self._answer(each) for each in explanations]
        if options.shows:
            for answer, picture in zip(answers, self._overlays(explanations), strict=True):
                answer["overlay"] = base64.b64encode(codecs.png_from_image(picture)).decode("ascii")
        body = {
            "model": manifest.name,
            "version": manifest.version,
            "method": options.method,
            "explanations": answers,
            "rows": self.rows,
            "milliseconds": milliseconds,
        }
        return Response(to_json(body), timing=timing, model=manifest.name)

    def _answer(self, explained: _Explained) -> dict[str, object]:
        """Return an explanation as `schemas.Explanation` describes it."""
        return {
            "target": self.target.manifest.labels[explained.label],
            "probability": explained.probability,
            "attributions": np.ascontiguousarray(explained.attributions),
        }

    def _overlays(self, explanations: Sequence[_Explained]) -> list[NDArray[np.uint8]]:
        layout = self.options.layout
        return [
            overlay(image, layout, each.attributions)
            for image, each in zip(self.images, explanations, strict=True)
        ]


def _image_input(gradients: Manifest) -> TensorSpec:
    return next(spec for spec in gradients.inputs if spec.name != "label")
