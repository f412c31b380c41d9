"""The bound of HTTP in Python: read the body and return a constant, under uvicorn, uvloop and httptools."""

import os
from typing import Any

import uvicorn

ANSWER = bytes(40)  # as long as one image's probabilities


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    del scope
    while (await receive()).get("more_body", False):
        pass
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", b"40")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": ANSWER})


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
    )
