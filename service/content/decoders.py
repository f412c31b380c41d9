"""A pool of decoder processes, for bodies that would block the event loop or take much memory.

Pillow releases the GIL while it decodes, but a thread can neither be stopped nor give a picture's memory back
for certain, and orjson holds the GIL: three million bytes of empty lists blocked the loop for 0.3 s. A
process can be killed. Processes start when they are first needed and stop when idle. Our own pool rather than
a library's: concurrent.futures cannot stop one job, and pebble counts wall time.
"""

import asyncio
import contextlib
import logging
import os
import selectors
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO

import service
from service.content import decoder_frames
from service.content.body_jobs import Job
from service.content.decoder_frames import Result
from service.errors import (
    DeadlineExceeded,
    InkserveError,
    InvalidInput,
    PayloadTooLarge,
    QueueFull,
    RequestError,
)
from service.hangups import held_back
from service.machine import available_cores
from service.memory import give_back_free_memory

logger = logging.getLogger(__name__)

IDLE_SECONDS = 30.0
"""A decoder that has had no body for this long is stopped: it holds 50 MB."""

_WALL_FACTOR, _WALL_SECONDS = 10, 30
"""A decoder that is neither done nor out of CPU time after this long hangs, and is killed."""


class DecoderPool:
    """Runs jobs in decoder processes. Belongs to one event loop; nothing starts before the first job.

    processes: how many decode at once; 0: half of the cores, at least one.
    cpu_seconds, memory_bytes: what one body may take. max_queue: how many more bodies may wait.
    """

    def __init__(
        self,
        processes: int = 0,
        cpu_seconds: float = 3.0,
        memory_bytes: int = 384 * 1024 * 1024,
        max_queue: int = 64,
    ) -> None:
        count = processes or max(1, available_cores() // 2)
        self._most = count + max_queue
        self._pending = 0
        self._cpu_seconds = cpu_seconds
        self._memory_bytes = memory_bytes
        self._idle: list[_Decoder] = []
        self._threads = ThreadPoolExecutor(count, "decoder")
        self._timer: asyncio.TimerHandle | None = None
        self._finalizer = weakref.finalize(self, self._threads.shutdown, wait=False, cancel_futures=True)

    async def run(self, job: Job, body: bytes, deadline: float) -> Result:
        """Run a job in a decoder process. deadline: as `time.monotonic` counts.

        Raises RequestError as the job does, QueueFull, DeadlineExceeded.
        """
        if self._pending >= self._most:
            raise QueueFull(
                f"{self._pending} bodies are waiting to be decoded, expected at most {self._most}"
            )
        future: Future[Result] = self._threads.submit(self._run, job, body, deadline)
        self._pending += 1
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise DeadlineExceeded("the deadline passed before the body was decoded") from None
        finally:
            _when_done(future, asyncio.get_running_loop(), self._job_ended)

    def close(self) -> None:
        """Stop every idle decoder; those that run end with their job."""
        if self._timer is not None:
            self._timer.cancel()
        self._finalizer()
        self._drop_idle()

    def _job_ended(self) -> None:
        self._pending -= 1
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._pending:
            self._timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._stop_idle)

    def _stop_idle(self) -> None:
        self._timer = None
        if not self._pending:
            self._threads.submit(self._drop_idle)
            give_back_free_memory()  # the bodies' own

    def _run(self, job: Job, body: bytes, deadline: float) -> Result:
        """Run a job on a thread of the pool, which has one decoder to itself meanwhile."""
        if time.monotonic() >= deadline:
            raise DeadlineExceeded("the deadline passed before the body was decoded")
        decoder = self._take_idle()
        if decoder is None or not decoder.is_alive():
            decoder = _Decoder(self._cpu_seconds, self._memory_bytes)
        try:
            result = decoder.run(job, body)
        except BaseException:
            decoder.stop()
            raise
        self._idle.append(decoder)
        if isinstance(result, RequestError):
            raise result
        return result

    def _take_idle(self) -> "_Decoder | None":
        with contextlib.suppress(IndexError):
            return self._idle.pop()
        return None

    def _drop_idle(self) -> None:
        while (decoder := self._take_idle()) is not None:
            decoder.stop()


class _Decoder:
    """A decoder process, used by one thread at a time."""

    def __init__(self, cpu_seconds: float, memory_bytes: int) -> None:
        self._cpu_seconds = cpu_seconds
        root = str(Path(service.__file__).parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        command = [
            sys.executable,
            "-m",
            "service.content.decoder_process",
            f"{cpu_seconds}",
            f"{memory_bytes}",
        ]
        env = {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
        with held_back():  # a decoder has no handler: it keeps SIGHUP blocked
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=env,
                start_new_session=True,  # ^C in a terminal is for the service, which ends its decoders
            )
        self._stop = weakref.finalize(self, _stop, self._process)
        if self._replies.read(1) != decoder_frames.READY:
            raise InkserveError(f"a decoder process exited with code {self._process.wait()} at its start")

    @property
    def _replies(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: Job, body: bytes) -> Result | RequestError:
        """Run a job. Raises RequestError if the process dies of it; then `stop` must follow."""
        requests, replies = self._process.stdin, self._replies
        assert requests is not None
        try:
            for piece in decoder_frames.pack_request(job, body):
                requests.write(piece)
            requests.flush()
            with selectors.DefaultSelector() as selector:
                selector.register(replies, selectors.EVENT_READ)
                if not selector.select(self._cpu_seconds * _WALL_FACTOR + _WALL_SECONDS):
                    self._process.kill()
            result, log = decoder_frames.read_reply(replies.read)
        except (EOFError, BrokenPipeError):
            raise self._cause_of_death() from None
        for level, message in log:
            logger.log(level, "%s", message)
        return result

    def stop(self) -> None:
        """End the process, without waiting for its job."""
        self._stop()

    def _cause_of_death(self) -> RequestError:
        code = self._process.wait()
        logger.warning("a decoder exited with code %d; rejecting its body", code)
        if code == -signal.SIGPROF:
            return PayloadTooLarge(
                f"body takes over {self._cpu_seconds:g} s of CPU time to decode, expected at most that"
            )
        if code in (1, -signal.SIGKILL):  # OpenBLAS without memory, or the kernel's OOM killer
            return PayloadTooLarge("body takes too much time or memory to decode, expected a smaller one")
        return InvalidInput("body crashes its decoder, expected a valid one")


def _when_done(future: "Future[Result]", loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call a function on the loop once the future is done; not if the loop is closed by then."""

    def on_done(_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(call)

    future.add_done_callback(on_done)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            _close(stream)


def _close(stream: IO[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError):  # what was not yet written is for nobody
        stream.close()
