"""Parameters of a model by name: the one place where modules, flat dicts and files meet."""

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


def variables(model: nnx.Module) -> dict[str, nnx.Variable]:
    """{path: variable} of all parameters and batch statistics; a path is the attribute names joined by dots."""
    return {".".join(map(str, path)): variable for path, variable in nnx.to_flat_state(nnx.state(model))}


def arrays(model: nnx.Module) -> dict[str, np.ndarray]:
    """{path: host array} of all parameters and batch statistics."""
    return {
        path: np.asarray(value)
        for path, value in jax.device_get({p: v[...] for p, v in variables(model).items()}).items()
    }


def split(model: nnx.Module, trainable: Callable[[str, nnx.Variable], bool]) -> tuple[nnx.GraphDef, Flat, Flat, Flat]:
    """(graph, trainable, frozen, batch statistics) of a filled model; the last three are plain dicts {path: array}."""
    parts: tuple[Flat, Flat, Flat] = ({}, {}, {})
    for path, variable in variables(model).items():
        part = 2 if isinstance(variable, nnx.BatchStat) else 0 if trainable(path, variable) else 1
        parts[part][path] = variable.get_value()
    return nnx.graphdef(model), *parts


def merge(graph: nnx.GraphDef, *parts: Flat) -> Any:
    """The model again, from its graph and all of its arrays; works inside `jax.jit` and `jax.grad`."""
    flat = {path: value for part in parts for path, value in part.items()}
    state = nnx.from_flat_state(
        [(tuple(int(k) if k.isdigit() else k for k in path.split(".")), value) for path, value in flat.items()]
    )
    return nnx.merge(graph, state)


def narrowed(values: Flat, dtype: str) -> Flat:
    """Values with two axes or more in `dtype`, one of `PRECISIONS`. Vectors (biases, scales of norms) stay as they are: they weigh little.

    Raises UserError for another dtype.
    """
    if dtype not in PRECISIONS:
        raise UserError(f"frozen_dtype = {dtype!r} is not one of {', '.join(PRECISIONS)}")
    return {path: value.astype(dtype) if value.ndim > 1 else value for path, value in values.items()}


def batch_statistics(model: nnx.Module) -> Flat:
    """{path: array} of the BatchNorm statistics."""
    return {path: variable[...] for path, variable in variables(model).items() if isinstance(variable, nnx.BatchStat)}


def named(keys: list[str]) -> str:
    """A list of keys for an error message: the first ten, cut off where they are long, and how many there are."""
    return f"{', '.join(key if len(key) <= 100 else f'{key[:100]}...' for key in keys[:10])}{', ...' if len(keys) > 10 else ''} ({len(keys)})"


def initialise(model: nnx.Module, seed: int) -> None:
    """Gives every variable without a value its initial one, in place.

    A value depends on the seed and the variable's path alone, so adding, dropping or reordering tasks changes no other weight.
    """
    for path, variable in variables(model).items():
        if isinstance(variable.get_value(), jax.ShapeDtypeStruct):
            rng = np.random.default_rng([seed, zlib.crc32(path.encode())])
            variable.set_value(jnp.asarray(variable.init(rng, variable.shape)))


def assign(
    model: nnx.Module,
    values: Mapping[str, Any],
    source: str,
    may_miss: Callable[[str, nnx.Variable], bool] = lambda path, variable: False,
) -> list[str]:
    """Puts arrays into a model, in place; nothing is assigned unless everything fits.

    Args:
      model: filled, or only declared.
      values: {path: array}.
      source: where they come from, for messages.
      may_miss: paths which the values need not have; those keep what the model has.

    Returns:
      The paths that were missing and kept.

    Raises:
      UserError: listing keys that are missing, left over or of another shape.
    """
    own = variables(model)
    missing = [path for path in own if path not in values]
    refused = [path for path in missing if not may_miss(path, own[path])]
    extra = [path for path in values if path not in own]
    shapes = [
        f"{path} {tuple(values[path].shape)} instead of {tuple(own[path].shape)}"
        for path in own
        if path in values and tuple(values[path].shape) != tuple(own[path].shape)
    ]
    problems = {"missing": refused, "left over": extra, "of another shape": shapes}
    told = [f"{what}: {named(keys)}" for what, keys in problems.items() if keys]
    if told:
        raise UserError(f"{source} does not fit the model; {'; '.join(told)}")
    for path, variable in own.items():
        if path in values:
            variable.set_value(jnp.asarray(values[path], variable.dtype))
    return missing
