"""The command `python -m loadtests.rpc`: requests over gRPC next to the same requests over HTTP.

    python -m loadtests.rpc
    python -m loadtests.rpc --images 64 --callers 8
    python -m loadtests.rpc --delay-seconds 0.001

One Python process asks a service for the same rows of mlp over both protocols, in slices that alternate: over
HTTP as raw rows to /v2/models/mlp/infer, over gRPC as raw contents. Callers of gRPC share four channels.
"""

import argparse
import asyncio
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable, Sequence

import grpc
import psutil

from loadtests.arguments import at_least_one
from loadtests.interrupts import exit_code
from loadtests.machine import describe
from loadtests.peers.measure import images_of
from loadtests.samples import Sample
from tests.support.live import Service, connected, serving
from tests.support.rpc import MODEL_INFER, channel_to, infer_request

MODEL = "mlp"
CHANNELS = 4
ROWS_ALONE = {"inference-header-content-length": "0"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.rpc", description=__doc__)
    parser.add_argument("--images", type=at_least_one, default=1, help="rows of a request (1)")
    parser.add_argument("--callers", type=at_least_one, default=64, help="requests in flight (64)")
    parser.add_argument("--rounds", type=at_least_one, default=3, help="slices for each protocol (3)")
    parser.add_argument("--seconds", type=at_least_one, default=3, help="length of a slice (3)")
    parser.add_argument("--delay-seconds", default="0", help="the service's --max-batch-delay-seconds (0)")
    parsed = parser.parse_args(arguments)
    with serving("--grpc-port", "0", "--max-batch-delay-seconds", parsed.delay_seconds) as service:
        samples = asyncio.run(_measure(service, parsed))
    print(report(samples))
    return 0


async def _measure(service: Service, parsed: argparse.Namespace) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {"HTTP": [], "gRPC": []}
    for _ in range(parsed.rounds):
        samples["HTTP"].append(await _over_http(service, parsed))
        samples["gRPC"].append(await _over_grpc(service, parsed))
    return samples


async def _over_http(service: Service, parsed: argparse.Namespace) -> Sample:
    body = images_of(parsed.images).tobytes()

    async def caller(until: float) -> int:
        answered = 0
        async with connected(service.port) as connection:
            while time.perf_counter() < until:
                response = await connection.ask("POST", f"/v2/models/{MODEL}/infer", body, ROWS_ALONE)
                assert response.status == 200, response.body
                answered += 1
        return answered

    return await _load(service, caller, parsed)


async def _over_grpc(service: Service, parsed: argparse.Namespace) -> Sample:
    message = infer_request(images_of(parsed.images), MODEL).SerializeToString()
    (address,) = re.findall(r"gRPC is ready at (\S+)", "".join(service.lines))
    channels = [channel_to(address) for _ in range(CHANNELS)]
    stubs = [channel.unary_unary(MODEL_INFER) for channel in channels]
    started = 0

    async def caller(until: float) -> int:
        nonlocal started
        stub: grpc.aio.UnaryUnaryMultiCallable = stubs[started % CHANNELS]
        started, answered = started + 1, 0
        while time.perf_counter() < until:
            await stub(message)
            answered += 1
        return answered

    try:
        return await _load(service, caller, parsed)
    finally:
        for channel in channels:
            await channel.close()


async def _load(
    service: Service, caller: Callable[[float], Awaitable[int]], parsed: argparse.Namespace
) -> Sample:
    before, began = _cpu_seconds(service.process.pid), time.perf_counter()
    until = began + parsed.seconds
    answered = sum(await asyncio.gather(*(caller(until) for _ in range(parsed.callers))))
    seconds = time.perf_counter() - began
    return Sample((_cpu_seconds(service.process.pid) - before) / answered, answered / seconds)


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def report(samples: dict[str, list[Sample]]) -> str:
    """Markdown: medians, and the ratio of neighbouring slices."""
    about = describe()
    lines = [
        f"`{about['command']}` at commit {about['commit']}, {about['measured_at']}; {about['cpu']}, "
        f"{about['cores']} cores shared with the client; medians.",
        "",
        "| protocol | requests/s | lowest to highest | CPU us of the service per request |",
        "|---|---|---|---|",
    ]
    for protocol, own in samples.items():
        rates = [each.requests_per_second for each in own]
        cpu = 1e6 * statistics.median(each.cpu_seconds for each in own)
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        lines.append(f"| {protocol} | {statistics.median(rates):,.0f} | {spread} | {cpu:,.0f} |")
    pairs = zip(samples["HTTP"], samples["gRPC"], strict=True)
    ratio = statistics.median(http.requests_per_second / rpc.requests_per_second for http, rpc in pairs)
    return "\n".join([*lines, "", f"HTTP answers {ratio:.2f} times as many requests per second as gRPC."])


if __name__ == "__main__":
    sys.exit(exit_code(main))
