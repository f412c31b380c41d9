"""The dashboard, read from its JSON."""

import json
from pathlib import Path
from typing import Any

import pytest

from loadtests.dashboard import NotUnderstood, Span, fill, panels


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
    with pytest.raises(NotUnderstood, match="panel one is a heatmap"):
        panels(board(tmp_path, type="heatmap"))


def test_a_variable_without_a_value_is_rejected() -> None:
    assert (
        fill('x{job="$job"}[$__rate_interval]', {"job": "a", "__rate_interval": "20s"}) == 'x{job="a"}[20s]'
    )
    with pytest.raises(NotUnderstood, match=r"\$pod"):
        fill('x{pod="$pod"}', {"job": "a"})


def test_a_rate_covers_four_scrapes() -> None:
    assert Span(0, 60, 5).rate_interval == "20s"
