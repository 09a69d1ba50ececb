"""The training and evaluation step: pure functions of explicit arguments, compiled by the caller."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mtlora_jax import parameters
from mtlora_jax.parameters import Flat
from mtlora_jax.tasks.task import Task

Batch = Mapping[str, jax.Array]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)  # of ImageNet, RGB in [0, 1]
STD = np.array([0.229, 0.224, 0.225], np.float32)


class TrainState(NamedTuple):
    """Everything that changes in training. Frozen weights are not in it."""

    step: jax.Array  # () int32, updates made so far
    trainable: Flat
    batch_stats: Flat
    opt_state: optax.OptState


def create_state(trainable: Flat, batch_stats: Flat, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), trainable, batch_stats, optimizer.init(trainable))


def normalise(images: jax.Array | np.ndarray) -> jax.Array:
    """uint8 RGB (B, H, W, 3) -> float32, ImageNet statistics."""
    return (jnp.asarray(images, jnp.float32) / 255.0 - MEAN) / STD


def losses_of(
    logits: Mapping[str, jax.Array], batch: Batch, tasks: Mapping[str, Task], weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted total and each task's own loss, float32 scalars; section 3.3 of the paper."""
    losses = {name: task.loss(logits[name], batch[name]) for name, task in tasks.items()}
    total = sum((weights[name] * loss for name, loss in losses.items()), start=jnp.zeros(()))
    return total, losses


def train_step(
    state: TrainState,
    frozen: Flat,
    batch: Batch,
    key: jax.Array,
    *,
    graph: nnx.GraphDef,
    tasks: Mapping[str, Task],
    weights: Mapping[str, float],
    optimizer: optax.GradientTransformation,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update.

    Args:
      state: donated by the caller.
      frozen: weights that get no gradient.
      batch: "image" uint8 (B, H, W, 3) and the label of each task.
      key: of the whole run; the step's own randomness (dropout, stochastic depth) is folded in here.
      graph, tasks, weights, optimizer: static.

    Returns:
      The new state, and scalars: "loss", "loss/TASK", "grad_norm" (before clipping).
    """
    images = normalise(batch["image"])
    key = jax.random.fold_in(key, state.step)

    def loss_fn(trainable: Flat):
        model = parameters.merge(graph, trainable, frozen, state.batch_stats)
        rngs = nnx.Rngs(dropout=key)
        total, losses = losses_of(model(images, train=True, rngs=rngs), batch, tasks, weights)
        return total, (losses, parameters.batch_statistics(model))

    (total, (losses, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = jax.tree.map(jnp.add, state.trainable, updates)
    metrics = {"loss": total, **{f"loss/{name}": loss for name, loss in losses.items()}, "grad_norm": optax.tree.norm(gradients)}
    return TrainState(state.step + 1, trainable, batch_stats, opt_state), metrics


def eval_step(
    trainable: Flat, batch_stats: Flat, frozen: Flat, batch: Batch, *, graph: nnx.GraphDef, tasks: Mapping[str, Task]
) -> dict[str, dict[str, jax.Array]]:
    """Statistics of one batch, {task: {name: array}}, to be summed over the set; "mask" (B,) says which images count."""
    model = parameters.merge(graph, trainable, frozen, batch_stats)
    logits = model(normalise(batch["image"]))
    return {name: task.statistics(logits[name], batch[name], batch["mask"]) for name, task in tasks.items()}
