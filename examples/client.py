"""A small inkserve client on the standard library: classify files, generate images, retry, report errors.

    python examples/client.py classify tests/digits/7.png
    python examples/client.py generate 7 --count 16 --seed 1 --out sevens.png

Copy `Client` into your own program, or use any HTTP client: a request is one POST or GET.
"""

import argparse
import json
import os
import random
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

RETRIED = (429, 503)
"""The service is overloaded or not ready. No request changes anything there, so it is safe to repeat."""

LONGEST_WAIT_SECONDS = 10.0
"""Longest wait before the next attempt, give or take 20 %, whatever Retry-After says."""


class ServiceError(Exception):
    """The service returned an error. status: the HTTP status code."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Client:
    """Calls one service.

    url: for example http://127.0.0.1:8000.
    api_key: sent as `Authorization: Bearer`, if the service requires one.
    timeout: seconds that a response may take; also sent as the request's deadline.
    attempts: how often to try a request that is shed with 429, or gets 503.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 5.0, attempts: int = 5) -> None:
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._attempts = attempts
        self._headers = {"inkserve-timeout": f"{timeout:g}"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"

    def classify(self, image: bytes, model: str | None = None, top_k: int = 3) -> list[dict[str, Any]]:
        """Classify a PNG, a JPEG or raw rows.

        Returns a dictionary with `label`, `probability` and `probabilities` for each image.
        Raises ServiceError, and URLError if the service cannot be reached.
        """
        answer = self._ask("POST", "/classify", {"model": model, "top_k": top_k}, image)
        predictions: list[dict[str, Any]] = json.loads(answer)["predictions"]
        return predictions

    def generate(
        self, label: str = "mixed", count: int = 1, seed: int | None = None, model: str | None = None
    ) -> bytes:
        """Generate images: one PNG that holds all of them. The same seed gives the same bytes.

        Raises ServiceError, and URLError if the service cannot be reached.
        """
        query = {"model": model, "label": label, "count": count, "seed": seed}
        return self._ask("GET", "/generate", query, None)

    def _ask(self, method: str, path: str, query: dict[str, Any], body: bytes | None) -> bytes:
        given = {name: value for name, value in query.items() if value is not None}
        request = urllib.request.Request(
            f"{self._url}{path}?{urllib.parse.urlencode(given)}", body, self._headers, method=method
        )
        for attempt in range(1, self._attempts + 1):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout) as response:
                    answer: bytes = response.read()
                    return answer
            except urllib.error.HTTPError as error:
                if error.code not in RETRIED or attempt == self._attempts:
                    raise ServiceError(error.code, _message(error)) from None
                time.sleep(_wait(error, attempt))
        raise ValueError(f"attempts is {self._attempts}, expected at least 1")


def _message(error: urllib.error.HTTPError) -> str:
    """Return the service's own message, or whatever a proxy in front sends."""
    body = error.read()
    try:
        return str(json.loads(body)["error"])
    except (ValueError, KeyError, TypeError):
        return body[:200].decode("utf-8", "replace") or str(error.reason)


def _wait(error: urllib.error.HTTPError, attempt: int) -> float:
    """Return the wait in seconds: Retry-After, spread so that clients do not all retry at once."""
    try:
        seconds = float(error.headers.get("Retry-After", ""))
    except ValueError:  # absent, or a date
        seconds = 0.1 * 2**attempt
    return min(seconds, LONGEST_WAIT_SECONDS) * random.uniform(0.8, 1.2)


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Ask a running inkserve.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=5.0, help="seconds per attempt (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    classify = commands.add_parser("classify", help="print the labels of PNG, JPEG or raw files")
    classify.add_argument("files", nargs="+", type=Path, metavar="FILE")
    generate = commands.add_parser("generate", help="write generated images as one PNG")
    generate.add_argument("label", help="a label of the model, or `mixed`")
    generate.add_argument("--count", type=int, default=1, help="number of images (default: %(default)s)")
    generate.add_argument("--seed", type=int, help="the same seed gives the same images (default: random)")
    generate.add_argument(
        "--out", type=Path, default=Path("generated.png"), help="file to write (default: %(default)s)"
    )
    options = parser.parse_args()
    client = Client(options.url, os.environ.get("API_KEY"), options.timeout)
    try:
        if options.command == "generate":
            options.out.write_bytes(client.generate(options.label, options.count, options.seed))
            print(options.out)
            return 0
        for path in options.files:
            for prediction in client.classify(path.read_bytes()):
                print(f"{path}: {prediction['label']} ({prediction['probability']:.4f})")
    except urllib.error.URLError as error:
        print(f"client.py: nobody answers at {options.url}: {error.reason}", file=sys.stderr)
        return 1
    except (ServiceError, OSError) as error:
        print(f"client.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
