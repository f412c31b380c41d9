"""Log lines go to real descriptors: slow, full, broken and closed ones."""

import fcntl
import os
import select
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.observability.log_writer import LogWriter, _chunks

PIPE_BYTES = 4096
LINE = "x" * 99 + "\n"


def writer_to(fd: int, max_bytes: int = 20_000) -> LogWriter:
    return LogWriter(fd, lambda lost: f"{lost} lost\n", max_bytes)


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    yield reading, writing
    os.close(reading)


def read_until(fd: int, end: bytes) -> bytes:
    data = b""
    while not data.endswith(end):
        assert select.select([fd], [], [], 30)[0]
        data += os.read(fd, 1 << 16)
    return data


def test_lines_come_in_their_order(pipe: tuple[int, int]) -> None:
    writer = writer_to(pipe[1])
    for number in range(100):
        writer.write(f"{number}\n")
    assert writer.drain(30)
    assert os.read(pipe[0], 1 << 16) == b"".join(b"%d\n" % number for number in range(100))


@pytest.mark.timeout(60)
def test_an_unread_pipe_blocks_nobody_and_its_lost_lines_are_counted(pipe: tuple[int, int]) -> None:
    writer = writer_to(pipe[1])
    for _ in range(1000):
        assert writer.write(LINE) == len(LINE)
    assert not writer.drain(0.05)
    assert 700 <= writer.dropped < 1000  # 20,000 bytes are queued, and some are in the pipe
    lost = writer.dropped
    data = read_until(pipe[0], b" lost\n")  # which comes after the lines of one turn of the thread
    writer.write("again\n")
    lines = (data + read_until(pipe[0], b"again\n")).splitlines(keepends=True)
    assert sorted(lines) == sorted([LINE.encode()] * (1000 - lost) + [b"%d lost\n" % lost, b"again\n"])
    assert lines[-1] == b"again\n"
    assert writer.dropped == lost


def test_a_broken_pipe_loses_lines_but_raises_nothing() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    writer = writer_to(writing)
    writer.write(LINE)
    assert writer.drain(30)
    assert writer.dropped == 1


def test_a_full_disk_loses_lines_and_is_recovered_from(pipe: tuple[int, int]) -> None:
    target = os.open("/dev/full", os.O_WRONLY)
    writer = writer_to(target)
    writer.write(LINE * 3)
    assert writer.drain(30)
    assert writer.dropped == 3
    os.dup2(pipe[1], target)
    writer.write("space again\n")
    assert read_until(pipe[0], b" lost\n") == b"space again\n3 lost\n"


def test_a_non_blocking_descriptor_is_waited_for(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    writer = writer_to(pipe[1])
    writer.write(LINE * 100)
    writer.write("end\n")
    assert read_until(pipe[0], b"end\n") == LINE.encode() * 100 + b"end\n"
    assert writer.dropped == 0


@given(st.lists(st.binary(max_size=6000).map(lambda data: data.replace(b"\r", b"") + b"\n"), max_size=5))
def test_chunks_fit_into_one_write_to_a_pipe_unless_a_line_does_not(lines: list[bytes]) -> None:
    chunks = _chunks(lines)
    assert b"".join(chunks) == b"".join(lines)
    for chunk in chunks:
        assert len(chunk) <= select.PIPE_BUF or len(chunk.splitlines()) == 1
