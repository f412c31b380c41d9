"""A realistic mix of real digits for locust, with every response checked: see docs/load-testing.md.

Knows only the service's HTTP interface.
"""

import base64
import hashlib
import io
import logging
import math
import random
import ssl
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from locust import FastHttpUser, LoadTestShape, constant_throughput, events, runners, task
from locust.argument_parser import LocustArgumentParser
from locust.contrib.fasthttp import ResponseContextManager
from locust.env import Environment
from locust.runners import WORKER_REPORT_INTERVAL, MasterRunner, WorkerRunner
from PIL import Image

FOLDER = Path(__file__).resolve().parent.parent / "tests" / "digits"
SIDE = 28
DIGITS = np.frombuffer((FOLDER / "digits.raw").read_bytes(), np.uint8).reshape(10, SIDE, SIDE)
PNGS = [(FOLDER / f"{digit}.png").read_bytes() for digit in range(10)]

RAW = {"Content-Type": "application/octet-stream"}
RAW_BOTH = RAW | {"Accept": "application/octet-stream"}
BATCH_ROWS = (2, 64)
JSON_IMAGES = (1, 4)
SEEDS = 50
COUNTS = (1, 4, 16)

logger = logging.getLogger("inkserve.load")

Check = Callable[[ResponseContextManager], None]

USER_RATE = 5.0
"""Requests per second of one user. A user waits for each response, so it is slower if one takes over 0.2
s."""

FINISH_SECONDS = 30
"""How long a user that is being stopped may wait for a response, which would otherwise not be counted."""

SETTLE_SECONDS = WORKER_REPORT_INTERVAL + 2
"""Time without users at the end, for the workers' last reports: locust's master waits only half a second."""

HEARTBEATS = 7
"""A worker is lost after missing this many heartbeats, one a second. With locust's 3, a machine that was busy
for four seconds ended the run before a request was sent."""

runners.HEARTBEAT_LIVENESS = HEARTBEATS

SHED = "shed: 429"
"""The message of a failure that is the correct response to overload, and counts separately from wrong
ones."""

MIX = {"raw": 45, "png": 20, "json": 10, "batch": 10, "generate": 15}

STAGES: dict[str, tuple[tuple[float, float], ...]] = {
    "ramp": ((0.0, 0.05), (0.8, 1.0), (1.0, 1.0)),
    "spike": ((0.0, 0.2), (0.3, 0.2), (0.32, 1.0), (0.6, 1.0), (0.62, 0.2), (1.0, 0.2)),
    "soak": ((0.0, 1.0), (1.0, 1.0)),
}
"""For each shape: (fraction of the time, fraction of the rate), joined by straight lines."""

_digests: dict[tuple[str, str, str], str] = {}
"""The digest of a model version's response to a generate path, in this process."""


class Wrong(Exception):
    """A wrong response; the message says what was seen and what was expected."""


def parse_mix(text: str) -> dict[str, int]:
    """Parse weights such as `raw=45,png=20`; others are 0. Raises ArgumentTypeError."""
    try:
        weights = {name: int(weight) for name, weight in (part.split("=") for part in text.split(","))}
    except ValueError:
        raise ArgumentTypeError(f"mix is {text!r}, expected for instance raw=45,png=20") from None
    if unknown := weights.keys() - MIX.keys():
        raise ArgumentTypeError(f"mix names {', '.join(sorted(unknown))}, expected {', '.join(MIX)}")
    if min(weights.values()) < 0 or not sum(weights.values()):
        raise ArgumentTypeError(f"mix is {text!r}, expected weights of at least 0, not all of them 0")
    return weights


def parse_share(text: str) -> float:
    """Parse a fraction from 0 to 1. Raises ArgumentTypeError."""
    return _parse_number(text, "a fraction from 0 to 1", most=1.0)


def parse_milliseconds(text: str) -> float:
    """Parse a number of milliseconds, at least 0. Raises ArgumentTypeError."""
    return _parse_number(text, "milliseconds of at least 0", most=math.inf)


def _parse_number(text: str, expected: str, *, most: float) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and 0 <= number <= most):
        raise ArgumentTypeError(f"value is {text!r}, expected {expected}")
    return number


@cache
def first_key(path: str) -> str:
    """The first API key in a file that may use models. Raises OSError, or ValueError without one.

    A line is KEY or NAME:SCOPES:KEY; in place of a key there may be its digest, which nobody can send.
    """
    for line in Path(path).read_text("utf-8").splitlines():
        *named, key = (part.strip() for part in line.split(":"))
        scopes = [scope.strip() for scope in named[1].split(",")] if len(named) == 2 else ["infer"]
        if key and not line.strip().startswith("#") and "infer" in scopes and not key.startswith("sha256="):
            return key
    raise ValueError(f"{path} holds no API key with the scope infer, or only digests")


def parse_keys_file(path: str) -> str:
    """Check the path of a file of API keys, or an empty string. Raises ArgumentTypeError."""
    try:
        if path:
            first_key(path)
    except (OSError, ValueError) as error:
        raise ArgumentTypeError(str(error)) from None
    return path


@events.init_command_line_parser.add_listener  # type: ignore[untyped-decorator]
def add_arguments(parser: LocustArgumentParser) -> None:
    group = parser.add_argument_group("inkserve")
    text = ",".join(f"{name}={weight}" for name, weight in MIX.items())
    group.add_argument("--stages", choices=STAGES, default="ramp", env_var="STAGES", help="Load over time")
    group.add_argument("--rate", type=float, default=200, env_var="RATE", help="Highest requests per second")
    group.add_argument("--seconds", type=float, default=60, env_var="SECONDS", help="Length of the test")
    group.add_argument("--mix", type=parse_mix, default=text, env_var="MIX", help="Weights of the requests")
    group.add_argument(
        "--classifier", default="", env_var="CLASSIFIER", help="Model (default: the service's)"
    )
    group.add_argument("--generator", default="", env_var="GENERATOR", help="Model (default: the service's)")
    text = "File of API keys, the first of which is sent; the path must be valid in every process"
    group.add_argument(
        "--api-keys-file", type=parse_keys_file, default="", env_var="API_KEYS_FILE", help=text
    )
    text = "Authorities of the service's certificate (default: it is not verified)"
    group.add_argument("--ca-file", default="", env_var="CA_FILE", help=text)
    text = "Client certificate (default: none)"
    group.add_argument("--client-cert-file", default="", env_var="CLIENT_CERT_FILE", help=text)
    group.add_argument("--client-key-file", default="", env_var="CLIENT_KEY_FILE", help="Its private key")
    text = "Fail if less than this fraction of the stages' requests is served (default: 0, no limit)"
    group.add_argument("--min-rate-share", type=parse_share, default=0.0, env_var="MIN_RATE_SHARE", help=text)
    text = "Fail if the 99th percentile of the response times is higher (default: 0, no limit)"
    group.add_argument("--max-p99-ms", type=parse_milliseconds, default=0.0, env_var="MAX_P99_MS", help=text)


@cache
def tls_context(ca_file: str, client_cert_file: str, client_key_file: str) -> ssl.SSLContext:
    """The context of all users' connections. ca_file: empty to trust any service."""
    context = ssl.create_default_context(cafile=ca_file or None)
    if not ca_file:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if client_cert_file:
        context.load_cert_chain(client_cert_file, client_key_file)
    return context


@events.init.add_listener  # type: ignore[untyped-decorator]
def let_users_finish(environment: Environment, **_: Any) -> None:
    environment.stop_timeout = environment.stop_timeout or FINISH_SECONDS


class Stages(LoadTestShape):
    """The number of users that the stage's rate needs, second by second.

    lost: ids of workers that became unresponsive and did not return. Locust continues without them and their
    part of the load.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lost: set[str] = set()

    def tick(self) -> tuple[int, float] | None:
        self.watch_workers()
        options = self.runner.environment.parsed_options if self.runner else None
        assert options is not None
        now = float(self.get_run_time())  # type: ignore[no-untyped-call]
        if now > options.seconds:
            settled = options.seconds + (SETTLE_SECONDS if isinstance(self.runner, MasterRunner) else 0)
            return None if now > settled else (0, 100.0)
        times, parts = zip(*STAGES[options.stages], strict=True)
        rate = options.rate * float(np.interp(now / options.seconds, times, parts))
        users = max(1, round(rate / USER_RATE))
        return users, max(10.0, options.rate / USER_RATE)  # all users of a spike arrive within a second

    def watch_workers(self) -> None:
        """Note which workers are unresponsive; locust forgets a worker after a minute."""
        if isinstance(self.runner, MasterRunner):
            clients = self.runner.clients
            heard = {client.id for client in (*clients.ready, *clients.spawning, *clients.running)}
            self.lost = (self.lost | {client.id for client in clients.missing}) - heard


class Visitor(FastHttpUser):
    """A user that sends USER_RATE requests per second, as long as responses take at most 0.2 s."""

    wait_time = constant_throughput(USER_RATE)
    connection_timeout = 10.0
    network_timeout = 30.0

    def __init__(self, environment: Environment) -> None:
        options = environment.parsed_options
        assert options is not None
        self.insecure = not options.ca_file  # else also a name that does not match is accepted
        files = options.ca_file, options.client_cert_file, options.client_key_file
        self.ssl_context_factory = lambda **_: tls_context(*files)
        super().__init__(environment)

    def on_start(self) -> None:
        options = self.environment.parsed_options
        assert options is not None
        weights = parse_mix(options.mix) if isinstance(options.mix, str) else options.mix
        asks = {
            "raw": self.classify_raw,
            "png": self.classify_png,
            "json": self.classify_json,
            "batch": self.classify_batch,
            "generate": self.generate,
        }
        self._asks = [asks[name] for name in weights]
        self._weights = list(weights.values())
        self._classifier = f"?model={options.classifier}" if options.classifier else ""
        self._generator = f"&model={options.generator}" if options.generator else ""
        if options.api_keys_file:
            self.client.auth_header = f"Bearer {first_key(options.api_keys_file)}"

    @task
    def ask(self) -> None:
        (ask,) = random.choices(self._asks, self._weights)
        ask()

    def classify_raw(self) -> None:
        digit = random.randrange(10)
        self._classify("raw", DIGITS[digit].tobytes(), RAW, [digit])

    def classify_png(self) -> None:
        digit = random.randrange(10)
        self._classify("png", PNGS[digit], {"Content-Type": "image/png"}, [digit])

    def classify_json(self) -> None:
        """Send several images: pixels as nested lists, or base64 of a PNG."""
        digits = random.choices(range(10), k=random.randint(*JSON_IMAGES))
        images = [
            DIGITS[digit].tolist() if random.random() < 0.5 else base64.b64encode(PNGS[digit]).decode("ascii")
            for digit in digits
        ]
        self._classify("json", {"images": images}, {}, digits)

    def classify_batch(self) -> None:
        """Send raw rows in one request, and get raw probabilities."""
        digits = np.random.default_rng().integers(0, 10, random.randint(*BATCH_ROWS))

        def check(response: ResponseContextManager) -> None:
            check_probabilities(response.content or b"", digits)

        self._post("batch", DIGITS[digits].tobytes(), RAW_BOTH, check)

    def generate(self) -> None:
        """Generate a digit from a seed, or several in a sprite; the same seed must give the same bytes."""
        count, seed = random.choice(COUNTS), random.randrange(SEEDS)
        path = f"/generate?label={random.randrange(10)}&count={count}&seed={seed}{self._generator}"
        headers = {"Accept": "image/png"}
        with self.client.get(path, headers=headers, name="/generate", catch_response=True) as response:
            judge(response, lambda response: check_sprite(response, path, count))

    def _classify(self, form: str, body: Any, headers: Mapping[str, str], digits: list[int]) -> None:
        def check(response: ResponseContextManager) -> None:
            check_labels(response.json(), digits)

        self._post(form, body, headers, check)

    def _post(
        self,
        form: str,
        body: Any,
        headers: Mapping[str, str],
        check: Callable[[ResponseContextManager], None],
    ) -> None:
        content = {"json": body} if isinstance(body, dict) else {"data": body}
        name = f"/classify {form}"
        with self.client.post(
            f"/classify{self._classifier}", headers=dict(headers), name=name, catch_response=True, **content
        ) as response:
            judge(response, check)


def judge(response: ResponseContextManager, check: Check) -> None:
    """Count a response as correct, as shed, or as a failure that says what was seen and expected."""
    if (problem := _problem(response, check)) is not None:
        response.failure(problem)  # type: ignore[no-untyped-call]


def _problem(response: ResponseContextManager, check: Check) -> str | None:
    if response.status_code == 429 and _header(response, "retry-after"):
        return SHED
    if not response.status_code:
        return f"no response: {getattr(response, 'error', None)!r}"
    if response.status_code != 200:
        return f"status is {response.status_code}, expected 200: {(response.text or '')[:200]}"
    try:
        check(response)
    except Wrong as wrong:
        return str(wrong)
    except (KeyError, TypeError, ValueError, OSError) as error:  # another format altogether
        return f"response cannot be read: {error!r}"
    return None


def _header(response: ResponseContextManager, name: str) -> str:
    return str(response.headers.get(name, "")) if response.headers else ""


def check_labels(answer: Any, digits: list[int]) -> None:
    """Raise Wrong unless the labels are the digits and the probabilities add up to 1."""
    predictions = answer["predictions"]
    labels = [prediction["label"] for prediction in predictions]
    if labels != [str(digit) for digit in digits]:
        raise Wrong(f"labels are {labels}, expected {digits}")
    for prediction in predictions:
        total = sum(prediction["probabilities"].values())
        if not math.isclose(total, 1, abs_tol=1e-3):
            raise Wrong(f"probabilities add up to {total:.4f}, expected 1")


def check_probabilities(body: bytes, digits: np.ndarray[Any, Any]) -> None:
    """Raise Wrong unless each row of 10 probabilities is highest at its digit."""
    if len(body) != 40 * len(digits):
        raise Wrong(f"body has {len(body)} bytes, expected {40 * len(digits)}")
    read = np.frombuffer(body, "<f4").reshape(-1, 10).argmax(axis=1)
    if not np.array_equal(read, digits):
        row = int(np.flatnonzero(read != digits)[0])
        raise Wrong(f"row {row} of {len(digits)} is classified as {read[row]}, expected {digits[row]}")


def check_sprite(response: ResponseContextManager, path: str, count: int) -> None:
    """Raise Wrong unless it is a PNG of this many images with the bytes that the path gave before."""
    body = response.content or b""
    columns = math.ceil(math.sqrt(count))
    expected = (columns * SIDE, math.ceil(count / columns) * SIDE)
    with Image.open(io.BytesIO(body)) as image:
        image.load()
        if image.format != "PNG" or image.size != expected:
            raise Wrong(f"picture is {image.format} of {image.size}, expected PNG of {expected}")
    key = (_header(response, "inkserve-model"), _header(response, "inkserve-version"), path)
    digest = hashlib.sha256(body).hexdigest()
    before = _digests.setdefault(key, digest)
    if before != digest:
        raise Wrong(f"{path} gave sha256 {digest[:12]}, expected {before[:12]} as before")


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def set_exit_code(environment: Environment, **_: Any) -> None:
    """Set the exit code: 1 if a response was wrong or a limit is missed; a shed request is not wrong."""
    if isinstance(environment.runner, WorkerRunner):
        return  # the master has its reports
    if problem := _failure(environment):
        logger.error("the run fails: %s", problem)
    environment.process_exit_code = 1 if problem else 0


def _failure(environment: Environment) -> str | None:
    stats, runner, shape = environment.stats, environment.runner, environment.shape_class
    wrong = sum(error.occurrences for error in stats.errors.values() if SHED not in str(error.error))
    if wrong:
        return f"{wrong} responses were wrong"
    if stats.total.num_requests == stats.total.num_failures:
        return f"nobody answers at {environment.host}"
    if runner and runner.exceptions:
        return f"{len(runner.exceptions)} kind(s) of exception in the load test itself"
    if isinstance(shape, Stages):
        shape.watch_workers()
        if shape.lost:
            return f"workers became unresponsive, and the load was too low: {', '.join(sorted(shape.lost))}"
    return "; ".join(_missed_limits(environment)) or None


def _missed_limits(environment: Environment) -> Iterator[str]:
    """Yield what `--min-rate-share` and `--max-p99-ms` object to."""
    options, total = environment.parsed_options, environment.stats.total
    assert options is not None
    asked = options.rate * options.seconds * mean_share(options.stages)
    served = total.num_requests - total.num_failures
    if served < options.min_rate_share * asked:
        yield (
            f"served {served} of the {asked:.0f} requests asked for, {served / asked:.0%}, "
            f"and shed {total.num_failures}, expected at least {options.min_rate_share:.0%}"
        )
    p99 = total.get_response_time_percentile(0.99)
    if options.max_p99_ms and p99 > options.max_p99_ms:
        yield f"the p99 response time is {p99} ms, expected at most {options.max_p99_ms:g} ms"


def mean_share(stages: str) -> float:
    """Return the mean rate over the stages, as a fraction of the highest."""
    times, parts = zip(*STAGES[stages], strict=True)
    return float(np.trapezoid(parts, times))
