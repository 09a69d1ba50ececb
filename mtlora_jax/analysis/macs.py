"""Multiply-accumulates of a forward pass, counted by module on the traced program."""

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.interpreters import partial_eval

from mtlora_jax.models import parameters
from mtlora_jax.models.multitask import MultiTaskModel

# Elementwise operations, two of which count as one multiply-accumulate, and reductions, counted per input element.
ARITHMETIC = {"add", "add_any", "sub", "mul", "div", "neg", "abs", "sign", "max", "min"}
POWERS = {"square", "integer_pow", "sqrt", "rsqrt", "pow"}
ELEMENTWISE = ARITHMETIC | POWERS | {"exp", "exp2", "expm1", "log", "log1p", "erf", "erfc", "logistic", "tanh"}
REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod"}

Mark = frozenset[str] | None  # the weights that a value is computed from, or None if it depends on the image


@dataclasses.dataclass
class Macs:
    """Counts of one image's forward pass.

    Attributes:
      by_module: {module: multiply-accumulates of matrix products and convolutions with its weights}; see `module_of`.
      attention: of products of activations with activations.
      interpolation: of the matrix products by which JAX resizes feature maps and logits.
      elementwise: operations on single elements, such as those of norms, softmax, GELU, biases and residuals; two make
        one multiply-accumulate. Data movement is not counted.
    """

    by_module: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    attention: int = 0
    interpolation: int = 0
    elementwise: int = 0

    @property
    def linear(self) -> int:
        """Linear layers, low-rank branches and convolutions, as papers count them."""
        return self.by_module.total()

    @property
    def products(self) -> int:
        """Linear layers, convolutions and attention."""
        return self.linear + self.attention

    @property
    def everything(self) -> float:
        """Sum of all counts."""
        return self.products + self.interpolation + self.elementwise / 2


def trace(model: nnx.Module, image_size: tuple[int, int]) -> tuple[Any, dict[str, bool]]:
    """(program, {path: whether any logit depends on it}) of the forward pass of one image.

    The program has only operations that some logit depends on.
    """
    graph = nnx.graphdef(model)
    shapes = {path: jax.ShapeDtypeStruct(v.shape, v.dtype) for path, v in parameters.flat_variables(model).items()}
    images = jax.ShapeDtypeStruct((1, *image_size, 3), jnp.float32)
    closed = jax.make_jaxpr(lambda values, x: parameters.bind(graph, values)(x))(shapes, images)
    jaxpr, used = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    paths = sorted(shapes)  # the order in which JAX flattens a dict
    return jaxpr, dict(zip(paths, used, strict=False))


def macs_of(model: MultiTaskModel, image_size: tuple[int, int], fused: bool = False) -> tuple[Macs, dict[str, bool]]:
    """(counts, {path: whether any logit depends on it}). Works on a declared model.

    With `fused`, counts the fused program that is executed; otherwise every layer on its own, as papers do. See
    `mtlora_jax.model_factory.configure`.
    """
    configured = model.fused
    model.set_fused(fused)
    jaxpr, used = trace(model, image_size)
    model.set_fused(configured)
    marks: list[Mark] = [frozenset({path}) for path, needed in used.items() if needed]  # the program takes no others
    counted = Macs()
    count(jaxpr, marks + [None] * (len(jaxpr.invars) - len(marks)), counted)
    return counted, used


def count(jaxpr: Any, marks: Sequence[Mark], counted: Macs, times: int = 1, resizes: bool = False) -> None:
    """Adds the operations of a program.

    Args:
      jaxpr: the program.
      marks: of its inputs.
      counted: the counts to add to.
      times: how often the program runs.
      resizes: whether it is part of an interpolation.
    """
    known: dict[Any, Mark] = dict(zip(jaxpr.invars, marks, strict=True))
    for equation in jaxpr.eqns:
        own = [known.get(value, frozenset()) if not hasattr(value, "val") else frozenset() for value in equation.invars]
        result = None if None in own else frozenset().union(*(mark for mark in own if mark is not None))
        known |= dict.fromkeys(equation.outvars, result)
        name = equation.primitive.name
        if name in PRODUCTS:
            amount = times * PRODUCTS[name](equation)
            weights = next((mark for mark in own if mark), None)
            if resizes:
                counted.interpolation += amount
            elif weights is None:
                counted.attention += amount
            else:
                counted.by_module[module_of(min(weights))] += amount
        elif name in ELEMENTWISE and jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.floating):
            counted.elementwise += times * equation.outvars[0].aval.size
        elif name in REDUCTIONS and jnp.issubdtype(equation.invars[0].aval.dtype, jnp.floating):
            counted.elementwise += times * equation.invars[0].aval.size
        for inner in subprograms(equation.params.values()):
            inputs = own if len(inner.invars) == len(own) else [None] * len(inner.invars)
            resized = resizes or equation.params.get("name") == "_resize"
            count(inner, inputs, counted, times * equation.params.get("length", 1), resized)


def subprograms(values: Any) -> Iterator[Any]:
    """The programs among the parameters of an operation, such as the body of a nested `jit`."""
    for value in values:
        if hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif hasattr(value, "eqns"):
            yield value
        elif isinstance(value, tuple | list):
            yield from subprograms(value)


def module_of(path: str) -> str:
    """The module of a parameter in tables: patch embedding, blocks of a stage, patch merging, or decoder of a task."""
    parts = path.split(".")
    return ".".join(parts[:4] if "".join(parts[2:3]).isdigit() else parts[:2])


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


PRODUCTS: dict[str, Callable[[Any], int]] = {"dot_general": dot_macs, "conv_general_dilated": conv_macs}
