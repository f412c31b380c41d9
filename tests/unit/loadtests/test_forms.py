"""The page's figures of one process, workers and several services on a GPU."""

from pathlib import Path

from PIL import Image

from loadtests import forms

ROOT = Path(__file__).resolve().parents[3]


def test_the_page_has_the_table_of_the_figures() -> None:
    seen = forms.read()
    assert forms.table(seen) in (ROOT / "docs" / "performance.md").read_text()
    gpu = (ROOT / "docs" / "gpu.md").read_text()
    assert seen.commit in gpu
    for rates in seen.rates.values():
        assert all(f"{rate:,}" in gpu for rate in rates.values())


def test_the_picture_is_drawn_from_them(tmp_path: Path) -> None:
    picture = tmp_path / "forms.png"
    forms.draw(forms.read(), picture)
    with Image.open(picture) as drawn, Image.open(forms.PICTURE) as shown:
        assert drawn.size == shown.size
