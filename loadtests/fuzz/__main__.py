"""Fuzzes the decoding of bodies, guided by coverage: `make fuzz`.

Any bytes, under any declared type, give rows or a RequestError; anything else ends the run with the input.
The first two bytes choose the format and the content coding, the remainder is the body. Seeds are a picture
of each format, a form and JSON.
"""

import logging
import sys
import tempfile
from pathlib import Path
from typing import get_args

import atheris

with atheris.instrument_imports(include=["service", "PIL", "python_multipart"]):
    from service.content.body_jobs import BodyLimits, Format, RowsJob
    from service.content.encodings import Coding
    from service.content.json_bodies import JsonNames
    from service.content.picture_kinds import accepted_media_types
    from service.content.pictures import PictureLimits, TooLargeForLoop
    from service.errors import RequestError
    from service.models.manifest import TensorSpec

from tests.support.pictures import FORMATS, encoded, seven

SPEC = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
LIMITS = BodyLimits(1_000_000, 64, 50_000, PictureLimits(500_000, 1_000_000, 20, 1_000_000))
NAMES = JsonNames(("images",), "images", bare=True)
FORMATS_OF_BODIES = get_args(Format)
CODINGS = get_args(Coding)
KINDS = ("", "image/*", *accepted_media_types())


def decode_any(data: bytes) -> None:
    """Decode a body as the service does."""
    if len(data) < 2:
        return
    form = FORMATS_OF_BODIES[data[0] % len(FORMATS_OF_BODIES)]
    coding = CODINGS[data[1] % len(CODINGS)]
    declared = KINDS[data[1] // len(CODINGS) % len(KINDS)]
    kind = "multipart/form-data; boundary=X" if form == "form" else declared
    job = RowsJob(form, kind, coding, SPEC, "mnist-digit", LIMITS, NAMES)
    for on_loop in (True, False):
        try:
            rows = job.run(data[2:], on_loop=on_loop)
        except (RequestError, TooLargeForLoop):
            continue
        assert rows.shape[1:] == (28, 28), rows.shape


def write_seeds(folder: Path) -> None:
    """Write a body of each format."""
    picture, form, json = (FORMATS_OF_BODIES.index(each) for each in ("picture", "form", "json"))
    for name in FORMATS:
        (folder / name).write_bytes(bytes([picture, 0]) + encoded(seven(), name))
    part = (
        b'--X\r\nContent-Disposition: form-data; name=a; filename="a.png"\r\nContent-Type: image/png\r\n\r\n'
    )
    (folder / "form").write_bytes(bytes([form, 0]) + part + encoded(seven(), "PNG") + b"\r\n--X--\r\n")
    (folder / "json").write_bytes(bytes([json, 0]) + b'{"images": ["data:image/png;base64,iVBOR", [1, 2.5]]}')


def main() -> None:
    """Fuzz until the time is up or an input fails."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as seeds:
        write_seeds(Path(seeds))
        atheris.Setup([*sys.argv, seeds], decode_any)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
