"""Less memory for more time: parts of a model that are computed once more in the backward pass, and batches that pass in parts.

Both give the values and gradients of the plain call, with the same draws of dropout as long as the batch passes in one part.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Forward = Callable[[Any, Any, nnx.Rngs | None], Any]  # (module, inputs, rngs) -> outputs


def no_remat(forward: Forward, module: nnx.Module, x: Any, rngs: nnx.Rngs | None) -> Any:
    """The call as it stands: what the backward pass needs is kept."""
    return forward(module, x, rngs)


def remat(forward: Forward, module: nnx.Module, x: Any, rngs: nnx.Rngs | None) -> Any:
    """Keep only parameters and inputs for the backward pass, which computes the rest again (`jax.checkpoint`).

    Batch statistics and counters of random numbers move as they do in a plain call.
    """
    graph, weights, changing = nnx.split((module, rngs), nnx.Param, ...)
    outputs, changed = jax.checkpoint(_pure(forward, graph))(weights, changing, x)
    nnx.update((module, rngs), changed)
    return outputs


def in_microbatches(forward: Forward, module: nnx.Module, images: jax.Array, rngs: nnx.Rngs | None, parts: int) -> Any:
    """Pass a batch through `module` in equal parts, one after the other, each `remat`: memory is that of one part.

    Part i takes every `parts`-th image from i on, so that each part lies on the devices as the whole batch does.

    Args:
      forward: gives a pytree of feature maps (..., B, H, W, C). Images must not depend on each other in it.
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
    """(P, ..., B / P, H, W, C) -> (..., B, H, W, C), the images in their order before they were cut.

    A matrix (P, C, D) is no map of images, such as `TaskFeatures.projection`: it is the same for every part.
    """
    if parts.ndim < 5:
        return parts[0]
    whole = jnp.moveaxis(parts, 0, -4)
    return whole.reshape(*parts.shape[1:-4], -1, *parts.shape[-3:])


def _pure(forward: Forward, graph: nnx.GraphDef) -> Callable[[nnx.State, nnx.State, Any], tuple[Any, nnx.State]]:
    """`forward` without side effects: what it changes in the module and the random numbers is its second result."""

    def run(weights: nnx.State, changing: nnx.State, x: Any) -> tuple[Any, nnx.State]:
        module, rngs = nnx.merge(graph, weights, changing)
        outputs = forward(module, x, rngs)
        _, _, changed = nnx.split((module, rngs), nnx.Param, ...)
        return outputs, changed

    return run
