"""The bodies of the attacks, made on the spot. Knows nothing of servers."""

import io
from functools import cache

from PIL import Image

MB = 1 << 20
BODY_BYTES = 14 * MB
"""Below the default of --max-body-bytes, 16 MiB."""

SIDE = 4000
SCANS = 1000
START_OF_SCAN = b"\xff\xda"
END_OF_IMAGE = b"\xff\xd9"


def unknown_keys(size: int = BODY_BYTES) -> bytes:
    """A JSON object of unknown keys."""
    count = size // 11
    return b"{" + b",".join(b'"%06x":0' % number for number in range(count)) + b"}"


def nested_lists(size: int = BODY_BYTES) -> bytes:
    """A JSON body of images that are empty lists in lists: each takes many times its three bytes."""
    return b'{"images":[' + b",".join([b"[[]]"] * (size // 5)) + b"]}"


@cache
def large_png() -> bytes:
    """A PNG of a few kB and 4000 x 4000 pixels."""
    picture = Image.new("1", (SIDE, SIDE))
    picture.paste(1, (100, 100, 2000, 3000))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def form_of(pictures: int) -> tuple[bytes, str]:
    """A form of large PNGs, and its content type."""
    head = (
        b'--limit\r\nContent-Disposition: form-data; name="images"; filename="%d.png"\r\n'
        b"Content-Type: image/png\r\n\r\n"
    )
    parts = [head % number + large_png() + b"\r\n" for number in range(pictures)]
    return b"".join(parts) + b"--limit--\r\n", "multipart/form-data; boundary=limit"


@cache
def jpeg_of_scans(scans: int = SCANS) -> bytes:
    """A progressive JPEG whose last scan is repeated: each costs a pass over all of the coefficients."""
    picture = Image.linear_gradient("L").resize((2000, 2000))
    file = io.BytesIO()
    picture.save(file, "JPEG", progressive=True, quality=50)
    content = file.getvalue()
    first = content.index(START_OF_SCAN)
    head, pieces = content[:first], content[first : -len(END_OF_IMAGE)].split(START_OF_SCAN)[1:]
    shortest = min(pieces[1:], key=len)
    # A scan may end with the Huffman table of the next one: that does no harm, it is defined again.
    every = START_OF_SCAN + START_OF_SCAN.join([*pieces, *[shortest] * (scans - len(pieces))])
    return head + every + END_OF_IMAGE
