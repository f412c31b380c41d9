"""How fast two graphs of the same model are, in rows per second of CPU time on one thread."""

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from training.onnx_files import Arrays
from training.quantization.int8 import single_threaded_session

BATCHES = (1, 8, 64, 256)
ROUNDS = 9
ROUND_SECONDS = 0.02


@dataclass(frozen=True)
class Speed:
    """Rows per second of CPU time on one thread, as the median of ROUNDS, at one batch size."""

    batch: int
    before: float
    after: float


def measure_speed(before: Path, after: Path, inputs: Arrays) -> list[Speed]:
    """Rows per second at each of BATCHES, interleaved.

    CPU time of the only computing thread: other processes on the machine hardly affect it.
    """
    sessions = (single_threaded_session(before), single_threaded_session(after))
    speeds = []
    for batch in BATCHES:
        rows = {name: array[np.arange(batch) % len(array)] for name, array in inputs.items()}
        rounds = [[seconds_per_run(session, rows) for session in sessions] for _ in range(ROUNDS)]
        medians = (batch / statistics.median(column) for column in zip(*rounds, strict=True))
        speeds.append(Speed(batch, *medians))
    return speeds


def speed_rows(speeds: Sequence[Speed]) -> list[tuple[object, ...]]:
    """The rows of a card's table: batch size, both speeds, and how many times as fast the second is."""
    return [
        (each.batch, f"{each.before:,.0f}", f"{each.after:,.0f}", f"{each.after / each.before:.2f}")
        for each in speeds
    ]


def seconds_per_run(session: onnxruntime.InferenceSession, inputs: Arrays) -> float:
    """The mean CPU time per run of a single-threaded session.

    inputs: the batch of every run. As many runs as fill ROUND_SECONDS, after one that is not counted.
    """
    session.run(None, inputs)
    runs, begin = 0, time.thread_time()
    while (taken := time.thread_time() - begin) < ROUND_SECONDS:
        session.run(None, inputs)
        runs += 1
    return taken / runs


def cpu_name() -> str:
    """The CPU's name, and its instruction sets that decide how fast int8 is, from Linux's /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [
        flag
        for flag in facts.get("flags", "").split()
        if flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni")
    ]
    return f"{facts.get('model name', platform.machine())} ({', '.join(flags) or 'instructions unknown'})"
