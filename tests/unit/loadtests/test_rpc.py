"""The comparison of gRPC and HTTP: its medians and its ratio."""

from loadtests.rpc import report
from loadtests.samples import Sample


def test_the_ratio_is_the_median_of_neighbouring_slices() -> None:
    samples = {
        "HTTP": [Sample(1e-4, 100.0), Sample(3e-4, 400.0), Sample(2e-4, 900.0)],
        "gRPC": [Sample(1e-3, 100.0), Sample(3e-3, 100.0), Sample(2e-3, 100.0)],
    }
    text = report(samples)
    assert "| HTTP | 400 | 100 to 900 | 200 |" in text
    assert "| gRPC | 100 | 100 to 100 | 2,000 |" in text
    assert "HTTP answers 4.00 times as many requests per second as gRPC." in text
