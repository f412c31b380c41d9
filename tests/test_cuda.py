"""CUDA's libraries, where there is no driver."""

from pathlib import Path

import pytest

from service import cuda
from service.errors import EngineError

HAS_GPU = Path("/dev/nvidiactl").exists()
no_driver = pytest.mark.skipif(HAS_GPU, reason="there is a driver here")


@no_driver
def test_libraries_that_are_missing_are_an_error_that_names_them() -> None:
    missing = (
        r"^libcublasLt\.so\.99, .*, libcuda\.so\.1 cannot be loaded \(.*No such file.*\), expected CUDA 99\.1"
    )
    with pytest.raises(EngineError, match=missing):
        cuda.load_libraries("99.1")
