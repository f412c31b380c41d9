"""The fuzzer's seeds, valid bodies of every format in every usual wrapping."""

import base64
import gzip
import io
import json
import zlib

import numpy as np
from PIL import Image

from loadtests.fuzz.cases import CODINGS, KINDS, MODELS, Case
from service.content.encodings import Coding
from service.content.picture_kinds import MEDIA_TYPES
from tests.support.pictures import FORMATS, encoded, seven

MEDIA_TYPE_OF = {name: kind for kind, name in MEDIA_TYPES.items()}


def pictures() -> dict[str, bytes]:
    """Return files of every format that is decoded here, by a name that begins with the format's."""
    image = seven()
    colour = Image.merge("RGB", (image, image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), image))
    exif = Image.Exif()
    exif[0x0112] = 6
    files = {name: encoded(image, name) for name in FORMATS}
    for mode in ("1", "LA", "P", "RGB", "RGBA", "I;16"):
        files[f"PNG {mode}"] = encoded(_converted(image, mode), "PNG")
    files["PNG P transparent"] = encoded(image.convert("P"), "PNG", transparency=0)
    files["PNG animated"] = encoded(image, "PNG", save_all=True, append_images=[colour.convert("L")])
    files["JPEG progressive"] = encoded(colour, "JPEG", progressive=True, exif=exif)
    files["JPEG CMYK"] = encoded(image.convert("CMYK"), "JPEG")
    files["GIF animated"] = encoded(image, "GIF", save_all=True, append_images=[colour.convert("L")])
    files["BMP 1"] = encoded(image.convert("1"), "BMP")
    files["BMP RGBA"] = encoded(image.convert("RGBA"), "BMP")
    for mode in ("1", "I;16", "I", "F", "CMYK"):
        files[f"TIFF {mode}"] = encoded(_converted(image, mode), "TIFF", exif=exif)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        files[f"TIFF {compression}"] = encoded(image, "TIFF", compression=compression)
    if "WEBP" in FORMATS:
        files["WEBP lossless"] = encoded(image, "WEBP", lossless=True)
        files["WEBP animated"] = encoded(image, "WEBP", save_all=True, append_images=[colour], exif=exif)
    return files


def _converted(image: Image.Image, mode: str) -> Image.Image:
    if mode == "I;16":
        return Image.fromarray(np.asarray(image).astype(np.uint16) << 4)
    return image.convert(mode)


def form(*files: tuple[bytes, str]) -> bytes:
    """Return a form of files, each given with its media type."""
    body = io.BytesIO()
    for content, kind in files:
        body.write(b'--X\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n')
        body.write(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + content + b"\r\n")
    return body.getvalue() + b"--X--\r\n"


def wrapped(body: bytes, coding: Coding) -> bytes:
    """Return a body in a content coding."""
    if not coding:
        return body
    return gzip.compress(body, mtime=0) if coding == "gzip" else zlib.compress(body)


def seeds() -> dict[str, Case]:
    """Return every seed by its name; each gives rows."""
    files = pictures()
    cases = {f"picture {name}": Case(content, "picture") for name, content in files.items()}
    numbers = np.asarray(seven(2)).tolist()
    rows = bytes(np.asarray(seven(2)))
    cases["rows"] = Case(rows * 2, "rows")
    cases["rows undeclared"] = Case(rows, "undeclared")
    cases["json numbers"] = Case(json.dumps({"images": [numbers]}).encode(), "json")
    cases["json base64 of rows"] = Case(json.dumps([_text(rows), numbers]).encode(), "json")
    cases["form rows"] = Case(form((rows, "application/octet-stream"), (rows, "")), "form")
    for name in FORMATS:
        content, kind = files[name], MEDIA_TYPE_OF[name]
        cases[f"declared {name}"] = Case(content, "picture", kind=KINDS.index(kind))
        cases[f"undeclared {name}"] = Case(content, "undeclared")
        cases[f"resized {name}"] = Case(content, "picture", model=len(MODELS) - 1)
        cases[f"form {name}"] = Case(form((content, kind)), "form")
        cases[f"json base64 {name}"] = Case(json.dumps({"images": _text(content)}).encode(), "json")
        url = f"data:{kind};base64,{_text(content)}"
        cases[f"json data URL {name}"] = Case(json.dumps({"images": [url]}).encode(), "json")
    several = [(files[name], MEDIA_TYPE_OF[name]) for name in ("PNG", "JPEG", "GIF")]
    cases["form of several"] = Case(form(*several, (files["TIFF"], "")), "form", kind=1)
    small = (
        "picture PNG",
        "picture JPEG",
        "form PNG",
        "json numbers",
        "json data URL PNG",
        "rows",
        "picture TIFF",
    )
    for coding in CODINGS[1:]:
        for name in small:
            case = cases[name]
            cases[f"{coding} {name}"] = Case(wrapped(case.body, coding), case.format, coding)
    return cases


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
