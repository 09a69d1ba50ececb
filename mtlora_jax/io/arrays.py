"""Reads `.npy` files. Checks the header against the file size before allocating anything."""

import io
import math
import warnings

import numpy as np

from mtlora_jax.errors import UserError
from mtlora_jax.io import files

MAX_HEADER_BYTES = 1000  # a 3-D array has 118. Headers are parsed as Python, which deep brackets would stall
HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
    (3, 0): np.lib.format.read_array_header_2_0,  # differs only in the letters of field names, which are refused here
}


def read_npy(data: bytes, source: str, expected: str) -> np.ndarray:
    """Read an array of real numbers or booleans from the bytes of a `.npy` file.

    Args:
      data: the bytes of the file.
      source: its name in messages.
      expected: in messages, what it should be.

    Returns:
      An array of any shape, writable, in C order and native byte order.

    Raises:
      UserError: for another kind of file, a header that does not fit the size, and for objects, texts, times, records
        and complex numbers.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of Python's compiler about a damaged header
            return _read(data)
    except Exception as error:  # the header is parsed as Python: it can fail in any way
        raise UserError(f"{source}: cannot be read ({files.describe_error(error)}); expected {expected}") from error


def _read(data: bytes) -> np.ndarray:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version not in HEADERS:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not known")
    shape, fortran_order, dtype = HEADERS[version](stream, max_header_size=MAX_HEADER_BYTES)
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype} of shape {shape}")
    found, needed = len(data) - stream.tell(), math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or found != needed:
        raise ValueError(f"{dtype} of shape {shape} needs {needed} bytes, but the file has {found}")
    array = np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran_order else "C")
    return np.array(array, dtype.newbyteorder("="), order="C")
