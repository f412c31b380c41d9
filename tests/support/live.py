"""The real service as a test sees it: a process of its own, a real socket, many connections."""

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CALLERS = 64
RAW = {"content-type": "application/octet-stream"}
RAW_ANSWER = RAW | {"accept": "application/octet-stream"}


@dataclass
class Service:
    """A running service. lines: what it has logged so far."""

    process: subprocess.Popen[str]
    port: int
    lines: list[str] = field(default_factory=list)

    def stop(self, sig: int = signal.SIGTERM) -> int:
        self.process.send_signal(sig)
        return self.process.wait(timeout=60)


@contextmanager
def serving(*arguments: str) -> Iterator[Service]:
    """Start `python -m service` on a port of the system's choice and wait until it is ready."""
    command = [sys.executable, "-m", "service", *arguments, "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line)
            ready = re.search(r"ready at https?://127\.0\.0\.1:(\d+)", line)
            if ready:
                break
        else:
            pytest.fail("the service did not start:\n" + "".join(lines))
        try:
            yield Service(process, int(ready[1]), lines)
        finally:
            if process.poll() is None:
                process.kill()


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """One keep-alive HTTP/1.1 connection; many times faster than a general client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in {"host": "test", **(headers or {})}.items()]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await self.writer.drain()

    async def receive(self) -> Response:
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:-2])}
        bodiless = head[0].split()[1] in ("204", "304")
        body = b"" if bodiless else await self.reader.readexactly(int(headers["content-length"]))
        return Response(int(head[0].split()[1]), headers, body)

    async def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> Response:
        await self.send(method, path, body, headers)
        return await self.receive()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Connection]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


async def post_all(port: int, path: str, bodies: Sequence[bytes], headers: dict[str, str]) -> list[Response]:
    """Post every body over 64 connections at once; the answers are in the order of the bodies."""
    answers: list[Response | None] = [None] * len(bodies)
    left = iter(range(len(bodies)))

    async def caller() -> None:
        async with connected(port) as connection:
            for index in left:
                answers[index] = await connection.ask("POST", path, bodies[index], headers)

    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return [answer for answer in answers if answer is not None]
