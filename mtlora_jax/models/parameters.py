"""Parameters of a model by name: converts between modules, flat dicts and files."""

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtlora_jax.errors import UserError

Flat = dict[str, jax.Array]
PRECISIONS = ("float32", "bfloat16")


def flat_variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """Return {path: variable} of all parameters and batch statistics.

    A path is the names of the attributes, joined by dots.
    """
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def host_arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return {path: NumPy array} of all parameters and batch statistics."""
    on_device = {path: variable[...] for path, variable in flat_variables(model).items()}
    return {path: np.asarray(value) for path, value in jax.device_get(on_device).items()}


def partition(
    model: nnx.Module, trainable: Callable[[str, nnx.Variable], bool]
) -> tuple[nnx.GraphDef, Flat, Flat, Flat]:
    """Split a filled model into (graph, trainable, frozen, batch statistics).

    The last three are plain dicts {path: array}. `bind` makes a model of them again.
    """
    parts: tuple[Flat, Flat, Flat] = ({}, {}, {})
    for path, variable in flat_variables(model).items():
        part = 2 if isinstance(variable, nnx.BatchStat) else 0 if trainable(path, variable) else 1
        parts[part][path] = variable.get_value()
    return nnx.graphdef(model), *parts


def bind(graph: nnx.GraphDef, *parts: Flat) -> Any:
    """Build the model from its graph and all of its arrays; works inside `jax.jit` and `jax.grad`."""
    flat = {path: value for part in parts for path, value in part.items()}
    keys = {path: tuple(int(key) if key.isdigit() else key for key in path.split(".")) for path in flat}
    return nnx.merge(graph, nnx.from_flat_state([(keys[path], value) for path, value in flat.items()]))


def cast_matrices(values: Flat, dtype: str) -> Flat:
    """Cast the values with two axes or more to `dtype`, one of `PRECISIONS`.

    Vectors (biases, scales of norms) keep their dtype: they take little memory. Raises UserError for another dtype.
    """
    if dtype not in PRECISIONS:
        raise UserError(f"frozen_dtype = {dtype!r} is not one of {', '.join(PRECISIONS)}")
    return {path: value.astype(dtype) if value.ndim > 1 else value for path, value in values.items()}


def batch_statistics(model: nnx.Module) -> Flat:
    """Return {path: array} of the BatchNorm statistics."""
    return {path: v[...] for path, v in flat_variables(model).items() if isinstance(v, nnx.BatchStat)}


def list_keys(keys: list[str]) -> str:
    """Format keys for an error message: the first ten, shortened where they are long, then their number."""
    shown = [key if len(key) <= 100 else f"{key[:100]}..." for key in keys[:10]]
    return f"{', '.join(shown)}{', ...' if len(keys) > 10 else ''} ({len(keys)})"


def initialise(model: nnx.Module, seed: int) -> None:
    """Give every variable without a value its initial one, in place.

    A value depends only on the seed and the path of the variable: adding, dropping or reordering tasks changes no
    other weight.
    """
    for path, variable in flat_variables(model).items():
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct):
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            variable.set_value(jnp.asarray(variable.init(rng, variable.shape)))


def assign(
    model: nnx.Module,
    values: Mapping[str, Any],
    source: str,
    may_miss: Callable[[str, nnx.Variable], bool] = lambda path, variable: False,
) -> list[str]:
    """Assign arrays to the variables of a model, in place; unless all of them fit, nothing is assigned.

    Args:
      model: filled, or only declared.
      values: {path: array}.
      source: where they come from, for error messages.
      may_miss: whether a variable may be missing from `values`; it then keeps what the model has.

    Returns:
      The paths that were missing and kept.

    Raises:
      UserError: keys are missing, left over or of another shape; the message lists them.
    """
    own = flat_variables(model)
    missing = [path for path in own if path not in values]
    refused = [path for path in missing if not may_miss(path, own[path])]
    extra = [path for path in values if path not in own]
    shapes = [
        f"{path} {tuple(values[path].shape)} instead of {tuple(own[path].shape)}"
        for path in own
        if path in values and tuple(values[path].shape) != tuple(own[path].shape)
    ]
    problems = {"missing": refused, "left over": extra, "of another shape": shapes}
    told = [f"{what}: {list_keys(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise UserError(f"{source} does not fit the model; {'; '.join(told)}")
    for path, variable in own.items():
        if path in values:
            variable.set_value(jnp.asarray(values[path], variable.dtype))
    return missing
