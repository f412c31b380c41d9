import asyncio
import logging
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from service.content.body_jobs import BodyLimits, FieldsJob, RowsJob
from service.content.decoders import DecoderPool
from service.content.json_bodies import JsonNames
from service.content.pictures import PictureLimits
from service.errors import DeadlineExceeded, InvalidInput, PayloadTooLarge, QueueFull
from service.models.manifest import TensorSpec
from tests.support.pictures import encoded, seven

GRAY = TensorSpec(name="images", datatype="UINT8", shape=(-1, 28, 28))
NAMES = JsonNames(("images", "seed"), "images", bare=True)
LIMITS = BodyLimits(
    50_000_000, 4096, 1_000_000, PictureLimits(max_jpeg_scans=100_000, max_picture_bytes=1_000_000_000)
)
PICTURE = RowsJob("picture", "image/png", "", GRAY, "mnist-digit", LIMITS, NAMES)
JPEG = RowsJob("picture", "image/jpeg", "", GRAY, "mnist-digit", LIMITS, NAMES)
TIFF = RowsJob("picture", "image/tiff", "", GRAY, "mnist-digit", LIMITS, NAMES)
SEVEN = encoded(seven(), "PNG")


@asynccontextmanager
async def pool(processes: int = 1, **bounds: float) -> AsyncIterator[DecoderPool]:
    pool = DecoderPool(processes, **bounds)  # type: ignore[arg-type]
    try:
        yield pool
    finally:
        pool.close()


def soon(seconds: float = 60) -> float:
    return time.monotonic() + seconds


def slow_jpeg(scans: int = 10_000) -> bytes:
    """Return a JPEG that takes seconds of CPU time on any machine: 3.7 s on the one where it was measured."""
    jpeg = encoded(seven(60), "JPEG", progressive=True)
    last = jpeg.rindex(b"\xff\xda")
    return jpeg[:-2] + jpeg[last:-2] * scans + jpeg[-2:]


def children() -> list[int]:
    return [
        int(each) for file in Path("/proc/self/task").glob("*/children") for each in file.read_text().split()
    ]


async def test_a_decoder_returns_what_the_job_returns() -> None:
    async with pool() as decoders:
        rows = await decoders.run(PICTURE, SEVEN, soon())
        assert isinstance(rows, np.ndarray)
        assert np.array_equal(rows, PICTURE.run(SEVEN))
        fields = FieldsJob("", LIMITS, NAMES)
        assert await decoders.run(fields, b'{"seed":1,"images":[2]}', soon()) == {"seed": 1, "images": True}
        with pytest.raises(InvalidInput, match="image of 100 bytes begins with"):
            await decoders.run(PICTURE, bytes(100), soon())


@pytest.mark.slow
async def test_a_body_that_takes_too_much_cpu_time_costs_its_decoder_and_no_other_body() -> None:
    async with pool(cpu_seconds=0.05) as decoders:
        slow = slow_jpeg()
        with pytest.raises(PayloadTooLarge, match=r"takes over 0\.05 s of CPU time"):
            await decoders.run(JPEG, slow, soon())
        assert isinstance(await decoders.run(PICTURE, SEVEN, soon()), np.ndarray)


@pytest.mark.slow
async def test_a_body_that_takes_too_much_memory_is_rejected() -> None:
    async with pool(memory_bytes=20_000_000) as decoders:
        large = encoded(Image.new("RGB", (3000, 3000)), "TIFF", compression="tiff_lzw")
        with pytest.raises(PayloadTooLarge, match="too much memory"):
            await decoders.run(TIFF, large, soon())
        assert isinstance(await decoders.run(PICTURE, SEVEN, soon()), np.ndarray)


async def test_a_broken_picture_prints_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff prints to stderr: in no format of ours, and it blocks if nobody reads."""
    broken = bytearray(encoded(seven(), "TIFF", compression="tiff_adobe_deflate"))
    broken[12:20] = b"\xff" * 8
    async with pool() as decoders:
        with pytest.raises(InvalidInput, match="broken TIFF"):
            await decoders.run(replace(PICTURE, kind="image/tiff"), bytes(broken), soon())
    assert capfd.readouterr().err == ""


@pytest.mark.slow
async def test_a_killed_decoder_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    async with pool() as decoders:
        before = set(children())
        await decoders.run(PICTURE, SEVEN, soon())
        (decoder,) = set(children()) - before
        os.kill(decoder, signal.SIGSTOP)  # so that it dies of its next body
        task = asyncio.ensure_future(decoders.run(PICTURE, SEVEN, soon()))
        await asyncio.sleep(0.2)  # the body is in the pipe, where a stopped process leaves it
        os.kill(decoder, signal.SIGSEGV)
        os.kill(decoder, signal.SIGCONT)
        with pytest.raises(InvalidInput, match="crashes its decoder"), caplog.at_level(logging.WARNING):
            await task
        assert "exited with code -11" in caplog.text
        assert isinstance(await decoders.run(PICTURE, SEVEN, soon()), np.ndarray)


async def test_hangups_never_kill_a_decoder() -> None:
    async with pool() as decoders:
        before = set(children())
        task = asyncio.ensure_future(decoders.run(PICTURE, SEVEN, soon()))
        pids, sent = set(), 0
        while not task.done():
            for pid in set(children()) - before:
                os.kill(pid, signal.SIGHUP)
                pids.add(pid)
                sent += 1
            await asyncio.sleep(0.001)
        assert isinstance(await task, np.ndarray)
        assert (len(pids), sent > 0) == (1, True)


@pytest.mark.slow
async def test_bodies_beyond_the_queue_and_the_deadline_are_rejected() -> None:
    async with pool(max_queue=1, cpu_seconds=0.3) as decoders:
        slow = slow_jpeg()
        first = asyncio.ensure_future(decoders.run(JPEG, slow, soon()))
        second = asyncio.ensure_future(decoders.run(PICTURE, SEVEN, soon(0.05)))
        await asyncio.sleep(0)
        with pytest.raises(QueueFull, match="2 bodies are waiting"):
            await decoders.run(PICTURE, SEVEN, soon())
        with pytest.raises(DeadlineExceeded):
            await second
        with pytest.raises(PayloadTooLarge):
            await first
        assert isinstance(await decoders.run(PICTURE, SEVEN, soon()), np.ndarray)


async def test_no_process_outlives_the_pool() -> None:
    before = set(children())
    async with pool() as decoders:
        await decoders.run(PICTURE, SEVEN, soon())
        assert set(children()) != before
    assert set(children()) <= before


async def test_what_a_decoder_logs_is_logged_here(caplog: pytest.LogCaptureFixture) -> None:
    bad = RowsJob("picture", "image/png", "", GRAY, "mnist-digit", LIMITS, None)  # type: ignore[arg-type]
    job = RowsJob("json", "", "", GRAY, "none", LIMITS, None)  # type: ignore[arg-type]
    async with pool() as decoders:
        await decoders.run(bad, SEVEN, soon())
        with pytest.raises(InvalidInput, match="body cannot be decoded"), caplog.at_level(logging.WARNING):
            await decoders.run(job, b"[]", soon())
    assert "AttributeError" in caplog.text
