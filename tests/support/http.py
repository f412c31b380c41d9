"""Requests and settings that several tests of HTTP share."""

import asyncio
import io
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from service.settings import Settings
from tests.support.live import Connection, Response

OCTETS = "application/octet-stream"


@cache
def _settings() -> Settings:
    return Settings(
        max_batch_size=8,
        fixed_batch_size=4,
        default_classifier="first-pixel",
        max_body_bytes=64 * 1024,
        max_request_rows=40,
    )


def settings(models_dir: Path) -> Settings:
    """The settings of a service with tiny models. To read the environment each time would take 1.5 ms."""
    return _settings().model_copy(update={"models_dir": models_dir})


def image(first_pixel: int) -> np.ndarray:
    """A 28x28 image with a dark ground, whose answer is its first pixel."""
    picture = np.zeros((28, 28), np.uint8)
    picture[10:18, 12:16] = 255
    picture[0, 0] = first_pixel
    return picture


def png(first_pixel: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image(first_pixel)).save(file, "PNG")
    return file.getvalue()


async def exchange(connection: Connection, *pieces: bytes) -> Response:
    """Send the pieces one after another, each on its own, and wait for one answer."""
    for piece in pieces:
        connection.writer.write(piece)
        await asyncio.sleep(0.002)
    return await connection.receive()


RAW = image(7).tobytes()


def request(
    body: bytes = RAW,
    *,
    path: str = "/classify",
    kind: str | None = OCTETS,
    accept: str | None = None,
    extra: str = "",
    chunked: bool = False,
) -> bytes:
    """A POST. chunked: the same request in chunks, which takes the ASGI path."""
    lines = [f"POST {path} HTTP/1.1", "Host: test"]
    lines += [f"Content-Type: {kind}"] if kind else []
    lines += [f"Accept: {accept}"] if accept else []
    lines += [extra] if extra else []
    lines += ["Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}"]
    if chunked:
        body = (b"%x\r\n%b\r\n" % (len(body), body) if body else b"") + b"0\r\n\r\n"
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
