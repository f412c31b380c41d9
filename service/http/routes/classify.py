"""POST /classify: images in any of five formats -> labels and probabilities."""

from collections.abc import Mapping

from service.batching.request import InferenceRequest
from service.content.body_jobs import ON_LOOP_BYTES, Format
from service.content.json_bodies import JsonNames
from service.content.picture_kinds import accepted_media_types
from service.errors import InvalidInput, UnsupportedMedia
from service.http.disconnects import DisconnectWatch
from service.http.fast.head import Head
from service.http.lifecycle import Call
from service.http.negotiation import media_type, negotiate
from service.http.requests import parse_bool, parse_int, read_query
from service.http.responses import Response
from service.http.routes.bodies import CONTENT_ENCODING, BodyDecoder
from service.http.routes.classify_options import ClassifyOptions
from service.http.routes.raw_plan import UNDECLARED, RawPlan
from service.http.routes.rows_plan import RowsPlan
from service.http.routes.schemas import ClassifyQuery, ClassifyRequest
from service.http.routes.shared import (
    Target,
    find_target,
    parse_version,
    read_priority,
    read_timeout,
)
from service.http.types import FORM, JSON, NPY, OCTETS, Headers, Receive, Scope
from service.models.manifest import ImageLayout, Manifest
from service.observability.histograms import DeferredHistogram
from service.serving.checks import check_inputs
from service.serving.predictor import Predictor, infer
from service.settings import Settings

QUERY = tuple(ClassifyQuery.model_fields)
ACCEPTED = (OCTETS, *accepted_media_types(), JSON, FORM, NPY)
"""Media types of bodies, as errors and the OpenAPI description list them."""
OFFERED = (JSON, OCTETS)
"""Media types of responses, the default one first."""
NAMES = JsonNames(tuple(ClassifyRequest.model_fields), "images", bare=True)
_FORMATS: Mapping[str, Format] = {
    OCTETS: "rows",
    JSON: "json",
    FORM: "form",
    NPY: "npy",
    **dict.fromkeys(UNDECLARED, "undeclared"),
}


class Classify:
    """The endpoint, over a predictor."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        watch: DisconnectWatch,
        bodies: BodyDecoder,
        encode_seconds: DeferredHistogram,
    ) -> None:
        self._json_seconds = encode_seconds.of("json")
        self._predictor = predictor
        self._settings = settings
        self._kinds = settings.kinds
        self._watch = watch
        self._bodies = bodies

    async def __call__(self, scope: Scope, receive: Receive, call: Call) -> Response:
        """Answer a request that came through ASGI."""
        headers: Headers = dict(scope["headers"])
        query = read_query(scope["query_string"], QUERY)
        target = self._target(query)
        call.model = target.manifest.name
        options = self._options(target, query, headers)
        deadline = call.received_at + options.timeout
        kind, spec = media_type(headers), target.manifest.inputs[0]
        form = body_format(kind)
        async with self._bodies.reading(scope, headers, receive, kind, deadline) as body:
            images = await self._bodies.rows(body, form, spec, NAMES, target.manifest.picture_preprocess)
        del body  # its rows are kept, while they wait and run
        shown = await options.shown(images)
        inputs = {spec.name: images}
        rows = check_inputs(target.manifest, inputs, self._settings.max_request_rows)
        request = InferenceRequest(
            call.model, target.version, inputs, rows, deadline, options.priority, call.submitted()
        )
        result = await self._watch.guard(receive, infer(self._predictor, request))
        call.note_inference(result)
        return options.respond(self._predictor, result, shown)

    def plan(self, head: Head) -> RawPlan | RowsPlan | None:
        """Return the fast path's plan, or None if the body may be large to decode.

        Raises the same errors as the endpoint.
        """
        if head.method != "POST" or CONTENT_ENCODING in head.headers:
            return None
        if not 0 < head.content_length <= self._settings.max_body_bytes:
            return None
        query = read_query(head.query, QUERY)
        options = self._options(self._target(query), query, head.headers)
        if options.layout is not None:
            return None
        kind, size = media_type(head.headers), head.content_length
        form = body_format(kind)
        if form in ("rows", "undeclared"):
            return RawPlan(self._predictor, self._settings.max_request_rows, options, kind, size)
        if size > ON_LOOP_BYTES:
            return None
        manifest = options.target.manifest
        declared = head.headers[b"content-type"].decode("latin-1")
        job = self._bodies.rows_job(form, declared, manifest.inputs[0], NAMES, manifest.picture_preprocess)
        return RowsPlan(self._predictor, options, job, self._bodies.seconds_of(form))

    def _target(self, query: Mapping[str, str]) -> Target:
        return find_target(
            self._predictor,
            "classification",
            query.get("model"),
            parse_version(query),
            self._settings.default_classifier,
            self._kinds,
        )

    def _options(self, target: Target, query: Mapping[str, str], headers: Headers) -> ClassifyOptions:
        accepted = negotiate(headers, OFFERED)
        timeout = read_timeout(headers, self._settings.request_timeout_seconds)
        top_k = _top_k(query, len(target.manifest.labels), accepted)
        layout = _shown_layout(query, target.manifest, accepted)
        return ClassifyOptions(
            target, timeout, read_priority(headers), accepted, top_k, self._json_seconds, layout
        )


def body_format(kind: str) -> Format:
    """Return the format of a body with that media type. Raises UnsupportedMedia."""
    form = _FORMATS.get(kind)
    if form is not None:
        return form
    if kind.startswith("image/"):
        return "picture"
    raise UnsupportedMedia(
        f"Content-Type is {kind[:80]!r}, expected {', '.join(ACCEPTED[:-1])} or {ACCEPTED[-1]}"
    )


def _top_k(query: Mapping[str, str], classes: int, accepted: str) -> int | None:
    if "top_k" not in query:
        return None
    if accepted == OCTETS:
        raise InvalidInput(f"top_k is given with Accept: {OCTETS}, which holds every probability")
    return parse_int("top_k", query["top_k"], 1, classes)


def _shown_layout(query: Mapping[str, str], manifest: Manifest, accepted: str) -> ImageLayout | None:
    """Return the layout of the images to show, or None if the query does not ask for them."""
    if not parse_bool("show_input", query.get("show_input", "false")):
        return None
    if accepted == OCTETS:
        raise InvalidInput(f"show_input is given with Accept: {OCTETS}, which holds only probabilities")
    spec = manifest.inputs[0]
    layout = spec.image_layout()
    if layout is None:
        seen = f"{spec.name} of model {manifest.name} is {spec.datatype} {list(spec.shape)}"
        raise InvalidInput(f"show_input is given, but {seen}, expected images")
    return layout
