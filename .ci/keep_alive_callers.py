"""HTTP clients that keep their connections, classify one digit, and notice every request that is lost."""

import http.client
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

DIGIT = (Path(__file__).parents[1] / "tests" / "digits" / "7.png").read_bytes()
CALLERS, PAUSE_SECONDS = 4, 0.05


class CallError(Exception):
    """What a caller got instead of a right answer."""


@dataclass
class Caller:
    """A client that keeps its connection, and reopens it only if the service has said that it closes it."""

    endpoint: str
    timeout: float = 30.0
    answers: int = 0
    opened: int = 0
    failed: bool = False
    _connection: http.client.HTTPConnection | None = field(default=None, init=False)

    def classify(self) -> str:
        """Return the label of the digit. Raises CallError if it is not 7, or if there is no answer."""
        answer = json.loads(self.ask("POST", "/classify", DIGIT))
        label: str = answer["predictions"][0]["label"]
        if label != "7":
            raise CallError(f"the label of tests/digits/7.png is {label}, expected 7")
        return label

    def ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        """Return the body of a 200. Raises CallError if anything else comes."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self.endpoint, timeout=self.timeout)
            self.opened += 1
        try:
            self._connection.request(method, path, body)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise CallError(f"{method} {path} after {self.answers} answers: {error!r}") from error
        if response.will_close:
            self.close()
        if response.status != 200:
            raise CallError(f"{method} {path}: {response.status} {content[:300]!r}, expected 200")
        self.answers += 1
        return content

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextmanager
def calling(endpoint: str) -> Iterator[list[Caller]]:
    """Let callers send until the block ends. Raises CallError if one of them lost a request."""
    callers = [Caller(endpoint) for _ in range(CALLERS)]
    done = threading.Event()

    def send(caller: Caller) -> None:
        with closing(caller):
            while not done.wait(PAUSE_SECONDS):
                try:
                    caller.classify()
                except CallError:
                    caller.failed = True
                    raise

    with ThreadPoolExecutor(CALLERS) as threads:
        sending = [threads.submit(send, caller) for caller in callers]
        try:
            yield callers
        finally:
            done.set()
            for each in sending:
                each.result()  # a caller's error says more than what followed from it


def wait_for_more(callers: list[Caller]) -> None:
    """Wait until each caller has another answer. Raises CallError if one failed, or has none in time."""
    before = [caller.answers for caller in callers]
    deadline = time.monotonic() + 30
    while any(caller.answers <= count for caller, count in zip(callers, before, strict=True)):
        if time.monotonic() > deadline or any(caller.failed for caller in callers):
            raise CallError("a caller failed, or has no answer after 30 s")
        time.sleep(0.05)
