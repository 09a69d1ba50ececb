"""Reads `.npy` files: their headers are checked against the bytes that are there before anything is allocated."""

import io
import math
import warnings

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

LARGEST_HEADER = 1000  # bytes; that of an array of three dimensions has 118. It is parsed as Python, which deep brackets would stall
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs in the letters of field names, and no array here has fields
}


def read_npy(data: bytes, source: str, expected: str) -> np.ndarray:
    """The array of a `.npy` file whose bytes are `data`: real numbers or booleans of any shape, writable, C order, native byte order.

    Raises UserError naming `source` and what was `expected`, for a file of another kind, one whose header does not tell the bytes that
    follow, and for objects, texts, times, records and complex numbers.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python's compiler, about whatever stands in place of a header
            return _read(data)
    except Exception as error:  # the header is parsed as Python: it can fail in any way
        raise UserError(f"{source}: cannot be read ({files.reason_of(error)}); expected {expected}") from error


def _read(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    shape, fortran_order, dtype = HEADERS[version](stream, max_header_size=LARGEST_HEADER)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype} of shape {shape}")
    there, told = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or there != told:
        raise ValueError(f"{dtype} of shape {shape} has {told} bytes, but {there} are there")
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")
