"""Less memory for more time: recomputation in the backward pass, and batches processed in parts.

Both give the values and gradients of the plain call, with the same draws of dropout as long as the batch is one part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Forward = Callable[[Any, Any, nnx.Rngs | None], Any]  # (module, inputs, rngs) -> outputs


def no_remat(forward: Forward, module: nnx.Module, x: Any, rngs: nnx.Rngs | None) -> Any:
    """Make a plain call, which keeps everything that the backward pass needs."""
    return forward(module, x, rngs)


def remat(forward: Forward, module: nnx.Module, x: Any, rngs: nnx.Rngs | None) -> Any:
    """Keep only parameters and inputs for the backward pass, which computes the rest again (`jax.checkpoint`).

    Batch statistics and counters of random numbers change as in a plain call.
    """
    graph, weights, changing = nnx.split((module, rngs), nnx.Param, ...)
    outputs, changed = jax.checkpoint(_pure(forward, graph))(weights, changing, x)
    nnx.update((module, rngs), changed)
    return outputs


def in_microbatches(forward: Forward, module: nnx.Module, images: jax.Array, rngs: nnx.Rngs | None, parts: int) -> Any:
    """Process a batch in equal parts, one after the other, each with `remat`: memory is that of one part.

    Part i takes every `parts`-th image from i on, so that each part lies on the devices as the whole batch does.

    Args:
      forward: returns a pytree of feature maps (..., B, H, W, C). They must not mix images.
      images: (B, H, W, 3), where `parts` divides B.
    """
    graph, weights, changing = nnx.split((module, rngs), nnx.Param, ...)
    run = jax.checkpoint(_pure(forward, graph), prevent_cse=False)  # a loop keeps the two computations apart by itself

    def one_part(changing: nnx.State, part: jax.Array) -> tuple[nnx.State, Any]:
        outputs, changed = run(weights, changing, part)
        return changed, outputs

    cut = jnp.moveaxis(images.reshape(-1, parts, *images.shape[1:]), 1, 0)
    changed, outputs = jax.lax.scan(one_part, changing, cut)
    nnx.update((module, rngs), changed)
    return jax.tree.map(_joined, outputs)


def _joined(parts: jax.Array) -> jax.Array:
    """(P, ..., B / P, H, W, C) -> (..., B, H, W, C), with the images in their original order.

    A matrix (P, C, D), such as `TaskFeatures.projection`, does not depend on images and is the same for every part.
    """
    if parts.ndim < 5:
        return parts[0]
    whole = jnp.moveaxis(parts, 0, -4)
    return whole.reshape(*parts.shape[1:-4], -1, *parts.shape[-3:])


def _pure(forward: Forward, graph: nnx.GraphDef) -> Callable[[nnx.State, nnx.State, Any], tuple[Any, nnx.State]]:
    """Return `forward` without side effects: changes of the module and the random numbers are its second result."""

    def run(weights: nnx.State, changing: nnx.State, x: Any) -> tuple[Any, nnx.State]:
        module, rngs = nnx.merge(graph, weights, changing)
        outputs = forward(module, x, rngs)
        _, _, changed = nnx.split((module, rngs), nnx.Param, ...)
        return outputs, changed

    return run
