"""Reads and writes safetensors files; refuses tensors that are not finite floats."""

import pathlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  (adds bfloat16 and the 8-bit floats to numpy, which safetensors then returns)
import numpy as np
import safetensors
import safetensors.numpy

from mtlora_jax.errors import UserError
from mtlora_jax.io import files


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read {name: float32 array}. Raises UserError if the file cannot be read or not all values are finite floats."""
    return {name: to_finite_float32(array, f"{path}: {name}") for name, array in read_tensors(path).items()}


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Read {name: array} with the stored dtypes. Raises UserError if the file cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} cannot be read: no such file")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read: not a readable safetensors file ({files.describe_error(error)})"
        ) from error


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a safetensors file. Raises UserError if it cannot be written."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(contiguous, path, {"format": "mtlora_jax"})
        path.chmod(0o644)  # the library creates it private
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({files.describe_error(error)})") from error


def to_finite_float32(array: np.ndarray, name: str) -> np.ndarray:
    """Convert a tensor to float32. Raises UserError naming it unless it holds floats that are finite as float32."""
    if not is_float(array.dtype):
        raise UserError(f"{name} is {array.dtype}; weights must be floats")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        bad = array[~np.isfinite(values)]
        raise UserError(f"{name} has {bad.size} values that are not finite, such as {bad[0]:g}; weights must be")
    return values


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a real float. numpy does not count bfloat16 and the 8-bit floats as such."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def check(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Convert arrays from another source to finite float32, as `read` does. Raises UserError naming `source`."""
    return {name: to_finite_float32(np.asarray(array), f"{source}: {name}") for name, array in arrays.items()}
