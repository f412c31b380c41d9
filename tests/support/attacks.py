"""Bodies made to take much work, and what a process has taken. Each: path, headers, body, how many at once,
and the statuses that may answer it."""

import gzip
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.support.live import RAW
from tests.support.pictures import encoded, seven

JSON_BODY = {"content-type": "application/json"}
FORM = {"content-type": "multipart/form-data; boundary=X"}


def form(content: bytes, *headers: str) -> bytes:
    lines = "\r\n".join(("--X", 'Content-Disposition: form-data; name="images"; filename="a"', *headers))
    return lines.encode("latin-1") + b"\r\n\r\n" + content + b"\r\n--X--\r\n"


def scans(count: int) -> bytes:
    jpeg = encoded(seven(20), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * count + jpeg[-2:]


def large_png() -> bytes:
    image = Image.new("1", (4000, 4000))
    image.paste(1, (100, 100, 2000, 3000))
    return encoded(image, "PNG")


def many(part: bytes, count: int) -> bytes:
    one = form(part, "Content-Type: image/png")[: -len(b"--X--\r\n")]
    return one * count + b"--X--\r\n"


ATTACKS: dict[str, Callable[[], tuple[str, dict[str, str], bytes, int, set[int]]]] = {
    "unknown keys": lambda: (
        "/generate",
        JSON_BODY,
        b"{" + b",".join(b'"%x":0' % index for index in range(1_400_000)) + b"}",
        1,
        {400, 413},
    ),
    "nested lists": lambda: ("/classify", JSON_BODY, b"[" + b",".join([b"[]"] * 1_000_000) + b"]", 16, {413}),
    "lists below the bound": lambda: (
        "/classify", JSON_BODY, b"[" + b",".join([b"[]"] * 60_000) + b"]", 16, {400},
    ),
    "small PNG of many pixels": lambda: ("/classify", {}, large_png(), 16, {200, 400}),
    "form of 100 PNGs": lambda: ("/classify", FORM, many(large_png(), 100), 1, {413}),
    "1,000 scans": lambda: ("/classify", {}, scans(1000), 8, {413}),
    "gzip bomb": lambda: (
        "/classify", RAW | {"content-encoding": "gzip"}, gzip.compress(bytes(200_000_000), 1), 4, {413},
    ),
}  # fmt: skip


def forget_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def resident_bytes(pid: int, what: str = "VmRSS") -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])
