"""FastAPI with a hand-written batcher: raw bodies; all queued requests run together, in a thread.

A careful engineer writes this in an afternoon; it is the baseline that inkserve is compared with.
"""

import asyncio
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from loadtests.peers.session import MAX_BATCH_SIZE, Classifier, rows_of

Images = NDArray[np.uint8]
Probabilities = NDArray[np.float32]


class Batcher:
    """Requests that arrive while a batch runs form the next one; an idle engine starts at once."""

    def __init__(self) -> None:
        self._classifier = Classifier()
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[tuple[Images, asyncio.Future[Probabilities]]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def classify(self, images: Images) -> Probabilities:
        future: asyncio.Future[Probabilities] = asyncio.get_running_loop().create_future()
        self._waiting.append((images, future))
        if self._running is None:
            self._running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            parts, futures = self._take()
            images = parts[0] if len(parts) == 1 else np.concatenate(parts)
            try:
                probabilities = await loop.run_in_executor(self._thread, self._classifier, images)
            except Exception as error:  # the batch failed: so did each request in it
                for future in futures:
                    if not future.done():
                        future.set_exception(error)
                continue
            start = 0
            for part, future in zip(parts, futures, strict=True):
                if not future.done():
                    future.set_result(probabilities[start : start + len(part)])
                start += len(part)
        self._running = None

    def _take(self) -> tuple[list[Images], list["asyncio.Future[Probabilities]"]]:
        parts: list[Images] = []
        futures: list[asyncio.Future[Probabilities]] = []
        rows = 0
        while self._waiting and (not parts or rows + len(self._waiting[0][0]) <= MAX_BATCH_SIZE):
            images, future = self._waiting.popleft()
            parts.append(images)
            futures.append(future)
            rows += len(images)
        return parts, futures


app = FastAPI()
batcher = Batcher()


@app.post("/classify")
async def classify(request: Request) -> Response:
    probabilities = await batcher.classify(rows_of(await request.body()))
    return Response(probabilities.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    uvicorn.run(
        app,
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )
