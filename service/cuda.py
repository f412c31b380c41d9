"""CUDA's own libraries, asked directly where onnxruntime does not do so: are they there?

Knows nothing of sessions, models or batches.
"""

import ctypes

from service.errors import EngineError


def load_libraries(version: str) -> None:
    """Load what onnxruntime's CUDA provider needs of a version of CUDA, such as 13.0, and of the driver.

    It is linked to all but cuDNN, which it loads later (readelf, onnxruntime-gpu 1.31.1).
    Raises EngineError that names what is missing. onnxruntime itself would write it in lines of its own,
    and then take the CPU.
    """
    major = version.partition(".")[0]
    of_cuda = [f"lib{name}.so.{major}" for name in ("cublasLt", "cublas", "cudart")]
    problems = {}
    for name in (*of_cuda, "libcurand.so.10", "libcudnn.so.9", "libcuda.so.1"):
        try:
            ctypes.CDLL(name)
        except OSError as error:
            problems[name] = str(error)
    if problems:
        first = next(iter(problems.values()))
        raise EngineError(
            f"{', '.join(problems)} cannot be loaded ({first}), expected CUDA {version}, cuDNN 9, "
            "and NVIDIA's driver, which brings libcuda.so.1"
        )
