"""numpy's .npy files, as rows of a tensor."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.content.npy import npy_from_array, rows_from_npy
from service.errors import InkserveError, InvalidInput, PayloadTooLarge
from service.models.manifest import TensorSpec

PIXELS = TensorSpec(name="images", datatype="UINT8", shape=(-1, 2, 3))
LATENTS = TensorSpec(name="z", datatype="FP32", shape=(-1, 4))


@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i4", "<f4", ">f8", "<f2"])
@pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 2, 3), (5, 2, 3), (5, 6)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_rows_of_any_kind_of_number_and_order_are_read(
    dtype: str, shape: tuple[int, ...], order: str
) -> None:
    rows = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    ordered = np.asarray(rows, order="F" if order == "F" else "C")
    read = rows_from_npy(npy_from_array(ordered), PIXELS, 5)
    assert (read.dtype, read.shape[1:]) == (np.uint8, (2, 3))
    assert np.array_equal(read.ravel(), rows.ravel())


def test_what_is_written_is_read_again() -> None:
    z = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert np.array_equal(rows_from_npy(npy_from_array(z), LATENTS, 3), z)
    assert np.array_equal(np.load(io.BytesIO(npy_from_array(z))), z)


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "images is no .npy file of version 1, 2 or 3"),
        (b"\x93NUMPY\x04\x00" + bytes(200), "images is no .npy file of version 1, 2 or 3"),
        (b"\x93NUMPY\x01\x00\xff\xff{'descr': ", "with the header \"{'descr': \", expected an array"),
        (pickled(), "with the header \"{'descr': '|O'"),
        (npy_from_array(np.zeros((1, 6), bool)), "images is a .npy file of booleans, expected numbers"),
        (npy_from_array(np.zeros((1, 6), np.uint8)).replace(b"'|u1'", b"'<f1'"), "file of f1, expected"),
        (npy_from_array(np.zeros((1, 6), np.uint8))[:-1], "of uint8 [1, 6] with 5 bytes of data"),
        (npy_from_array(np.zeros((1, 6), np.uint8)) + b"x", "of uint8 [1, 6] with 7 bytes of data"),
        (
            npy_from_array(np.zeros((1, 7), np.uint8)),
            "images has shape [1, 7], expected rows of shape [2, 3]",
        ),
        (npy_from_array(np.zeros((0, 6), np.uint8)), "images has no rows"),
        (npy_from_array(np.full((2, 6), 256)), "images[0][0] is 256, expected a whole number in 0..255"),
        (npy_from_array(np.full((2, 6), 0.5)), "images[0][0] is 0.5, expected a whole number in 0..255"),
        (npy_from_array(np.full((2, 6), np.nan)), "images[0][0] is nan, expected a whole number"),
    ],
)
def test_what_the_tensor_cannot_hold_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InvalidInput) as raised:
        rows_from_npy(content, PIXELS, 5)
    assert message in str(raised.value)


def test_more_rows_than_allowed_are_too_many() -> None:
    with pytest.raises(PayloadTooLarge, match="images has 6 rows, expected at most 5"):
        rows_from_npy(npy_from_array(np.zeros((6, 6), np.uint8)), PIXELS, 5)


HEADERS = st.builds(
    lambda descr, fortran, shape: repr({"descr": descr, "fortran_order": fortran, "shape": shape}).encode(),
    st.sampled_from(["|u1", "<f4", "|O", "<U4", "<M8[s]", "|V6", "(3,)u1", [("a", "<f4")], 7, None]),
    st.sampled_from([True, False, None]),
    st.sampled_from([(1, 6), (-1, -6), (2**70, 6), (), "x", (True, 6), (6.0,), [1, 6]]),
)


@given(
    header=HEADERS | st.binary(max_size=80), data=st.binary(max_size=30), version=st.sampled_from([1, 2, 3])
)
def test_any_file_gives_rows_or_the_callers_error(header: bytes, data: bytes, version: int) -> None:
    size = len(header).to_bytes(2 if version == 1 else 4, "little")
    content = b"\x93NUMPY" + bytes([version, 0]) + size + header + data
    try:
        rows = rows_from_npy(content, PIXELS, 5)
    except InkserveError:
        return
    assert rows.shape[1:] == (2, 3)
