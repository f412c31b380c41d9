"""Load reports, read as Envoy reads them."""

import math

import orjson
from hypothesis import given
from hypothesis import strategies as st

from service.observability.load import IDLE, Load
from service.observability.load_reports import LoadReports, to_json, to_text

KNOWN = {"application_utilization", "cpu_utilization", "mem_utilization", "eps", "rps_fractional"}


def read_text(value: bytes) -> dict[str, float]:
    """Read a header as Envoy's `parseOrcaLoadReportHeaders` does: any fault rejects the whole report."""
    text = value.decode("ascii")
    assert text.startswith("TEXT ")
    fields: dict[str, float] = {}
    for entry in text.removeprefix("TEXT ").split(","):
        name, _, number = entry.strip().partition(":")
        assert name in KNOWN or name.removeprefix("named_metrics.") not in ("", name), name
        assert name not in fields, f"contains duplicate metric: {name}"
        fields[name] = float(number)
        assert math.isfinite(fields[name])
    return fields


def weight(fields: dict[str, float], penalty: float = 1.0) -> float:
    """The weight of a host, from `calculateWeightFromOrcaReport`."""
    rate = fields["rps_fractional"]
    assert rate > 0, "QPS must be positive"
    utilization = fields["application_utilization"] + penalty * fields["eps"] / rate
    assert utilization > 0, "Utilization must be positive"
    return rate / utilization


SHARES = st.floats(0, 1)
RATES = st.floats(0, 1e7)
LOADS = st.builds(Load, SHARES, SHARES, SHARES, RATES, RATES)


@given(LOADS)
def test_envoy_reads_every_report_and_gives_a_weight(load: Load) -> None:
    fields = read_text(to_text(load))
    assert weight(fields) > 0
    assert to_json(load).startswith(b"JSON ")
    assert orjson.loads(to_json(load).removeprefix(b"JSON ")) == fields


def test_a_report_has_the_load_the_rate_and_the_errors() -> None:
    assert to_text(Load(0.5, 0.01, 0.02, 1234.5, 12.25)) == (
        b"TEXT application_utilization:0.8,rps_fractional:1234.5,eps:12.25"
    )


def test_an_idle_pod_has_a_weight() -> None:
    assert to_text(IDLE) == b"TEXT application_utilization:0.001,rps_fractional:0.2,eps:0.0"


def test_utilization_passes_1_with_a_queue_before_anything_is_shed() -> None:
    assert read_text(to_text(Load(work=0.95, queued=64 / 512)))["application_utilization"] > 1


def test_a_pod_that_sheds_fast_weighs_less_than_one_that_serves() -> None:
    serves = Load(work=0.9, requests_per_second=1000)
    sheds = Load(work=0.9, shed=0.9, requests_per_second=10_000, errors_per_second=9000)
    # It ends ten times as many requests, nine of ten with 429: what it serves is the same.
    assert weight(read_text(to_text(sheds))) < 10 * weight(read_text(to_text(serves))) / 3


def test_a_report_is_given_as_it_is_asked_for() -> None:
    asks = b"endpoint-load-metrics-format"
    reports, always = LoadReports(), LoadReports(always=True)
    for value, expected in ((b"TEXT", "text"), (b"text", "text"), (b"JSON", "json")):
        assert reports.format_for({asks: value}) == always.format_for({asks: value}) == expected
    assert reports.format_for({}) is reports.format_for({asks: b"BIN"}) is None
    assert always.format_for({}) == always.format_for({asks: b"BIN"}) == "text"


def test_an_update_replaces_the_report() -> None:
    reports = LoadReports()
    reports.update(Load(work=0.25))
    assert read_text(reports.values["text"])["application_utilization"] == 0.25
    assert reports.lines["json"] == b"endpoint-load-metrics: " + reports.values["json"] + b"\r\n"
