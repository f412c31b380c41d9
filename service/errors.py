"""The errors of the domain; `service.http.error_responses` alone maps them to HTTP status codes.

InkserveError
├── RequestError            the caller's mistake
│   ├── InvalidInput        a value, shape, dtype or size that the model cannot take
│   ├── PayloadTooLarge     more bytes or rows than the settings allow
│   ├── UnsupportedMedia    a Content-Type that no codec reads
│   ├── Unauthorized        no API key, or none that is known
│   ├── NotAcceptable       an Accept header that no codec can satisfy
│   └── ModelNotFound       no such model, or no such version of it
├── Unavailable             try again later
│   ├── QueueFull           the model's queue holds all the rows that it may
│   ├── DeadlineExceeded    the request's deadline passed before its rows were run
│   ├── ModelNotReady       the model is loading, draining or gone
│   └── ShuttingDown        the service accepts no new work
├── EngineError             the device or the graph failed on a valid batch
├── RepositoryError         a model folder that must not be served
│   └── ManifestError       manifest.json is missing, malformed or untrue
├── FrameError              another process of the service sent what it must not
└── SettingsError           the environment or the flags do not make valid settings
"""


class InkserveError(Exception):
    """Base of every error that inkserve raises on purpose."""


class RequestError(InkserveError):
    """The caller's mistake."""


class InvalidInput(RequestError):
    """A value, shape, dtype or size that the model cannot take."""


class PayloadTooLarge(RequestError):
    """More bytes or rows than the settings allow."""


class UnsupportedMedia(RequestError):
    """A Content-Type that no codec reads."""


class Unauthorized(RequestError):
    """No API key, or none that is known."""


class NotAcceptable(RequestError):
    """An Accept header that no codec can satisfy."""


class ModelNotFound(RequestError):
    """No such model, or no such version of it."""


class Unavailable(InkserveError):
    """The request was valid and may succeed later."""


class QueueFull(Unavailable):
    """The model's queue already holds as many rows as it may."""


class DeadlineExceeded(Unavailable):
    """The request's deadline passed before its rows were run."""


class ModelNotReady(Unavailable):
    """The model is loading, draining or gone."""


class ShuttingDown(Unavailable):
    """The service accepts no new work."""


class EngineError(InkserveError):
    """The device or the graph failed on a valid batch."""


class RepositoryError(InkserveError):
    """A model folder that must not be served."""


class ManifestError(RepositoryError):
    """manifest.json is missing, malformed or does not tell the truth about its model."""


class FrameError(InkserveError):
    """Another process of the service sent what is not a frame, or not one that makes sense."""


class SettingsError(InkserveError):
    """The environment or the flags do not make valid settings."""
