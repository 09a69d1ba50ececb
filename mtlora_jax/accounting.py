"""Counts: parameters by group, which of them nothing depends on, and multiply-accumulates of one forward pass."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters import partial_eval

from mtlora_jax import parameters
from mtlora_jax.methods import Method
from mtlora_jax.methods.groups import GROUPS, groups_of


def group_of_each(model: nnx.Module) -> dict[str, str]:
    """{path: the most telling of its groups} of all parameters. Works on a declared model."""
    return {path: groups_of(path, v)[0] for path, v in parameters.variables(model).items() if isinstance(v, nnx.Param)}


def count_parameters(model: nnx.Module, method: Method) -> dict[str, dict[str, int]]:
    """{group: {"total": values, "trainable": values}} in the order of `GROUPS`, without empty groups. Works on a declared model."""
    counts = {group: {"total": 0, "trainable": 0} for group in GROUPS}
    for path, variable in parameters.variables(model).items():
        if isinstance(variable, nnx.Param):
            count = counts[groups_of(path, variable)[0]]
            count["total"] += variable.size
            count["trainable"] += variable.size * method.trainable(path, variable)
    return {group: count for group, count in counts.items() if count["total"]}


def trace(model: nnx.Module, image_size: tuple[int, int]) -> tuple[Any, dict[str, bool]]:
    """The program of a forward pass of one image without what no logit depends on, and {path: whether any logit depends on it}."""
    graph = nnx.graphdef(model)
    shapes = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in parameters.variables(model).items()}
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    closed = jax.make_jaxpr(lambda values, x: parameters.merge(graph, values)(x))(shapes, images)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    paths = sorted(shapes)  # the order in which JAX flattens a dict
    return jaxpr, dict(zip(paths, used, strict=False))


def count_macs(jaxpr: Any) -> int:
    """Multiply-accumulates of all matrix products and convolutions; interpolation and element-wise work are not counted."""
    total = 0
    for equation in jaxpr.eqns:
        if equation.params.get("name") == "_resize":  # JAX interpolates by matrix products; nobody counts those as MACs
            continue
        count = MACS.get(equation.primitive.name)
        if count:
            total += count(equation)
        else:
            total += equation.params.get("length", 1) * sum(count_macs(inner) for inner in subprograms(equation.params.values()))
    return total


def subprograms(values: Any) -> Iterator[Any]:
    """The programs among the parameters of an operation, such as the body of a nested `jit`."""
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, tuple | list):
            yield from subprograms(value)


def dot_macs(equation: Any) -> int:
    """Output elements times contracted elements."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[i] for i in contracted)


def conv_macs(equation: Any) -> int:
    """Output elements times kernel elements per output channel."""
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs


MACS: dict[str, Callable[[Any], int]] = {"dot_general": dot_macs, "conv_general_dilated": conv_macs}


def summarise(model: nnx.Module, method: Method, image_size: tuple[int, int]) -> dict[str, Any]:
    """Everything that is counted, JSON-able; see `python -m mtlora_jax.summary --help` for what the keys mean."""
    groups = count_parameters(model, method)
    jaxpr, used = trace(model, image_size)
    own = parameters.variables(model)
    unused = {p: v.size for p, v in own.items() if isinstance(v, nnx.Param) and method.trainable(p, v) and not used[p]}
    return {
        "trainable": sum(group["trainable"] for group in groups.values()),
        "total": sum(group["total"] for group in groups.values()),
        "groups": groups,
        "trainable_unused": {"count": sum(unused.values()), "paths": sorted(unused)},
        "gmacs": count_macs(jaxpr) / 1e9,
    }
