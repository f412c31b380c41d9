"""The comparison of CPU time per request: its ratios, its limits and its table."""

from pathlib import Path

import pytest

from loadtests.fast_path import DEFAULT, Configuration, main, missed, ratio, report
from loadtests.samples import Sample

LOG = Configuration("log", ["--access-log"], limit=1.3)
OTHER = Configuration("default at abc", directory=Path("/elsewhere"))


def slices(*costs: tuple[float, float]) -> list[dict[str, Sample]]:
    """Slices of the default's and the other configuration's CPU microseconds."""
    return [
        {DEFAULT: Sample(1e-6 * default, 20_000.0), LOG.name: Sample(1e-6 * log, 15_000.0)}
        for default, log in costs
    ]


def test_a_ratio_is_the_median_of_the_slices_ratios() -> None:
    # The ratio of the medians, 60 over 50, would be 1.2.
    assert ratio(slices((50, 55), (40, 60), (100, 110)), LOG.name) == pytest.approx(1.1)


@pytest.mark.parametrize(("cost", "names"), [(64, []), (66, ["log"])])
def test_a_configuration_above_its_limit_is_missed(cost: float, names: list[str]) -> None:
    assert missed([Configuration(DEFAULT), LOG], slices((50, cost))) == names


def test_the_report_names_the_verdict_and_the_other_checkout() -> None:
    seen = [{**each, OTHER.name: Sample(100e-6, 9_000.0)} for each in slices((50, 66))]
    text = report([Configuration(DEFAULT), LOG, OTHER], seen)
    assert "| log | 66.0 | 66.0 to 66.0 | 15,000 | 1.320 | 1.3 | miss |" in text
    assert "The default here takes 0.500 times the CPU time of the default at abc." in text


def test_a_folder_that_is_no_checkout_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["--against", str(tmp_path)])
    assert raised.value.code == 2
    assert "holds no service/__main__.py" in capsys.readouterr().err
