"""Numbers that are not finite, counted in the output of every module and in the gradient that reaches it."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Counts = dict[
    str, jax.Array
]  # {path of a module: (2,) float32, values not finite in its output and in the gradient of it}


def module_paths(model: nnx.Module) -> list[str]:
    """Return the paths of all modules below a model, attribute names joined by dots."""
    return [".".join(map(str, path)) for path, module in nnx.iter_modules(model) if path and callable(module)]


def zero_counts(model: nnx.Module) -> Counts:
    """Return the counts that `watch` takes; their gradient holds what was counted."""
    return {path: jnp.zeros(2) for path in module_paths(model)}


def watch(model: nnx.Module, counts: Counts, order: list[str]) -> None:
    """Have every module of `model` count, in place, while it computes what it computed before.

    The gradient of any result with respect to `counts` holds two numbers for each module: how many values of its output
    are not finite, and how many of the gradient with respect to that output. Counting by a gradient works under
    `jax.jit`, `jax.vmap`, `jax.checkpoint` and `jax.lax.scan` too. A module that no gradient reaches has counts of 0.

    Args:
      model: filled; to be used once, inside the function that is differentiated.
      counts: as `zero_counts` returns it.
      order: paths are appended as modules return, inner modules first.
    """
    for path, module in nnx.iter_modules(model):
        name = ".".join(map(str, path))
        if name in counts:
            object.__setattr__(module, "__class__", _watched(type(module), name, counts[name], order))


def _watched(kind: type, path: str, counts: jax.Array, order: list[str]) -> type:
    """A subclass for one module. Of calls inside its own calls, only the outermost counts."""
    running: list[str] = []

    def counting(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def run(*args: Any, **options: Any) -> Any:
            if running:
                return method(*args, **options)
            running.append(path)
            try:
                output = method(*args, **options)
            finally:
                running.pop()
            if path not in order:
                order.append(path)
            return jax.tree.map(lambda x: _count(x, counts) if jnp.issubdtype(x.dtype, jnp.floating) else x, output)

        return run

    methods = {name: counting(getattr(kind, name)) for name in ("__call__", "forward") if hasattr(kind, name)}
    return type(kind.__name__, (kind,), methods)


@jax.custom_vjp
def _count(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Return x."""
    del counts
    return x


def _count_forward(x: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    del counts
    return x, count_nonfinite(x)


def _count_backward(forward: jax.Array, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    return g, jnp.stack([forward, count_nonfinite(g)])


_count.defvjp(_count_forward, _count_backward)


def count_nonfinite(x: jax.Array) -> jax.Array:
    """Return the number of values that are not finite, () float32."""
    return jnp.sum(~jnp.isfinite(x), dtype=jnp.float32)


def name_nonfinite(values: Mapping[str, jax.Array]) -> dict[str, int]:
    """{path: number of values that are not finite} of the arrays that have any."""
    found = {path: int(count_nonfinite(value)) for path, value in values.items()}
    return {path: count for path, count in found.items() if count}
