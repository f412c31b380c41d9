"""The errors of the domain, without status codes: `service.http` and `service.grpc` have tables of these.

InkserveError
├── RequestError            the caller's mistake
│   ├── InvalidInput        a value, shape, dtype or size that the model does not accept
│   ├── PayloadTooLarge     more bytes or rows than the settings allow
│   ├── RequestTimeout      the client did not send its whole request in time
│   ├── UnsupportedMedia    a Content-Type that no codec reads
│   │   └── UnsupportedCoding  a Content-Encoding that no codec reads
│   ├── Unauthorized        the API key is missing or unknown
│   ├── Forbidden           the API key lacks the path's scope, or a client certificate is missing
│   ├── NotAcceptable       an Accept header that no codec can satisfy
│   └── ModelNotFound       the model or its version is unknown
├── Unavailable             try again later
│   ├── QueueFull           the model's queue has no room
│   │   ├── DeadlineUnreachable  the queued work takes longer than the request's deadline
│   │   └── BuffersFull      the connections together hold too many bytes
│   ├── DeadlineExceeded    the request's deadline passed before its rows were run
│   ├── ModelNotReady       the model is loading, draining or unavailable
│   └── ShuttingDown        the service accepts no new work
├── EngineError             the device or the graph failed on a valid batch
│   ├── OutOfMemory         the device's memory is full
│   ├── RowsFailed          some rows of a batch failed, the others have their outputs
│   └── ProviderError       onnxruntime's provider cannot run any model on this machine
├── RepositoryError         a model folder that must not be served
│   └── ManifestError       manifest.json is missing, malformed or wrong
├── FrameError              another process sent an invalid or unexpected frame
└── SettingsError           the environment or the flags are not valid settings
"""

from typing import Any


class InkserveError(Exception):
    """Base of every error that inkserve raises on purpose."""


class RequestError(InkserveError):
    """The caller's mistake."""


class InvalidInput(RequestError):
    """A value, shape, dtype or size that the model does not accept."""


class PayloadTooLarge(RequestError):
    """More bytes or rows than the settings allow."""


class RequestTimeout(RequestError):
    """The client did not send its whole request in time."""


class UnsupportedMedia(RequestError):
    """A Content-Type that no codec reads."""


class UnsupportedCoding(UnsupportedMedia):
    """A Content-Encoding that no codec reads."""


class Unauthorized(RequestError):
    """The API key is missing or unknown."""


class Forbidden(RequestError):
    """The API key lacks the scope of the path, or a client certificate is missing."""


class NotAcceptable(RequestError):
    """An Accept header that no codec can satisfy."""


class ModelNotFound(RequestError):
    """The model or its version is unknown."""


class Unavailable(InkserveError):
    """The request was valid and may succeed later."""


class QueueFull(Unavailable):
    """The model's queue has no room for the request. retry_seconds: when there may be room."""

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        super().__init__(message)
        self.retry_seconds = retry_seconds


class DeadlineUnreachable(QueueFull):
    """The queued work takes longer than the time to the request's deadline."""


class BuffersFull(QueueFull):
    """The connections together hold too many bytes of bodies and responses."""


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before its rows were run."""


class ModelNotReady(Unavailable):
    """The model is loading, draining or unavailable."""


class ShuttingDown(Unavailable):
    """The service accepts no new work."""


class EngineError(InkserveError):
    """The device or the graph failed on a valid batch."""


class OutOfMemory(EngineError):
    """The device's memory is full."""


class RowsFailed(EngineError):
    """Some rows of a batch failed. The batcher delivers the others.

    outputs: arrays (rows, ...); what they hold for the failed rows means nothing.
    failed: whether each row failed, an array (rows,) of bool.
    """

    def __init__(self, message: str, outputs: tuple[Any, ...] = (), failed: Any = None) -> None:
        super().__init__(message)
        self.outputs = outputs
        self.failed = failed


class ProviderError(EngineError):
    """onnxruntime's provider cannot run any model on this machine."""


class RepositoryError(InkserveError):
    """A model folder that must not be served."""


class ManifestError(RepositoryError):
    """manifest.json is missing, malformed or does not match its model."""


class FrameError(InkserveError):
    """Another process of the service sent an invalid or unexpected frame."""


class SettingsError(InkserveError):
    """The environment or the flags are not valid settings."""
