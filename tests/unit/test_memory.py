"""What was freed goes back to the system."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from service.memory import KEPT_BYTES, LARGE_BYTES, give_back_free_memory


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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_a_large_block_goes_back_although_a_larger_one_was_freed_before() -> None:
    code = (
        "from service.memory import map_large_blocks; from tests.unit.test_memory import resident_bytes\n"
        "map_large_blocks(); first = bytearray(20_000_000); del first\n"
        f"large = bytearray(b'x') * {20 * LARGE_BYTES}; last = bytearray({LARGE_BYTES // 2})\n"
        "before = resident_bytes(); del large; print(before - resident_bytes())"
    )
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(seen.stdout) > 9 * LARGE_BYTES


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_bodies_that_follow_one_another_fault_no_pages_in_again() -> None:
    body = LARGE_BYTES // 2
    assert 8 * body <= KEPT_BYTES
    code = (
        "import resource; from service.memory import keep_end_of_heap, map_large_blocks\n"
        "map_large_blocks(); keep_end_of_heap()\n"
        f"def serve(): return [b'x' * {body} for _ in range(8)]\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "serve(); before = faults()\n"
        "for _ in range(20): serve()\n"
        "print(faults() - before)"
    )
    seen = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(seen.stdout) < 500  # without `keep_end_of_heap`, each of the 160 bodies faults 64 pages
