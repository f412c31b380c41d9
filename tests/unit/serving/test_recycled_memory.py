"""Large bodies use memory again, and never share it."""

import asyncio
import gc
import resource
import threading

import numpy as np
import pytest

from service.memory import LARGE_BYTES
from service.serving.recycled_memory import KEPT_BLOCKS, RecycledMemory

BODY_BYTES = 1024 * 784
BLOCK_BYTES = min(KEPT_BLOCKS)


def address(body: memoryview | None) -> int:
    assert body is not None
    found: int = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    return found


async def test_a_block_is_used_again_once_nothing_refers_to_its_body() -> None:
    memory = RecycledMemory()
    first = memory.empty(BODY_BYTES)
    where = address(first)
    assert first is not None
    rows = np.ndarray((1024, 28, 28), np.uint8, first)
    some = rows[5:7]
    del first, rows
    assert address(memory.empty(BODY_BYTES)) != where  # a view of some rows is enough
    del some
    assert address(memory.empty(BODY_BYTES)) == where
    memory.close()


@pytest.mark.parametrize("size", [1, LARGE_BYTES, max(KEPT_BLOCKS) + 1])
async def test_small_and_huge_bodies_get_none(size: int) -> None:
    assert RecycledMemory().empty(size) is None


@pytest.mark.parametrize("size", KEPT_BLOCKS)
async def test_free_blocks_are_bounded(size: int) -> None:
    memory = RecycledMemory()
    bodies = [memory.empty(size) for _ in range(KEPT_BLOCKS[size] + 3)]
    assert len({address(body) for body in bodies}) == len(bodies)
    assert {len(body) for body in bodies if body is not None} == {size}
    assert memory.kept_bytes == 0
    bodies.clear()
    assert memory.kept_bytes == size * KEPT_BLOCKS[size]
    memory.close()
    assert memory.kept_bytes == 0


async def test_a_body_may_become_garbage_in_another_thread() -> None:
    memory = RecycledMemory()
    held = [memory.empty(BODY_BYTES)]
    thread = threading.Thread(target=held.clear)
    thread.start()
    thread.join()
    assert memory.kept_bytes == BLOCK_BYTES
    memory.close()


@pytest.mark.slow
async def test_free_blocks_go_back_when_no_body_asks_for_one() -> None:
    memory = RecycledMemory(idle_seconds=0.01)
    memory.empty(BODY_BYTES)
    gc.collect()
    assert memory.kept_bytes == BLOCK_BYTES
    async with asyncio.timeout(10):
        while memory.kept_bytes:
            await asyncio.sleep(0.005)
    memory.empty(BODY_BYTES)
    assert memory.kept_bytes == BLOCK_BYTES
    memory.close()


async def test_the_block_of_a_body_that_outlives_the_idle_time_goes_back_too() -> None:
    memory = RecycledMemory(idle_seconds=0.01)
    held = [memory.empty(BODY_BYTES)]
    await asyncio.sleep(0.1)
    held.clear()
    assert memory.kept_bytes == BLOCK_BYTES
    async with asyncio.timeout(10):
        while memory.kept_bytes:
            await asyncio.sleep(0.005)
    memory.close()


async def test_a_body_in_a_used_block_faults_no_pages_in() -> None:
    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    memory = RecycledMemory()

    def receive() -> None:
        body = memory.empty(BODY_BYTES)
        assert body is not None
        np.frombuffer(body, np.uint8)[:] = 1

    receive()
    before = faults()
    for _ in range(20):
        receive()
    assert faults() - before < 500  # a fresh block for each would be 20 times 196
    memory.close()
