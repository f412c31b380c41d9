"""A real Prometheus over the real service: its metrics, the rules and the dashboard's queries."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from loadtests.dashboard import Panel, Span, curves, number, panels, variables
from loadtests.panels import draw
from loadtests.prometheus import NotAnswered, NotListening, Prometheus, config, running
from tests.support.live import serving
from tests.support.models import (
    IMAGES,
    LABEL,
    PROBABILITIES,
    add_scored,
    first_pixel_classifier,
    ramp_generator,
    write_model,
    z_spec,
)

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "rules" / "inkserve.yaml"
PNG = (ROOT / "tests" / "digits" / "7.png").read_bytes()
DASHBOARD = ROOT / "helm" / "dashboards" / "inkserve.json"
LABELS = {"$namespace": "tests", "$job": "inkserve", "$pod": ".*", "$__rate_interval": "1m"}
NOT_HERE = ("inkserve_gpu_", "kube_", "container_")
"""Metrics of a GPU, and of Kubernetes, which tests/chart/test_dashboard.py invents."""
PATIENCE_SECONDS = 120

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")) and not os.environ.get("CI"),
    reason="Prometheus is missing: Debian's package prometheus has it",
)


def get(url: str, data: bytes | None = None) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(url, data), timeout=30) as response:
        return bytes(response.read())


def load(url: str) -> None:
    """A few requests of every kind, a wrong one among them."""
    for rows in (1, 3, 8):
        get(f"{url}/classify", bytes(784 * rows))
        get(f"{url}/classify", PNG)
        get(f"{url}/classify?model=scored", bytes(784 * rows))
        get(f"{url}/generate?count={rows}&verify=true")
    with pytest.raises(urllib.error.HTTPError, match="404") as missing:
        get(f"{url}/classify?model=nobody", bytes(784))
    missing.value.close()


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    classifier = {"task": "classification", "inputs": (IMAGES,), "outputs": (PROBABILITIES,)}
    generator = {"task": "generation", "inputs": (z_spec(), LABEL), "outputs": (IMAGES,)}
    write_model(folder, first_pixel_classifier(), name="first-pixel", **classifier)  # type: ignore[arg-type]
    add_scored(folder, "scored")
    write_model(folder, ramp_generator(), name="ramp", **generator)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="module")
def service(models_dir: Path) -> Iterator[str]:
    with serving("--models-dir", str(models_dir)) as service:
        yield f"http://127.0.0.1:{service.port}"


@pytest.fixture(scope="module")
def prometheus(service: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the service each second and evaluates the chart's rules."""
    labels = {"namespace": LABELS["$namespace"]}
    scraped = config(LABELS["$job"], service.removeprefix("http://"), labels, RULES)
    with running(tmp_path_factory.mktemp("prometheus"), scraped) as prometheus:
        yield prometheus


def wait_for(condition: Any) -> Any:
    """The first result that is true, asked for again and again."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (result := condition()) and time.monotonic() < until:
        time.sleep(0.2)
    return result


def has_data(prometheus: Prometheus, query: str) -> bool:
    """Whether a query gives a number now, at least one that is not NaN."""
    for name, value in LABELS.items():
        query = query.replace(name, value)
    return any(not math.isnan(line.values[0]) for line in prometheus.at(query))


def dashboards_queries() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


@pytest.mark.parametrize("workers", ["0", "1"])
def test_promtool_finds_nothing_wrong_with_a_scrape(models_dir: Path, workers: str) -> None:
    with serving("--models-dir", str(models_dir), "--workers", workers) as service:
        load(f"http://127.0.0.1:{service.port}")
        scrape = get(f"http://127.0.0.1:{service.port}/metrics")
    assert b"inkserve_good_requests_total" in scrape
    command = ["promtool", "check", "metrics"]
    checked = subprocess.run(command, input=scrape, capture_output=True, timeout=60, check=False)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_prometheus_stores_native_histograms_if_it_asks_for_them(
    models_dir: Path, tmp_path: Path, workers: str
) -> None:
    with serving("--models-dir", str(models_dir), "--workers", workers) as service:
        target = f"127.0.0.1:{service.port}"
        scraping = config("inkserve", target, {"namespace": "tests"}, RULES)
        with running(tmp_path, scraping, "--enable-feature=native-histograms") as prometheus:
            seen: dict[str, float] = {}

            def all_counted() -> bool:
                load(f"http://{target}")
                quantile = 'histogram_quantile(0.9, rate(inkserve_request_seconds{route="/classify"}[1m]))'
                count = 'histogram_count(inkserve_request_seconds{route="/classify"})'
                for name, query in (("quantile", quantile), ("count", count)):
                    for line in prometheus.at(query):
                        seen[name] = line.values[0]
                return len(seen) == 2 and not math.isnan(seen["quantile"])

            wait_for(all_counted)
            assert 0 < seen["quantile"] < 30
            assert seen["count"] >= 7
            assert (
                prometheus.at("inkserve_request_seconds_bucket") == []
            )  # the classic ones are not stored too


def test_every_query_of_the_dashboard_gives_data(service: str, prometheus: Prometheus) -> None:
    silent = dashboards_queries()
    assert len(silent) > 30
    elsewhere = [query for query in silent if any(name in query for name in NOT_HERE)]

    def all_speak() -> bool:
        load(service)
        silent[:] = [query for query in silent if not has_data(prometheus, query)]
        return len(silent) <= len(elsewhere)

    wait_for(all_speak)
    assert silent == elsewhere


def test_a_picture_shows_the_answers_to_every_panel(
    service: str, prometheus: Prometheus, tmp_path: Path
) -> None:
    values = variables(prometheus)
    assert values == {"namespace": LABELS["$namespace"], "job": LABELS["$job"], "pod": LABELS["$pod"]}
    start = time.time()

    def has_numbers(panel: Panel) -> bool:
        shown = Span(start, time.time(), 1)
        if panel.kind == "stat":
            figure = number(prometheus, panel, values, shown)
            return figure is not None and math.isfinite(figure)
        found = curves(prometheus, panel, values, shown)
        assert all(curve.name and "{" not in curve.name for curve in found)
        return any(math.isfinite(value) for curve in found for value in curve.line.values)

    silent = [panel for panel in panels() if panel.kind != "row"]
    elsewhere = ["Replicas", "CPU throttled", "Restarts", "GPU memory", "GPU utilisation"]

    def all_speak() -> bool:
        load(service)
        silent[:] = [panel for panel in silent if not has_numbers(panel)]
        return all(panel.title in elsewhere for panel in silent)

    wait_for(all_speak)
    assert [panel.title for panel in silent] == elsewhere
    draw(prometheus, Span(start, time.time(), 1), tmp_path / "dashboard.png")
    with Image.open(tmp_path / "dashboard.png") as picture:
        assert picture.size == (1488, 3076)  # 24 squares of 62 dots; 89 of 34 and a header of 50
        assert len(picture.convert("RGB").getcolors() or []) > 20


def test_prometheus_says_what_is_wrong_with_a_query_or_a_configuration(
    prometheus: Prometheus, tmp_path: Path
) -> None:
    with pytest.raises(NotAnswered, match="parse error"):
        prometheus.at("sum(")
    with pytest.raises(NotListening, match="not_a_field"), running(tmp_path, {"not_a_field": 1}):
        pass


def test_every_rule_is_evaluated_and_no_alert_is_raised(service: str, prometheus: Prometheus) -> None:
    rules: list[dict[str, Any]] = []

    def all_evaluated() -> bool:
        load(service)
        rules[:] = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
        return all(rule["health"] == "ok" for rule in rules)

    wait_for(all_evaluated)
    expected = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) == len(expected)
    assert {(rule["health"], rule.get("lastError", "")) for rule in rules} == {("ok", "")}
    # Before the first scrape the service is absent.
    assert wait_for(lambda: prometheus.ask("alerts")["alerts"] == [])
    recorded = [rule["record"] for rule in expected if "record" in rule]

    def all_recorded() -> bool:
        load(service)
        return all(has_data(prometheus, name) for name in recorded)

    assert wait_for(all_recorded)


def test_the_dashboard_is_what_its_script_writes() -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("grafana_foundation_sdk")
    script = "import runpy; print(end=runpy.run_path('helm/dashboards/inkserve.py')['build']())"
    written = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert written.stdout == DASHBOARD.read_text(), "make dashboard writes it anew"
