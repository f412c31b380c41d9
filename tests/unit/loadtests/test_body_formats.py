"""The comparison of body formats: every format means the same image, and the table's medians."""

import json

import numpy as np
import pytest

from loadtests.body_formats import FORMATS, Slice, report
from loadtests.peers.measure import images_of
from loadtests.peers.wire import V2_HEADER
from loadtests.samples import Sample


def test_the_table_has_medians_and_ratios_of_neighbours() -> None:
    slices = [
        Slice("raw", Sample(1e-6 * cost, rate), Sample(1e-6, before))
        for cost, rate, before in ((30, 300.0, 100.0), (10, 100.0, 100.0), (20, 200.0, 800.0))
    ]
    text = report([*slices, Slice("JSON", Sample(50e-6, 70.0), None)])
    assert "| raw | 200 | 100 to 300 | 20.0 | 1.00 |" in text
    assert "| JSON | 70 | 70 to 70 | 50.0 |  |" in text


@pytest.mark.parametrize("name", [name for name in FORMATS if name.startswith("tensors")])
def test_an_answer_is_read_in_either_form(name: str) -> None:
    """The first ten numbers are the probabilities, whatever follows them."""
    row, wire = np.arange(10, dtype=np.float32), FORMATS[name].wire
    output = {"name": "probabilities", "shape": [1, 10], "datatype": "FP32"}
    in_json = json.dumps({"outputs": [output | {"data": row.tolist()}]}).encode()
    head = json.dumps({"outputs": [output | {"parameters": {"binary_data_size": 40}}]}).encode()
    seen = [wire.decode({V2_HEADER.lower(): f"{len(head)}"}, head + row.tobytes())]
    if "behind" not in name:
        seen.append(wire.decode({}, in_json))
    assert all((each == row).all() for each in seen)
    body, headers = wire.encode(images_of(1))
    assert headers.get(V2_HEADER, "0").isdigit()
    assert body
