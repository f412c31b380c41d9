"""The command `python -m loadtests.body_formats`: what each format of a request's body costs.

    python -m loadtests.body_formats
    python -m loadtests.body_formats --against ../inkserve-before

A service classifies one image per request, over 32 connections of wrk, in one format after another. With
another checkout there is a second service. Each ratio compares two slices that follow one another, so that a
change in the machine's speed affects both. A format that only one of them knows has no ratio.
"""

import argparse
import base64
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson

from loadtests import wrk
from loadtests.arguments import at_least_one, checkout
from loadtests.interrupts import exit_code
from loadtests.machine import ROOT, describe
from loadtests.peers.contestants import newest_graph
from loadtests.peers.measure import images_of, right_answer
from loadtests.peers.wire import (
    JSON,
    RAW,
    V2_BINARY,
    V2_HEADER,
    Headers,
    Images,
    Probabilities,
    Wire,
    agrees,
    ask,
)
from loadtests.processes import Server, ServerFailed, end_servers_on_sigterm, free_port, serving
from loadtests.progress import say
from loadtests.samples import Sample, sample_of
from service.content.codecs import png_from_image

MODEL = "mlp"
CLASSIFY = f"/classify?model={MODEL}"
INFER = f"/v2/models/{MODEL}/infer"
CONNECTIONS = 32


@dataclass(frozen=True)
class Format:
    """A format of bodies, the path that accepts it, and how a client reads the response."""

    path: str
    wire: Wire


@dataclass(frozen=True)
class Slice:
    """Samples taken one right after another. before: of the other checkout, if it knows the format."""

    name: str
    here: Sample
    before: Sample | None


@dataclass(frozen=True)
class _Target:
    server: Server
    port: int


def _predictions(_: Headers, body: bytes) -> Probabilities:
    rows = [list(each["probabilities"].values()) for each in orjson.loads(body)["predictions"]]
    return np.array(rows, np.float32)


def _tensors(headers: Headers, body: bytes) -> Probabilities:
    """The first output, whether its bytes follow the JSON or not."""
    if V2_HEADER.lower() in headers:
        return np.frombuffer(body[int(headers[V2_HEADER.lower()]) :][:40], np.float32).reshape(1, 10)
    return np.array(orjson.loads(body)["outputs"][0]["data"], np.float32).reshape(1, 10)


def _json(value: Mapping[str, object]) -> tuple[bytes, Headers]:
    return orjson.dumps(value), {"Content-Type": JSON}


def _tensor(images: Images) -> Mapping[str, object]:
    data = images.ravel().tolist()
    return {"inputs": [{"name": "images", "shape": images.shape, "datatype": "UINT8", "data": data}]}


FORMATS = {
    "raw": Format(CLASSIFY, RAW),
    "JSON": Format(CLASSIFY, Wire(lambda images: _json({"images": images.tolist()}), _predictions)),
    "base64 of a PNG": Format(
        CLASSIFY,
        Wire(
            lambda images: _json({"images": [base64.b64encode(png_from_image(images[0])).decode()]}),
            _predictions,
        ),
    ),
    "PNG": Format(
        CLASSIFY,
        Wire(lambda images: (png_from_image(images[0]), {"Content-Type": "image/png"}), _predictions),
    ),
    "tensors, without JSON": Format(
        INFER, Wire(lambda images: (images.tobytes(), {V2_HEADER: "0"}), _tensors)
    ),
    "tensors, behind JSON": Format(INFER, V2_BINARY),
    "tensors, in JSON": Format(INFER, Wire(lambda images: _json(_tensor(images)), _tensors)),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if nothing could be measured."""
    parsed = _parser().parse_args(arguments)
    if wrk.is_missing():
        return 1
    end_servers_on_sigterm()
    try:
        with ExitStack() as stack:
            here = _start(ROOT, stack)
            before = None if parsed.against is None else _start(parsed.against, stack)
            slices = list(_measure(here, before, parsed.rounds, parsed.seconds))
    except ServerFailed as error:
        print(f"loadtests: {error}", file=sys.stderr)
        return 1
    print(report(slices))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.body_formats", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=3, help="slices for each format (3)")
    parser.add_argument("--seconds", type=at_least_one, default=3, help="length of a slice (3)")
    parser.add_argument(
        "--against",
        type=checkout,
        metavar="DIR",
        help="another checkout of this project, run with its own code and models in this virtual environment",
    )
    return parser


def _start(directory: Path, stack: ExitStack) -> _Target:
    """Start a service that stops with the stack; it has answered one image correctly. Raises ServerFailed."""
    port, image = free_port(), images_of(1)
    expected = right_answer(newest_graph(directory / "models", MODEL), image)
    server = serving(
        [sys.executable, "-m", "service", "--port", str(port)],
        lambda: agrees(port, CLASSIFY, RAW, image, expected),
        directory=directory,
        environment={},
    )
    return _Target(stack.enter_context(server), port)


def _measure(here: _Target, before: _Target | None, rounds: int, seconds: float) -> Iterator[Slice]:
    expected = right_answer(newest_graph(ROOT / "models", MODEL), images_of(1))
    known = {name for name, each in FORMATS.items() if before is not None and _knows(before, each)}
    for number in range(1, rounds + 1):
        for name, each in FORMATS.items():
            if not agrees(here.port, each.path, each.wire, images_of(1), expected):
                raise ServerFailed(f"the probabilities for {name} are wrong")
            other = None if before is None or name not in known else _load(before, each, seconds)
            found = Slice(name, _load(here, each, seconds), other)
            say(f"round {number} of {rounds}, {name}: {found.here.requests_per_second:,.0f} requests/s")
            yield found


def _knows(target: _Target, each: Format) -> bool:
    return ask(target.port, each.path, each.wire, images_of(1))[0] == 200


def _load(target: _Target, each: Format, seconds: float) -> Sample:
    """Load one service. Raises ServerFailed unless every response is 200."""
    body, headers = each.wire.encode(images_of(1))
    url = f"http://127.0.0.1:{target.port}{each.path}"
    return sample_of(target.server, url, body, headers, connections=CONNECTIONS, seconds=seconds)


def report(slices: Sequence[Slice]) -> str:
    """Markdown: medians, and ratios to the other checkout."""
    about = describe()
    lines = [
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}; {about['cpu']}, "
        f"{about['cores']} cores shared with wrk; medians.",
        "",
        "| body | requests/s | lowest to highest | CPU us per request | times the other's requests/s |",
        "|---|---|---|---|---|",
    ]
    for name in dict.fromkeys(each.name for each in slices):
        own = [each for each in slices if each.name == name]
        rates = [each.here.requests_per_second for each in own]
        ratios = [
            each.here.requests_per_second / each.before.requests_per_second
            for each in own
            if each.before is not None
        ]
        cells = [
            name,
            f"{statistics.median(rates):,.0f}",
            f"{min(rates):,.0f} to {max(rates):,.0f}",
            f"{1e6 * statistics.median(each.here.cpu_seconds for each in own):.1f}",
            f"{statistics.median(ratios):.2f}" if ratios else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(exit_code(main))
