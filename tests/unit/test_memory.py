"""What was freed goes back to the system."""

import ctypes
from pathlib import Path

import pytest

from service.memory import give_back_free_memory


def resident_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_memory_that_is_free_between_memory_in_use_is_given_back() -> None:
    blocks = [b"x" * 100_000 for _ in range(400)]
    last = blocks.pop()
    blocks.clear()  # glibc by itself gives back what is free at the end of its heap, which `last` is
    before = resident_bytes()
    give_back_free_memory()
    assert before - resident_bytes() > 20_000_000
    assert len(last) == 100_000
