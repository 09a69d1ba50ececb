"""The training and evaluation step: pure functions of explicit arguments, compiled by the caller."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.layers import resize_bilinear
from mtlora_jax.models.multitask import MultiTaskModel
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task

Batch = Mapping[str, jax.Array]


class TrainState(NamedTuple):
    """Everything that changes in training; frozen weights do not."""

    step: jax.Array  # () int32, number of steps so far
    trainable: Flat
    batch_stats: Flat
    opt_state: optax.OptState
    skipped: jax.Array  # () int32, steps that changed nothing because a number was not finite
    skipped_in_row: jax.Array  # () int32, steps skipped since the last one that changed something


def create_state(trainable: Flat, batch_stats: Flat, optimizer: optax.GradientTransformation) -> TrainState:
    """Make the state before the first step."""
    zeros = [jnp.zeros((), jnp.int32) for _ in range(3)]  # three, since a donated buffer must not appear twice
    opt_state = jax.jit(optimizer.init)(trainable)  # one program instead of hundreds, one per array
    return TrainState(zeros[0], trainable, batch_stats, opt_state, *zeros[1:])


def compute_losses(
    logits: Mapping[str, jax.Array], batch: Batch, tasks: Mapping[str, Task], weights: Mapping[str, float]
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the weighted total and the loss of each task, float32 scalars; section 3.3 of the paper.

    Logits may be coarser than the labels and are resized to them. At that size they are the largest arrays of a step,
    so the backward pass recomputes them.
    """

    @functools.partial(jax.checkpoint, static_argnums=0)
    def loss(name: str, logits: jax.Array, label: jax.Array) -> jax.Array:
        return tasks[name].loss(resize_bilinear(logits, *label.shape[1:3]), label)

    losses = {name: loss(name, logits[name], batch[name]) for name in tasks}
    total = sum((weights[name] * loss for name, loss in losses.items()), start=jnp.zeros(()))
    return total, losses


def compute_losses_of_step(
    model: MultiTaskModel,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    tasks: Mapping[str, Task],
    weights: Mapping[str, float],
    encoder_microbatches: int,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Compute the losses of a training step as `compute_losses` does, from a batch as `train_step` takes it.

    Batch statistics of the model move. `key` is that of the whole run; the draws of this step (dropout, stochastic
    depth) depend on it and on `step`.
    """
    rngs = nnx.Rngs(dropout=jax.random.fold_in(key, step))
    logits = model.coarse_logits(normalise(batch["image"]), train=True, rngs=rngs, parts=encoder_microbatches)
    return compute_losses(logits, batch, tasks, weights)


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
    encoder_microbatches: int = 1,
    groups: Mapping[str, str] | None = None,
    schedule: optax.Schedule | None = None,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Make one update, unless the loss, a gradient or a batch statistic is not finite.

    In that case the step is skipped: only `step` and the counts of skips change.

    Args:
      state: donated by the caller.
      frozen: weights that get no gradient.
      batch: "image" uint8 (B, H, W, 3) and the label of each task.
      key: of the whole run; the step number is folded in for this step's dropout and stochastic depth.
      graph, tasks, weights, optimizer: static.
      encoder_microbatches: number of parts of a batch that the backbone processes one after the other, for less memory.
        Losses and BatchNorm see the whole batch, so the update is the same; only the draws of dropout and stochastic
        depth differ.
      groups: {path: group} of trained parameters, for gradient norms by group.
      schedule: the optimizer's learning rate by update, for the metrics. A skipped step is not an update.

    Returns:
      The new state, and float32 scalars: "loss", "loss/TASK", "grad_norm" and "grad_norm/GROUP" (before clipping),
        "skipped" (1 if this step changed nothing), "learning_rate" if there is a schedule.
    """

    def loss_fn(trainable: Flat):
        model = parameters.bind(graph, trainable, frozen, state.batch_stats)
        total, losses = compute_losses_of_step(model, batch, key, state.step, tasks, weights, encoder_microbatches)
        return total, (losses, parameters.batch_statistics(model))

    (total, (losses, batch_stats)), gradients = jax.value_and_grad(loss_fn, has_aux=True)(state.trainable)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.trainable)
    trainable = jax.tree.map(jnp.add, state.trainable, updates)
    norms = compute_gradient_norms(gradients, groups or {})
    finite = jnp.isfinite(total) & jnp.isfinite(norms["grad_norm"])
    for statistic in batch_stats.values():
        finite &= jnp.all(jnp.isfinite(statistic))

    changed = state._replace(trainable=trainable, batch_stats=batch_stats, opt_state=opt_state)
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, state)
    skipped = 1 - finite.astype(jnp.int32)
    kept = kept._replace(
        step=state.step + 1, skipped=state.skipped + skipped, skipped_in_row=(state.skipped_in_row + 1) * skipped
    )
    metrics = {
        "loss": total,
        **{f"loss/{name}": loss for name, loss in losses.items()},
        **norms,
        "skipped": skipped.astype(jnp.float32),
    }
    if schedule is not None:
        metrics["learning_rate"] = jnp.asarray(schedule(state.step - state.skipped), jnp.float32)
    return kept, metrics


def compute_gradient_norms(gradients: Flat, groups: Mapping[str, str]) -> dict[str, jax.Array]:
    """Compute "grad_norm" of all gradients together, and "grad_norm/GROUP" of those whose path is in a group."""
    members: dict[str, Flat] = {}
    for path, gradient in gradients.items():
        if path in groups:
            members.setdefault(groups[path], {})[path] = gradient
    return {"grad_norm": optax.tree.norm(gradients)} | {
        f"grad_norm/{name}": optax.tree.norm(own) for name, own in members.items()
    }
