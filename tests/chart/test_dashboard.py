"""The dashboard, read from its JSON."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from loadtests.dashboard import FILE, NotUnderstood, Span, fill, panels
from service.observability.load import ROUTES
from tests.support.promtool import needs_promtool, promtool


def board(tmp_path: Path, **panel: Any) -> Path:
    file = tmp_path / "dashboard.json"
    shown = {"type": "timeseries", "title": "one", "gridPos": {"x": 0, "y": 0, "w": 8, "h": 8}, **panel}
    file.write_text(json.dumps({"panels": [shown]}))
    return file


def test_a_panel_is_read_with_its_place_queries_and_thresholds() -> None:
    found = {panel.title: panel for panel in panels() if panel.kind != "row"}
    burn = found["Error budget burn"]
    assert burn.place == (0, 6, 8, 8)
    assert [query.legend for query in burn.queries] == ["1h", "6h", "1d", "3d"]
    assert burn.thresholds == [(1, "yellow"), (6, "orange"), (14.4, "red")]
    assert found["Latency"].unit == "s"
    assert found["Latency"].thresholds == []


def test_every_graph_names_its_lines() -> None:
    graphs = [panel for panel in panels() if panel.kind == "timeseries"]
    assert graphs
    for panel in graphs:
        assert panel.has_legend, panel.title
        assert all(query.legend for query in panel.queries), panel.title


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        left, top, width, height = panel.place
        squares = {(x, y) for x in range(left, left + width) for y in range(top, top + height)}
        assert not squares & taken, panel.title
        assert left + width <= 24, panel.title
        taken |= squares


def test_an_unknown_kind_of_panel_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="panel one is a table"):
        panels(board(tmp_path, type="table"))


def test_a_variable_without_a_value_is_rejected() -> None:
    assert (
        fill('x{job="$job"}[$__rate_interval]', {"job": "a", "__rate_interval": "20s"}) == 'x{job="a"}[20s]'
    )
    with pytest.raises(NotUnderstood, match=r"\$pod"):
        fill('x{pod="$pod"}', {"job": "a"})


def test_the_requests_are_those_of_every_inference_route() -> None:
    queries = [query.expression for panel in panels() for query in panel.queries]
    selected = {found for query in queries for found in re.findall(r'route=~"(.*?)"', query)}
    assert selected == {"|".join(ROUTES)}


SERIES = {
    'inkserve_ready{namespace="n",job="j",instance="a"}': "1x60",
    'inkserve_ready{namespace="n",job="j",instance="b"}': "1x60",
    'inkserve_ready{namespace="n",job="j",instance="c"}': "0x60",
    # Batches run for 54 s of each minute in one pod, for 30 s in the other.
    'inkserve_batch_compute_seconds_sum{namespace="n",job="j",instance="a",model="m",version="1"}': "0+54x60",
    'inkserve_batch_compute_seconds_sum{namespace="n",job="j",instance="b",model="m",version="2"}': "0+30x60",
    # A new template at 30 minutes, and another number of replicas at 40.
    'kube_deployment_spec_replicas{namespace="n",deployment="j"}': "3x39 5x20",
    'kube_deployment_metadata_generation{namespace="n",deployment="j"}': "7x29 8x9 9x20",
    'inkserve_model_loads_total{namespace="n",job="j",model="m",result="loaded"}': "1x44 2x20",
    'kube_deployment_status_replicas_ready{namespace="n",deployment="j"}': "2x60",
    'kube_horizontalpodautoscaler_status_desired_replicas{namespace="n",horizontalpodautoscaler="j"}': "4x60",
    'kube_horizontalpodautoscaler_spec_max_replicas{namespace="n",horizontalpodautoscaler="keda-hpa-j"}': (
        "8x60"
    ),
    'container_cpu_cfs_periods_total{namespace="n",pod="j-1-a",container="inkserve"}': "0+600x60",
    'container_cpu_cfs_throttled_periods_total{namespace="n",pod="j-1-a",container="inkserve"}': "0+150x60",
    'container_cpu_cfs_periods_total{namespace="n",pod="j-1-a",container=""}': "0+600x60",
    'container_cpu_cfs_throttled_periods_total{namespace="n",pod="j-1-a",container=""}': "0+600x60",
    'kube_pod_container_resource_limits{namespace="n",pod="j-1-a",container="http",resource="cpu"}': "1x60",
    'kube_pod_container_resource_limits{namespace="n",pod="j-1-a",container="engine",resource="cpu"}': "2x60",
    'kube_pod_container_resource_limits{namespace="n",pod="j-1-a",container="a",resource="memory"}': "5x60",
    'kube_pod_container_resource_limits{namespace="n",pod="other",container="x",resource="cpu"}': "9x60",
    'kube_pod_container_status_restarts_total{namespace="n",pod="j-1-a",container="http"}': "0x30 2x30",
}
"""As the service, kube-state-metrics and the kubelet's cAdvisor name them."""


EXPECTED = [
    ("Device in use", "{{model}}", '{model="m"}', 0.7),  # of the two ready pods
    ("Replicas", "ready", "{}", 2),
    ("Replicas", "wanted", "{}", 3),
    ("Replicas", "autoscaler wants", "{}", 4),
    ("Replicas", "autoscaler's maximum", "{}", 8),
    ("CPU", "limit of a pod", "{}", 3),
    ("Memory", "limit of a pod", "{}", 5),
    ("CPU throttled", "{{pod}}", '{pod="j-1-a"}', 0.25),
]
VALUES = {"namespace": "n", "job": "j", "pod": ".*", "__rate_interval": "5m"}


@needs_promtool
def test_panels_compute_their_figures_from_several_pods_and_kubernetes(tmp_path: Path) -> None:
    queries = {(panel.title, query.legend): query.expression for panel in panels() for query in panel.queries}
    evaluate(
        tmp_path,
        [
            (fill(queries[title, legend], VALUES), "20m", [{"labels": labels, "value": value}])
            for title, legend, labels, value in EXPECTED
        ],
    )


@needs_promtool
def test_a_deployment_is_marked_and_a_change_of_replicas_is_not(tmp_path: Path) -> None:
    marks = {mark["name"]: mark["expr"] for mark in json.loads(FILE.read_text())["annotations"]["list"]}
    deployed, loaded = (fill(marks[name], VALUES) for name in ("Deployed", "Models loaded"))
    at = {"labels": '{namespace="n",deployment="j"}', "value": 1}
    evaluate(
        tmp_path,
        [
            (deployed, "20m", []),
            (deployed, "31m", [at]),
            (deployed, "36m", []),
            (deployed, "41m", []),
            (loaded, "31m", []),
            (loaded, "46m", [{"labels": '{model="m"}', "value": 1}]),
        ],
    )


def evaluate(tmp_path: Path, cases: Sequence[tuple[str, str, list[dict[str, Any]]]]) -> None:
    """Have promtool compare expressions at a time with the samples that they must give."""
    tests = [{"expr": query, "eval_time": at, "exp_samples": samples} for query, at, samples in cases]
    series = [{"series": name, "values": values} for name, values in SERIES.items()]
    file = tmp_path / "tests.yaml"
    file.write_text(
        json.dumps({"tests": [{"interval": "1m", "input_series": series, "promql_expr_test": tests}]})
    )
    promtool("test", "rules", file)


def test_a_rate_covers_four_scrapes() -> None:
    assert Span(0, 60, 5).rate_interval == "20s"
