"""The dashboard's picture: the format of figures, and whether the committed picture shows this dashboard."""

import pytest
from PIL import Image

from loadtests.dashboard import panels
from loadtests.dashboard_picture import PICTURE
from loadtests.panels import say, titles


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0, "none", "0"),
        (1234.5, "none", "1,234"),
        (0.25, "percentunit", "25 %"),
        (12.345, "reqps", "12.3 req/s"),
        (0, "s", "0 s"),
        (0.00045, "s", "450 µs"),
        (0.0123, "s", "12.3 ms"),
        (2.5, "s", "2.5 s"),
        (0, "bytes", "0 B"),
        (200 * 1024**2, "bytes", "200 MiB"),
        (1.5 * 1024**3, "bytes", "1.5 GiB"),
    ],
)
def test_a_figure_is_formatted_with_its_unit(value: float, unit: str, text: str) -> None:
    assert say(value, unit) == text


def test_every_unit_of_the_dashboard_is_known() -> None:
    assert all(say(1, panel.unit) for panel in panels())


def test_the_committed_picture_shows_every_panel() -> None:
    with Image.open(PICTURE) as picture:
        assert picture.info["Panels"] == titles(panels()), "make dashboard-picture draws it anew"
    assert PICTURE.stat().st_size < 400_000
