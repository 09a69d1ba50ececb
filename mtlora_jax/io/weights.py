"""Reads and writes safetensors files, and refuses tensors that are not finite floats. Nothing else opens such files."""

import pathlib
from collections.abc import Mapping

import ml_dtypes  # noqa: F401  (teaches numpy bfloat16 and the types of 8 bits, which safetensors then returns)
import numpy as np
import safetensors
import safetensors.numpy

from mtlora_jax.errors import UserError
from mtlora_jax.io import files


def read(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: float32 array} of a safetensors file. Raises UserError if it cannot be read or holds anything but finite floats."""
    return {name: finite_float32(array, f"{path}: {name}") for name, array in read_tensors(path).items()}


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """{name: array} of a safetensors file with whatever types it has. Raises UserError if it cannot be read."""
    if not path.is_file():
        raise UserError(f"{path} cannot be read: no such file")
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{path} cannot be read: not a readable safetensors file ({files.reason_of(error)})") from error


def write(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes a safetensors file. Raises UserError if it cannot be written."""
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        safetensors.numpy.save_file(contiguous, path, {"format": "mtlora_jax"})
        path.chmod(0o644)  # the library makes it private
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be written ({files.reason_of(error)})") from error


def finite_float32(array: np.ndarray, name: str) -> np.ndarray:
    """A tensor as float32. Raises UserError naming it unless its values are real floats, all finite as float32."""
    if not is_float(array.dtype):
        raise UserError(f"{name} is {array.dtype}; weights must be floats")
    with np.errstate(over="ignore"):
        values = array.astype(np.float32, copy=False)
    if not np.isfinite(values).all():
        odd = values[~np.isfinite(values)]
        raise UserError(f"{name} has {odd.size} values that are not finite, such as {array[~np.isfinite(values)][0]:g}; weights must be")
    return values


def is_float(dtype: np.dtype) -> bool:
    """Whether a dtype is a real float. numpy does not count bfloat16 and the 8-bit floats as such."""
    return dtype.kind == "f" or dtype.name.startswith(("bfloat", "float"))


def check(arrays: Mapping[str, np.ndarray], source: str) -> dict[str, np.ndarray]:
    """Arrays that were read otherwise, as `read` gives them."""
    return {name: finite_float32(np.asarray(array), f"{source}: {name}") for name, array in arrays.items()}
