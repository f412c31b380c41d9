"""Responses that carry a load report: on either path, whatever their status, only if asked."""

from pathlib import Path

import pytest

from service.observability.load import Load
from service.observability.load_reports import LoadReports
from service.serving.local import LocalPredictor
from tests.support.http import exchange, png, request
from tests.support.listener import listening
from tests.support.live import connected

NAME = "endpoint-load-metrics"
TEXT = "TEXT application_utilization:0.5,rps_fractional:100,eps:0.0"
ASKS = "endpoint-load-metrics-format: TEXT"
WHOLE = {
    "fast": request,
    "asgi": lambda extra="": request(png(7), kind="image/png", extra=extra),
    "chunked": lambda extra="": request(chunked=True, extra=extra),
    "probe": lambda extra="": (
        f"GET /v2/health/live HTTP/1.1\r\nHost: test\r\n{extra}{extra and chr(13) + chr(10)}\r\n".encode()
    ),
    "400": lambda extra="": request(b"no image", extra=extra),
}
TAKEN = [pytest.param(make, id=name) for name, make in WHOLE.items()]


def reports(*, always: bool = False) -> LoadReports:
    made = LoadReports(always=always)
    made.update(Load(work=0.5, requests_per_second=100))
    return made


@pytest.mark.parametrize("make", TAKEN)
async def test_a_report_comes_when_it_is_asked_for(
    predictor: LocalPredictor, tmp_path: Path, make: object
) -> None:
    current = reports()
    async with (
        listening(predictor, tmp_path, load_reports=current) as listener,
        connected(listener.port) as connection,
    ):
        assert NAME not in (await exchange(connection, make())).headers  # type: ignore[operator]
        asking = make(extra=ASKS)  # type: ignore[operator]
        assert (await exchange(connection, asking)).headers[NAME].replace("100.0", "100") == TEXT
        current.update(Load(work=0.75, requests_per_second=100))
        assert "utilization:0.75" in (await exchange(connection, asking)).headers[NAME]
        json = make(extra=ASKS.replace("TEXT", "json"))  # type: ignore[operator]
        assert (
            (await exchange(connection, json))
            .headers[NAME]
            .startswith('JSON {"application_utilization":0.75')
        )


@pytest.mark.parametrize("make", TAKEN)
async def test_reports_come_always_or_never_by_setting(
    predictor: LocalPredictor, tmp_path: Path, make: object
) -> None:
    for chosen, expected in ((reports(always=True), True), (None, False)):
        async with (
            listening(predictor, tmp_path, load_reports=chosen) as listener,
            connected(listener.port) as connection,
        ):
            for extra in ("", ASKS if chosen is None else ""):
                response = await exchange(connection, make(extra=extra))  # type: ignore[operator]
                assert (NAME in response.headers) is expected
