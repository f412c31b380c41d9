"""GET /: the playground to browsers, an index in JSON to programs; below /playground/ the page's own files.

The files are the same for everybody and hold no secrets, so they need no API key; the page's requests do.
They are read when a browser first asks for one.
"""

import hashlib
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, HTTPException, Request, Response
from fastapi.responses import RedirectResponse

import service
from service.http.negotiation import negotiate
from service.http.responses import to_json
from service.http.types import JSON
from service.http.validators import has_current
from service.observability.metrics import package_version
from service.settings import Settings

HTML = "text/html"
PAGE = "index.html"

_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",  # data: the PNGs in JSON responses
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",  # no text ever becomes markup or script
    ]
)
"""The page's Content-Security-Policy: no other host, no inline script or style, no frame around it."""

_HEADERS = {
    "Cache-Control": "no-cache",  # asked again each time, and answered 304: no page of two versions
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_BELOW = b'"./'
"""How every address in the page begins."""


class File(NamedTuple):
    """A file of the page. etag: from its content, so that it is the same on every replica."""

    content: bytes
    media_type: str
    etag: str


class Playground:
    """The page and its files. root_path: the prefix, if one is set."""

    def __init__(self, root_path: str = "") -> None:
        self._root_path = root_path

    @cached_property
    def files(self) -> dict[str, File]:
        """The files by their names."""
        folder = Path(service.__file__).parent / "playground"
        return {path.name: self._read(path) for path in folder.iterdir() if path.suffix in _MEDIA_TYPES}

    def _read(self, path: Path) -> File:
        content = path.read_bytes()
        if path.name == PAGE and self._root_path:  # without a slash at its end, "./" would lead elsewhere
            content = content.replace(_BELOW, f'"{self._root_path}/'.encode("ascii"))
        etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        return File(content, _MEDIA_TYPES[path.suffix], etag)

    def respond(self, name: str, request: Request) -> Response:
        """Return a file, or 304 if the browser has it. Raises HTTPException for an unknown name."""
        file = self.files.get(name)
        if file is None:
            raise HTTPException(404)
        headers = _HEADERS | {"ETag": file.etag}
        if has_current(dict(request.headers.raw), file.etag.encode("ascii"), exists=True):
            return Response(status_code=304, headers=headers)
        return Response(file.content, headers=headers, media_type=file.media_type)


def routes(settings: Settings) -> APIRouter:
    """Return the routes of the page, its files and the index; without it, / leads to /docs."""
    router = APIRouter(include_in_schema=False)
    root_path = settings.root_path
    if not settings.playground:

        @router.get("/")
        async def documentation() -> RedirectResponse:
            # Relative, so that a prefix that a proxy removes stays; one that is set may come without a slash.
            return RedirectResponse(f"{root_path}/docs" if root_path else "docs")

        return router
    playground = Playground(root_path)
    index = to_json(_index(root_path))

    @router.get("/")
    async def home(request: Request) -> Response:
        accept = request.headers.get("accept", "*/*")
        offered = (HTML, JSON) if HTML in accept.lower() else (JSON, HTML)
        if negotiate({b"accept": accept.encode("latin-1")}, offered) == HTML:
            response = playground.respond(PAGE, request)
        else:
            response = Response(index, media_type=JSON)
        response.headers["Vary"] = "Accept"
        return response

    @router.get("/playground/{file}")
    async def page_file(file: str, request: Request) -> Response:
        return playground.respond(file, request)

    return router


def _index(root_path: str) -> dict[str, object]:
    """Return what a program finds at /: the service's name and version, and where to go on."""
    paths = {
        "classify": "/classify",
        "generate": "/generate",
        "search": "/search",
        "encode": "/encode",
        "decode": "/decode",
        "reconstruct": "/reconstruct",
        "interpolate": "/interpolate",
        "explain": "/explain",
        "models": "/models",
        "ready": "/v2/health/ready",
        "metrics": "/metrics",
        "documentation": "/docs",
        "openapi": "/openapi.json",
    }
    return {
        "name": "inkserve",
        "version": package_version(),
        "paths": {name: root_path + path for name, path in paths.items()},
    }
