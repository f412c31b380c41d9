"""How an input changes: inside its wrappings, where plain mutations do not reach. Knows nothing of atheris.

A plain mutation of a compressed body, of base64 or of a PNG's chunk breaks the checksum or the text around
it, and the decoder never sees what was inside.
"""

import base64
import binascii
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import replace

from loadtests.fuzz.cases import HEAD_BYTES, LIMITS, case_of
from loadtests.fuzz.seeds import wrapped
from service.content import encodings
from service.content.picture_files import PNG_SIGNATURE
from service.errors import RequestError

Change = Callable[[bytes, int], bytes]
"""The plain mutation: bytes and the most bytes that may become of them."""

PLAIN = 0.3
"""The fraction of mutations that change the whole input, its two choices too."""

BASE64 = re.compile(rb'(?<=[",])[A-Za-z0-9+/]{16,}={0,2}(?=")')


def mutated(data: bytes, max_bytes: int, seed: int, change: Change) -> bytes:
    """Return an input that `change` has changed at one place."""
    rng = random.Random(seed)
    if len(data) <= HEAD_BYTES or rng.random() < PLAIN:
        return change(data, max_bytes)
    case = case_of(data)
    try:
        body = encodings.decode(case.body, case.coding, LIMITS.max_body_bytes)
    except RequestError:
        return change(data, max_bytes)
    inner = {"json": _json, "form": _form}.get(case.format, _content)(body, max_bytes, rng, change)
    result = replace(case, body=wrapped(inner, case.coding)).to_bytes()
    return result if len(result) <= max_bytes else change(data, max_bytes)


def _json(body: bytes, max_bytes: int, rng: random.Random, change: Change) -> bytes:
    """Change what one base64 text holds, or the JSON itself."""
    texts = list(BASE64.finditer(body))
    if not texts or rng.random() < PLAIN:
        return change(body, max_bytes)
    text = rng.choice(texts)
    try:
        content = base64.b64decode(text[0])
    except binascii.Error:
        return change(body, max_bytes)
    inner = base64.b64encode(_content(content, max_bytes, rng, change))
    return body[: text.start()] + inner + body[text.end() :]


def _form(body: bytes, max_bytes: int, rng: random.Random, change: Change) -> bytes:
    """Change one part's content, its headers, or the form itself."""
    parts = body.split(b"\r\n--X")
    at = rng.randrange(len(parts))
    head, blank, content = parts[at].partition(b"\r\n\r\n")
    if not blank or rng.random() < PLAIN:
        return change(body, max_bytes)
    if rng.random() < PLAIN:
        head = change(head, max_bytes)
    else:
        content = _content(content, max_bytes, rng, change)
    parts[at] = head + blank + content
    return b"\r\n--X".join(parts)


def _content(content: bytes, max_bytes: int, rng: random.Random, change: Change) -> bytes:
    """Change a file, and set a PNG's checksums right."""
    changed = change(content, max_bytes)
    return changed if rng.random() < PLAIN else with_checksums(changed)


def with_checksums(content: bytes) -> bytes:
    """Return a PNG with the checksum that each whole chunk needs; anything else as it is."""
    if not content.startswith(PNG_SIGNATURE):
        return content
    chunks, at = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while at + 12 <= len(content):
        end = at + 8 + int.from_bytes(content[at : at + 4], "big")
        if end + 4 > len(content):
            break
        chunks += [content[at:end], zlib.crc32(content[at + 4 : end]).to_bytes(4, "big")]
        at = end + 4
    return b"".join(chunks) + content[at:]
