"""The ids that tell requests apart."""

import itertools
import re
import secrets
from collections.abc import Iterable

REQUEST_ID = b"x-request-id"

_RUN = secrets.token_hex(10).encode("ascii")

_NUMBERS = itertools.count(1)
"""A number in this process, after what no other process has: under overload uuid4 is a tenth of a 503."""

_SANE_ID = re.compile(rb"[A-Za-z0-9._~:/+=@-]{1,128}")


def sent_request_id(headers: Iterable[tuple[bytes, bytes]]) -> bytes | None:
    """The id that a request came with; another one where that is not fit for a log line or a header."""
    for name, value in headers:
        if name == REQUEST_ID:
            return value if _SANE_ID.fullmatch(value) else new_request_id()
    return None


def new_request_id() -> bytes:
    """An id that no other request has."""
    return b"%b%012x" % (_RUN, next(_NUMBERS))
