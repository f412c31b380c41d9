"""The alerts and recording rules, evaluated by Prometheus's promtool on invented series."""

import re
from pathlib import Path

import pytest
import yaml

from loadtests.dashboard import panels
from service.observability.metrics import LATENCY_OBJECTIVE_SECONDS, Metrics
from tests.support.promtool import needs_promtool, promtool

ROOT = Path(__file__).parents[2]
RULES = ROOT / "helm" / "rules" / "inkserve.yaml"
TESTS = sorted((ROOT / "tests" / "chart" / "rules").glob("*.yaml"))


@needs_promtool
def test_promtool_reads_every_rule() -> None:
    count = sum(len(group["rules"]) for group in yaml.safe_load(RULES.read_text())["groups"])
    assert f"SUCCESS: {count} rules found" in promtool("check", "rules", RULES)


@needs_promtool
@pytest.mark.parametrize("file", TESTS, ids=lambda file: file.stem)
def test_alerts_fire_exactly_when_they_should(file: Path) -> None:
    promtool("test", "rules", file)


def test_every_alert_has_a_firing_case() -> None:
    alerts = {
        rule["alert"]
        for group in yaml.safe_load(RULES.read_text())["groups"]
        for rule in group["rules"]
        if "alert" in rule
    }
    fired = {
        case["alertname"]
        for file in TESTS
        for test in yaml.safe_load(file.read_text())["tests"]
        for case in test.get("alert_rule_test", [])
        if case.get("exp_alerts")
    }
    assert alerts == fired


def test_the_rules_use_only_the_services_metrics_and_labels() -> None:
    families = {family.name: family for family in Metrics().registry.collect()}
    labels = {
        "inkserve_requests": {"route", "model", "status"},
        "inkserve_rejected_requests": {"model", "reason"},
        "inkserve_request_seconds": {"route", "le"},
        "inkserve_queue_seconds": {"model", "version", "le"},
        "inkserve_gpu_memory_used_bytes": {"gpu"},
        "inkserve_gpu_memory_total_bytes": {"gpu"},
        "inkserve_batch_failures": {"model", "version"},
        "inkserve_abstained": {"model", "version"},
        "inkserve_rows": {"model", "version"},
        "inkserve_model_loads": {"model", "result"},
    }
    selectors = re.findall(r"\b(inkserve_\w+)\{([^}]*)\}", re.sub(r"job:\w+\{", "", RULES.read_text()))
    assert selectors
    for metric, selector in selectors:
        family = re.sub(r"_(total|bucket|count|sum)$", "", metric)
        assert family in families or family.startswith("inkserve_gpu_"), metric  # which need a GPU
        used = set(re.findall(r"(\w+)(?:=~|!=|!~|=)", selector)) - {"job", "namespace"}
        assert used <= labels[family], metric


def test_docs_rules_and_dashboards_use_only_documented_metrics() -> None:
    document = (ROOT / "docs" / "observability.md").read_text()
    documented = set(
        re.findall(r"^\| `(inkserve_\w+)`", document, re.MULTILINE)
    )  # another test compares this table with the service
    recorded = {"inkserve_request_errors", "inkserve_shed_requests", "inkserve_slow_requests"}
    files = [
        *(ROOT / "docs").glob("*.md"),
        ROOT / "README.md",
        RULES,
        *(ROOT / "helm" / "dashboards").glob("*.json"),
        *(ROOT / "helm" / "templates").rglob("*.yaml"),
    ]
    named = {name for file in files for name in re.findall(r"\binkserve_\w+", file.read_text())}
    assert len(named) > 20
    parts = {name for name in named if name not in documented}
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in parts} - recorded <= documented


def test_every_alert_leads_to_its_own_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "docs" / "runbooks.md").read_text(), re.MULTILINE)
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    urls = {rule["alert"]: rule["annotations"]["runbook_url"] for rule in rules if "alert" in rule}
    assert urls == {name: f"docs/runbooks.md#{name.lower()}" for name in headings}


def test_every_runbook_says_what_to_look_at_and_names_panels_that_exist() -> None:
    _, *sections = (ROOT / "docs" / "runbooks.md").read_text().split("\n## ")
    titles = {panel.title for panel in panels()}
    for section in sections:
        assert {"**Means**", "**Look at**"} <= set(re.findall(r"\*\*(?:Means|Look at)\*\*", section)), section
        assert re.search(r"\*\*(Do|do)\*\*", section), section
        named = re.findall(r"(?<!\*)\*([A-Z][^*\n]+)\*(?!\*)", section)
        assert set(named) <= titles, section


def test_the_latency_objective_is_a_bucket_of_the_histogram() -> None:
    metrics = Metrics()
    metrics.requests.of("/classify", "mlp", 200).add(0.1)
    bounds = {
        sample.labels["le"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == "inkserve_request_seconds_bucket"
    }
    (objective,) = set(re.findall(r'le="([^"]+)"', RULES.read_text()))
    assert objective in bounds
    assert float(objective) == LATENCY_OBJECTIVE_SECONDS
