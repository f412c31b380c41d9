"""The headers that clients send and read: declared once, for the wire and for the OpenAPI description."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import get_args

from service.observability.load_reports import ASKS, REPORT
from service.observability.metrics import Rejection


@dataclass(frozen=True)
class Header:
    """A header of requests, responses or both.

    name: as documentation writes it. wire: in lower case, as in ASGI.
    schema: the JSON Schema of its value.
    """

    name: str
    description: str
    schema: Mapping[str, object] = field(default_factory=lambda: {"type": "string"}, hash=False)
    example: str | int | None = None

    @property
    def wire(self) -> bytes:
        """The name in lower case."""
        return self.name.lower().encode("ascii")


TIMEOUT = Header(
    "Inkserve-Timeout",
    "Seconds until the deadline, at most the service's own limit, which also applies if this is absent.",
    {"type": "number", "exclusiveMinimum": 0},
)
PRIORITY = Header(
    "Inkserve-Priority",
    "`low` runs only in the space that other requests leave in a batch; `normal` if absent.",
    {"type": "string", "enum": ["normal", "low"]},
)
REQUEST_ID = Header(
    "X-Request-Id",
    "The request's id in the log: the one that the client sent, otherwise a new one. An id has at most 128 "
    "letters, digits and ._~:/+=@-",
)
TRACEPARENT = Header(
    "Traceparent",
    "The trace that the request belongs to (W3C Trace Context).",
    example="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
)
TRACERESPONSE = Header(
    "Traceresponse",
    "The request's own span (W3C Trace Context, level 2).",
    example="00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01",
)
SERVER_TIMING = Header(
    "Server-Timing",
    "Milliseconds in the queue and on the device, and the rows of the batch.",
    example='queue;dur=0.105, compute;dur=1.442, batch;desc="37"',
)
LOAD_FORMAT = Header(
    ASKS.decode(),
    "TEXT or JSON: the format of the load report (ORCA) that the response shall carry. Any other value is "
    "ignored.",
    example="TEXT",
)
LOAD = Header(
    REPORT.decode(),
    "The service's load, if the request asked for it.",
    example="TEXT application_utilization:0.69,rps_fractional:9914.2,eps:0.0",
)
INFERENCE_HEADER = Header(
    "Inference-Header-Content-Length",
    "The bytes of the body's JSON, behind which the bytes of tensors follow. Absent if all is JSON; of a "
    "request, 0 if all are the rows of the model's only input.",
    {"type": "integer", "minimum": 0},
    example=148,
)
MODEL = Header("Inkserve-Model", "The model that answered; in JSON, `model`.", example="cnn")
VERSION = Header(
    "Inkserve-Version", "Its version; in JSON, `version`.", {"type": "integer", "minimum": 1}, example=1
)
SHAPE = Header(
    "Inkserve-Shape", "The shape of raw rows, sizes separated by commas; rows first.", example="16,28,28"
)
SEED = Header(
    "Inkserve-Seed",
    "The seed that the latents were drawn from; absent if the request has latents.",
    {"type": "integer", "minimum": 0},
    example=1,
)
ETAG = Header(
    "ETag",
    "Changes when the response would: with the model's version, the request or the media type.",
    example='"0f4e6f1d5f5d4c4ea5d7b0c6e8d1a2b3"',
)
CACHE_CONTROL = Header(
    "Cache-Control",
    "no-store for what a random seed made; no-cache unless the request names all versions.",
    example="public, no-cache",
)
VARY = Header("Vary", "The request's headers that decide the response.", example="Accept")
IF_NONE_MATCH = Header(
    "If-None-Match",
    "ETags that the client has, separated by commas: if one is current, the response is 304.",
)
LABELS = Header(
    "Inkserve-Labels",
    "The label of each row, separated by commas, for at most 256 rows; in JSON, `labels` or `label`. "
    "Characters other than ASCII's are percent-encoded.",
    example="7,3",
)
CLASSIFIER = Header(
    "Inkserve-Classifier", "The model that read the labels; in JSON, `classifier`.", example="cnn"
)
AGREEMENT = Header(
    "Inkserve-Agreement",
    "How many images the classifier read as their label, and of how many; in JSON, `verification`.",
    example="15/16",
)
READ = Header(
    "Inkserve-Read",
    "The label that the classifier read in each image, as in Inkserve-Labels; in JSON, `read`.",
    example="7,7,1",
)
UNDERSTOOD = Header(
    "Inkserve-Understood",
    "What the prompt asks for, as the model read it: styles, then the label; in JSON, `understood`.",
    example="thin, slanted, 7",
)
EXPLAINED = Header(
    "Inkserve-Explained",
    "The labels whose probability is explained, one for each image, separated by commas; in JSON, `target`. "
    "Characters other than ASCII's are percent-encoded.",
    example="7",
)
COST = Header(
    "Inkserve-Cost",
    "The rows that the explanation took, and the milliseconds until the last result; in JSON, `rows` and "
    "`milliseconds`.",
    example="rows=170, milliseconds=21.7",
)
ACCEPT_ENCODING = Header(
    "Accept-Encoding",
    "The content codings that bodies may have; sent if the request's was none of them.",
    example="gzip, deflate, identity",
)
ALLOW = Header("Allow", "The methods that the path has, separated by commas.", example="GET, POST")
RETRY_AFTER = Header(
    "Retry-After",
    "Seconds to wait before trying again. With 429 they are computed from the queue, and differ from one "
    "client to the next, so that not all return at once.",
    {"type": "integer", "minimum": 1},
    example=1,
)
REASON = Header(
    "Inkserve-Reason",
    "Why the request was not served; also the label `reason` of `inkserve_rejected_requests_total`.",
    {
        "type": "string",
        # A client that has left reads no response.
        "enum": [reason for reason in get_args(Rejection) if reason != "client_left"],
    },
    example="queue_full",
)
WWW_AUTHENTICATE = Header("WWW-Authenticate", "The scheme of the expected API key.", example="Bearer")
