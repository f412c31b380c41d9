"""GET /docs: Swagger UI over /openapi.json, from files of our own, so that it works without the internet.

The files are those of swagger-ui-dist, as the package `fastapi-swagger` ships them; its Python code is not
run. Nothing is looked up or read before a browser asks for it.
"""

from importlib.util import find_spec
from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response

PACKAGE = "fastapi_swagger"

FILES = ("swagger-ui-bundle.js", "swagger-ui.css", "favicon-32x32.png")

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",  # data: Swagger UI's icons; blob: generated pictures
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
"""The page's Content-Security-Policy: no other host, no inline script, no frame around it."""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>inkserve: API</title>
<link rel="icon" href="docs/favicon-32x32.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
"""Its addresses are relative, so that it also works behind a proxy that adds a path prefix."""

START = """SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  displayRequestDuration: true,
  tryItOutEnabled: true,
});
"""

_HEADERS = {"Cache-Control": "max-age=3600", "X-Content-Type-Options": "nosniff"}


def routes() -> APIRouter:
    """Return the routes of the page and its files."""
    router = APIRouter(prefix="/docs", include_in_schema=False)

    @router.get("")
    async def page() -> HTMLResponse:
        return HTMLResponse(PAGE, headers=_HEADERS | {"Content-Security-Policy": POLICY})

    @router.get("/")
    async def below() -> RedirectResponse:
        return RedirectResponse("../docs")

    @router.get("/start.js")
    async def start() -> Response:
        return Response(START, media_type="text/javascript", headers=_HEADERS)

    @router.get("/{file}")
    async def swagger_ui_file(file: str) -> FileResponse:
        if file not in FILES:
            raise HTTPException(404)
        return FileResponse(_folder() / file, headers=_HEADERS)

    return router


def _folder() -> Path:
    """Return the folder of Swagger UI's files in the package."""
    found = find_spec(PACKAGE)
    assert found is not None  # a dependency
    assert found.origin is not None
    return Path(found.origin).parent / "resources"
