"""The ids that identify requests in logs: the client's own, or a new one."""

import itertools
import re
import secrets
from collections.abc import Iterable

REQUEST_ID = b"x-request-id"

_RUN = secrets.token_hex(10).encode("ascii")
_NUMBERS = itertools.count(1)
"""Ids are a random prefix per process plus a counter; under overload uuid4 would be a tenth of a 503's
cost."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")


def sent_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """Return the id that a client sent, or None; a new one if it is unfit for a log line or a header."""
    for name, value in headers:
        if name == REQUEST_ID:
            return value if is_sane(value) else new_request_id()
    return None


def is_sane(request_id: bytes) -> bool:
    """Whether an id is fit for a log line and a header."""
    return _SANE_ID.fullmatch(request_id) is not None


def new_request_id() -> bytes:
    """Return an id that no other request has."""
    return b"%b%012x" % (_RUN, next(_NUMBERS))
