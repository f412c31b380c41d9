"""The types of ASGI, and the media types that several routes offer."""

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Headers = Mapping[bytes, bytes]

RECEIVED_AT = "inkserve.received_at"
"""The scope's key for when the request's first byte came, on the clock of `time.monotonic`."""

CALL = "inkserve.call"
"""The scope's key for the request's `Call`, from when the application has seen it."""

CLIENT_CERTIFICATE = "inkserve.client_certificate"
"""The scope's key for whether the client has sent a certificate, which is then valid."""

JSON = "application/json"
OCTETS = "application/octet-stream"
NPY = "application/x-npy"
"""numpy's .npy; not registered, but the name that tools use."""

PNG = "image/png"
JPEG = "image/jpeg"
FORM = "multipart/form-data"
