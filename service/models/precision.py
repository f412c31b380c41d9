"""What a graph computes in, as its weights tell. Nothing runs."""

import math
import mmap
from pathlib import Path

from service.models.protobuf import message_of, messages_of, number_of, numbers_of

_GRAPH, _INITIALIZERS, _SIZES, _DATATYPE = 7, 5, 1, 2
"""The fields of ModelProto, GraphProto and TensorProto that are read here, by number."""

_FLOAT32, _FLOAT16 = 1, 10
"""TensorProto's numbers for these datatypes."""


def is_float16(path: Path) -> bool:
    """Whether more of a graph's weights are float16 than float32.

    False if the file is no ONNX graph in protobuf: onnxruntime opens other formats too.
    """
    counts = {_FLOAT32: 0, _FLOAT16: 0}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for weights in messages_of(data, message_of(data, range(len(data)), _GRAPH), _INITIALIZERS):
                datatype = number_of(data, weights, _DATATYPE)
                if datatype in counts:
                    counts[datatype] += math.prod(numbers_of(data, weights, _SIZES))
    except ValueError:
        return False
    return counts[_FLOAT16] > counts[_FLOAT32]
