"""`.npy` files, and files that only pretend to be one."""

import io

import numpy as np
import pytest

from mtlora_jax.errors import UserError
from mtlora_jax.io import arrays

VALUES = np.arange(24).reshape(2, 3, 4)


def npy(array, version=None, **kwargs):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, version, **kwargs)
    return buffer.getvalue()


def header(text, body=b"", version=1):
    length = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + body


def lying(shape, descr="'<f4'", body=bytes(48)):
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n", body)


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", "<f8", "|u1", ">u2", "<i8", "|b1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_values_of_every_type_version_and_order(dtype, version, order):
    expected = np.asarray(VALUES % 2 if dtype == "|b1" else VALUES, dtype, order=order)
    read = arrays.read_npy(npy(expected, version), "x.npy", "numbers")
    np.testing.assert_array_equal(read, expected)
    assert read.dtype == expected.dtype.newbyteorder("=")
    assert read.flags.writeable
    assert read.flags.c_contiguous


def test_a_scalar_and_an_array_without_values():
    assert arrays.read_npy(npy(np.array(3.5)), "x.npy", "numbers") == 3.5
    assert arrays.read_npy(npy(np.zeros((0, 3))), "x.npy", "numbers").shape == (0, 3)


HOSTILE = {
    "terabytes": (
        lying("(1000000, 1000000)"),
        r"float32 of shape \(1000000, 1000000\) needs 4000000000000 bytes, but the file has 48",
    ),
    "more than a number can say": (lying(f"({10**30}, {10**30})"), "but the file has 48"),
    "of no values": (lying(f"(0, {10**30})", body=b""), ""),
    "too few": (lying("(2, 2)"), "needs 16 bytes, but the file has 48"),
    "cut off": (npy(VALUES)[:-1], "needs 192 bytes, but the file has 191"),
    "less than nothing": (lying("(-3, -4)"), r"shape \(-3, -4\)"),
    "too many dimensions": (lying("(" + "1, " * 70 + ")", body=bytes(4)), ""),
    "objects": (npy(np.array([{}], object), allow_pickle=True), r"it holds object of shape \(1,\)"),
    "objects that are none": (lying("(6,)", "'|O'"), "it holds object"),
    "complex": (npy(np.zeros(3, complex)), "it holds complex128"),
    "text": (npy(np.array(["a"])), "it holds <U1"),
    "times": (npy(np.zeros(3, "M8[s]")), "it holds datetime64"),
    "fields": (npy(np.zeros(3, [("a", "f4")])), "it holds "),
    "arrays in arrays": (lying("(3,)", "('<f4', (2, 2))"), "it holds "),
    "another version": (b"\x93NUMPY\x09\x00" + npy(VALUES)[8:], "version 9.0 of the format is not known"),
    "no array": (b"PK\x03\x04" + bytes(100), "magic"),
    "nothing": (b"", ""),
    "only the magic": (b"\x93NUMPY\x01\x00", ""),
    "a header of a gigabyte": (b"\x93NUMPY\x02\x00\x00\x00\x00\x40" + bytes(99), ""),
    "deep brackets": (header("[" * 900), ""),
    "deep signs": (header("-" * 900 + "1"), ""),
    "a long header": (header("-" * 60000 + "1"), ""),
    "no dictionary": (header("3"), ""),
    "no shape": (header("{'descr': '<f4', 'fortran_order': False, 'shape': 'x'}"), ""),
    "backslashes": (header(r"{'\i': 1}"), "correct keys"),  # about which Python's compiler warns
    "no type": (lying("(12,)", "'nothing'"), ""),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_array_of_numbers_is_one_line(case):
    data, reason = HOSTILE[case]
    with pytest.raises(
        UserError, match=rf"^x\.npy: cannot be read \(.*{reason}.*\); expected a NumPy array of metres$"
    ) as caught:
        arrays.read_npy(data, "x.npy", "a NumPy array of metres")
    assert len(str(caught.value)) < 500
