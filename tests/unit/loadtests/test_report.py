"""The report on a run against the peers, from made-up figures."""

from typing import Any

import pytest

from loadtests.peers import report


def server(rate: float, cpu_seconds: float = 1e-4) -> dict[str, Any]:
    point = {
        "requests_per_second": rate,
        "images_per_second": rate,
        "p50_seconds": 0.001,
        "p99_seconds": 0.004,
        "max_seconds": 0.01,
        "errors": 0,
        "cpu_seconds_per_request": cpu_seconds,
        "client_cpu_seconds_per_request": 1e-5,
    }
    points = {load: dict(point) for load in ("1", "16", "64", "256", "large")}
    return {"points": points, "rss_bytes": 120e6, "pss_bytes": 1e8, "processes": 1, "cold_start_seconds": 2.0}


def a_round(inkserve: float, batcher: float) -> dict[str, Any]:
    engine = {"images_per_second": 10_000.0, "p50_seconds": 0.0005, "cpu_seconds_per_image": 5e-5}
    return {
        "import_seconds": 1.2,
        "onnxruntime": {"1": dict(engine), "256": dict(engine)},
        "servers": {
            "asgi": server(30_000, cpu_seconds=4e-5),
            "inkserve": server(inkserve),
            "fastapi_batcher": server(batcher),
            "mosec": {"failed": "no wheel for this | platform"},
        },
    }


def a_result(*rounds: dict[str, Any]) -> dict[str, Any]:
    about = dict.fromkeys(("measured_at", "command", "commit", "cpu", "kernel", "python"), "x")
    return {
        "machine": {**about, "cores": 2, "load_average_before": 0.0, "packages": {}},
        "options": {"seconds": 1.0, "threads": 1},
        "servers": {"asgi": "a", "inkserve": "i", "fastapi_batcher": "b", "mosec": "m"},
        "rounds": list(rounds),
    }


def line(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def test_ratios_are_taken_within_a_round() -> None:
    # The machine was ten times as fast in the second round; the ratios are 2, 4 and 8.
    rounds = [a_round(2_000, 1_000), a_round(40_000, 10_000), a_round(8_000, 1_000)]
    text = report.markdown(a_result(*rounds))
    assert line(text, "| one image, 64 connections: times the hand-written").endswith(
        "| >= 3 | 4 (2 to 8) | pass |"
    )
    assert " | 8,000 (2,000 to 40,000) | " in line(text, "| inkserve |")


def test_the_bound_is_what_the_cores_can_do_at_the_least_cpu_time() -> None:
    bound = report.Round(a_round(10_000, 1_000), cores=2).bound()
    assert bound == pytest.approx(2 / (4e-5 + 5e-5 + 1e-5))


def test_a_peer_that_failed_stays_in_the_table_with_its_reason() -> None:
    text = report.markdown(a_result(a_round(2_000, 1_000)))
    assert line(text, "| mosec |").startswith("| mosec | m | failed: no wheel for this / platform |")


def test_a_figure_that_was_not_measured_is_neither_a_pass_nor_a_miss() -> None:
    text = report.markdown(a_result(a_round(2_000, 1_000)))
    assert line(text, "| int8 model").endswith("| >= 2 | not measured | |")


def test_one_error_in_any_round_is_a_miss() -> None:
    rounds = [a_round(2_000, 1_000) for _ in range(3)]
    rounds[1]["servers"]["inkserve"]["points"]["256"]["errors"] = 1
    text = report.markdown(a_result(*rounds))
    assert line(text, "| 256 connections: errors").endswith("| <= 0 | 1 (0 to 1) | miss |")
