"""The evaluation step: a pure function of explicit arguments, compiled by the caller."""

from collections.abc import Mapping

import jax
from flax import nnx

from mtlora_jax.models import parameters
from mtlora_jax.models.inputs import normalise
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task

Batch = Mapping[str, jax.Array]


def eval_step(
    trainable: Flat, batch_stats: Flat, frozen: Flat, batch: Batch, *, graph: nnx.GraphDef, tasks: Mapping[str, Task]
) -> dict[str, dict[str, jax.Array]]:
    """Compute the statistics of one batch, {task: {name: array}}, to be summed over the set.

    "mask" (B,) of the batch says which images count.
    """
    model = parameters.bind(graph, trainable, frozen, batch_stats)
    logits = model(normalise(batch["image"]))
    return {name: task.metric_sums(logits[name], batch[name], batch["mask"]) for name, task in tasks.items()}
