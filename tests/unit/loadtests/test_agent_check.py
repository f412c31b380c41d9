"""The report of agent checks, and HAProxy's configuration."""

import json
from pathlib import Path

from loadtests.agent_check import BACKENDS, MOST_RATIO, RESULT, command_line, is_full_run, ratios, table
from loadtests.haproxy import Backend, Pod, configuration
from loadtests.service_process import ROOT


def result(**p99_seconds: tuple[float, ...]) -> dict[str, object]:
    """A result at one load, with these p99 by backend, one per round."""
    return {
        "seconds": 10.0,
        "rounds": [
            {
                "load": 0.6,
                "number": number,
                "backend": backend.name,
                "weights": [50 + number, 60, 20],
                "step": {
                    "offered_rate": 100.0,
                    "p50_seconds": 0.01,
                    "p99_seconds": p99_seconds[backend.name.replace("-", "_")][number],
                    "shed": 10 * number,
                    "failed": 0,
                },
            }
            for number in range(3)
            for backend in BACKENDS
        ],
    }


MEASURED = result(
    round_robin=(1.0, 2.0, 9.0),
    round_robin_agents=(0.1, 0.9, 0.2),
    least_connections=(0.3, 0.3, 0.3),
    least_connections_agents=(0.2, 0.2, 0.2),
)


def test_the_ratio_is_that_of_the_medians() -> None:
    assert ratios(MEASURED) == {0.6: 0.1}


def test_the_table_has_medians_and_the_range() -> None:
    rows = table(MEASURED).splitlines()[2:]
    assert rows[0] == "| 60% | round robin | 10.0 | 2,000 (1,000 to 9,000) | 1.0% | equal |"
    assert rows[1] == "| 60% | round robin, agent checks | 10.0 | 200 (100 to 900) | 1.0% | 51, 60, 20 |"


def test_only_a_run_of_full_length_is_published() -> None:
    assert is_full_run(command_line().parse_args([]))
    assert not is_full_run(command_line().parse_args(["--rounds", "1"]))


def test_only_a_backend_with_agents_checks_them() -> None:
    backends = [Backend("with", "leastconn", agents=True), Backend("without", "roundrobin", agents=False)]
    text = configuration(backends, [Pod(8000, 8001)], {"with": 1, "without": 2}, Path("/run/control"))
    first, second = text.split("listen ")[1:]
    assert "balance leastconn" in first
    assert "server pod1 127.0.0.1:8000 weight 100 check inter 1s agent-check agent-port 8001" in first
    assert "agent" not in second


def test_the_published_run_halves_the_p99_and_is_what_the_docs_show() -> None:
    published = json.loads(RESULT.read_text())
    assert all(ratio <= MOST_RATIO for ratio in ratios(published).values())
    assert table(published) in (ROOT / "docs" / "deployment.md").read_text()
