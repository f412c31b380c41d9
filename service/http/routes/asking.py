"""What the endpoints share that ask models: the choice of the model, the `Asker`, the images in the body."""

from collections.abc import Mapping

from service.batching.request import Priority
from service.http.disconnects import DisconnectWatch
from service.http.lifecycle import Call
from service.http.negotiation import media_type
from service.http.routes.bodies import BodyDecoder
from service.http.routes.classify import NAMES, body_format
from service.http.routes.prompts import Asker
from service.http.routes.shared import Target, find_target, parse_version, read_priority, read_timeout
from service.http.types import Headers, Receive, Scope
from service.models.manifest import Manifest, Task, TensorSpec
from service.models.tensors import Array
from service.observability.histograms import DeferredHistogram
from service.serving.predictor import Predictor
from service.settings import Settings


class AskingEndpoint:
    """An endpoint over a predictor. encode_seconds: receives what the encoding of a response takes."""

    def __init__(
        self,
        predictor: Predictor,
        settings: Settings,
        watch: DisconnectWatch,
        bodies: BodyDecoder,
        encode_seconds: DeferredHistogram,
    ) -> None:
        self._predictor = predictor
        self._settings = settings
        self._watch = watch
        self._bodies = bodies
        self._encode_seconds = encode_seconds

    def _pinned(self, task: Task, query: Mapping[str, str], default: str | None = None) -> Target:
        """Return the model that the query names, at the version that is served now: its labels are used."""
        target = find_target(self._predictor, task, query.get("model"), parse_version(query), default)
        return Target(target.manifest, target.manifest.version)

    def _asker(
        self, headers: Headers, receive: Receive, call: Call, priority: Priority | None = None
    ) -> Asker:
        """Return a request's way to the models. priority: if it is not the request's to choose."""
        deadline = call.received_at + read_timeout(headers, self._settings.request_timeout_seconds)
        chosen = read_priority(headers) if priority is None else priority
        return Asker(self._predictor, self._watch, receive, call, deadline, chosen)

    async def _images(
        self, scope: Scope, headers: Headers, asker: Asker, manifest: Manifest, spec: TensorSpec
    ) -> Array:
        """Return the images in the body, as those of /classify, for an input of a model."""
        kind = media_type(headers)
        form = body_format(kind)
        async with self._bodies.reading(scope, headers, asker.receive, kind, asker.deadline) as body:
            return await self._bodies.rows(body, form, spec, NAMES, manifest.picture_preprocess)
