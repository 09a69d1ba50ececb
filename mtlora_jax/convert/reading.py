"""Reads tensors off files of strangers without running anything that is in them."""

import pathlib
import pickle
import re
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from mtlora_jax.errors import UserError

IN_DIRECTORY = ("model.safetensors", "pytorch_model.bin")  # looked for in this order
WRAPPERS = ("model", "state_dict")  # entries of a training checkpoint that hold the state dict


class Checkpoint(NamedTuple):
    path: pathlib.Path  # the file
    state: dict[str, np.ndarray]  # key -> tensor; floating point as float32
    config: Mapping[str, Any]  # what a training checkpoint says of itself; empty otherwise


def read(source: str | pathlib.Path) -> Checkpoint:
    """Reads `source`, a `.safetensors`, `.pth`, `.pt` or `.bin` file or a directory with one.

    Raises UserError for what is not there, not a checkpoint, damaged, empty, or asks to run code.
    """
    path = locate(pathlib.Path(source))
    reader = READERS.get(path.suffix)
    if reader is None:
        raise UserError(f"{path}: unknown kind of file, expected one of {', '.join(READERS)}")
    state, config = reader(path)
    if not state:
        raise UserError(f"{path}: holds no tensors")
    if all(key.startswith("module.") for key in state):  # saved from inside DistributedDataParallel
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return Checkpoint(path, state, config)


def locate(source: pathlib.Path) -> pathlib.Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such file or directory")
    found = next((source / name for name in IN_DIRECTORY if (source / name).is_file()), None)
    if found is None:
        raise UserError(f"{source}: the directory holds neither {' nor '.join(IN_DIRECTORY)}")
    return found


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    import ml_dtypes  # noqa: F401  (teaches numpy bfloat16, which safetensors then returns)

    try:
        arrays = safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({first_line(error)})") from None
    return {key: as_float32(value) for key, value in arrays.items()}, {}


def as_float32(x: np.ndarray) -> np.ndarray:
    """Integers stay as they are; numpy does not count bfloat16 among its floats."""
    return x if x.dtype.kind in "iub" else x.astype(np.float32, copy=False)


class ConfigNode:
    """Stands in for `yacs.config.CfgNode`: the unpickler of PyTorch fills plain dictionaries only, so creating one gives that."""

    def __new__(cls) -> OrderedDict:
        return OrderedDict()


def harmless() -> list:
    """What a training checkpoint of the reference holds besides tensors: its configuration, and scores as numpy numbers."""
    from numpy._core.multiarray import scalar

    return [
        (ConfigNode, "yacs.config.CfgNode"),
        (scalar, "numpy.core.multiarray.scalar"),
        (scalar, "numpy._core.multiarray.scalar"),
        np.dtype,
        *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
    ]


def read_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], Mapping[str, Any]]:
    try:
        import torch
    except ImportError:
        raise UserError(f"{path}: reading this needs PyTorch, install it with: pip install 'mtlora_jax[convert]'") from None
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(harmless()):
            # Only the tensors that are wanted are read where the format allows it; the optimizer is twice as large as the model.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged or hostile pickle can raise anything
        if not isinstance(error, pickle.UnpicklingError):
            raise UserError(f"{path}: damaged, or not a PyTorch checkpoint ({type(error).__name__}: {first_line(error)})") from None
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # the rest of this message advises to load the file without protection
        what = f"asks to load {named[1]}" if named else "is not a pickle as PyTorch writes it"
        raise UserError(f"{path}: refused, for it {what}, and only tensors and plain values are loaded") from None
    state, config = unwrap(path, content)
    return {key: from_torch(path, key, value) for key, value in state.items()}, config


def unwrap(path: pathlib.Path, content: Any) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The state dict and the configuration of a training checkpoint or of a bare state dict."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}, expected a state dict or a training checkpoint with one")
    state = next((content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping)), content)
    config = content.get("config")
    return state, config if isinstance(config, Mapping) else {}


def from_torch(path: pathlib.Path, key: str, value: Any) -> np.ndarray:
    import torch

    if not isinstance(value, torch.Tensor):
        raise UserError(f"{path}: {key} is a {type(value).__name__}, not a tensor; expected a state dict")
    try:
        return (value.detach().float() if value.is_floating_point() else value.detach()).numpy()
    except (RuntimeError, TypeError) as error:
        raise UserError(f"{path}: {key} cannot be read as an array ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


READERS = {".safetensors": read_safetensors, ".pth": read_torch, ".pt": read_torch, ".bin": read_torch}
