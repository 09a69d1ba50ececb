"""Scores of a model on a whole split."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mtlora_jax import experiment as experiments
from mtlora_jax.data.pipeline import Batches, Dataset
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import sharding
from mtlora_jax.eval.aggregate import Totals, add
from mtlora_jax.eval.step import eval_step
from mtlora_jax.eval.visualize import Pictures
from mtlora_jax.experiment import Experiment
from mtlora_jax.models.parameters import Flat
from mtlora_jax.tasks.task import Task

Statistics = Mapping[str, Mapping[str, jax.Array]]  # {task: {name: sum}}


class Evaluator:
    """Evaluates weights on one split repeatedly, with one compiled step.

    Attributes:
      pictures: called with (trainable, batch_stats), shows the predictions of a few images; see `Pictures`.
    """

    def __init__(self, config: Config, experiment: Experiment, data: Dataset):
        self.pictures = Pictures(config, experiment, data)
        self._experiment = experiment
        everywhere, split = sharding.replicated_sharding(experiment.mesh), sharding.batch_sharding(experiment.mesh)
        self._step = jax.jit(
            functools.partial(eval_step, graph=experiment.graph, tasks=experiment.tasks),
            in_shardings=(everywhere, everywhere, everywhere, split),
            out_shardings=everywhere,
        )
        self._compiled: Callable[..., Statistics] | None = None
        self._batches = functools.partial(experiments.make_eval_batches, config, data)

    def __call__(
        self,
        trainable: Flat,
        batch_stats: Flat,
        watched: Callable[[Batches], Iterable[Mapping[str, np.ndarray]]] = iter,
    ) -> tuple[dict[str, float], float]:
        """Return {"TASK/SCORE": value}, and the seconds it took without compilation.

        `watched` passes the batches on, and may look at them or raise.
        """
        start = time.monotonic()

        def compute(batch: dict[str, jax.Array]) -> Statistics:
            nonlocal start
            arguments = (trainable, batch_stats, self._experiment.frozen, batch)
            if self._compiled is None:
                began = time.monotonic()
                self._compiled = self._step.lower(*arguments).compile()
                start += time.monotonic() - began
            return self._compiled(*arguments)

        with contextlib.closing(self._batches()) as batches:
            scores = evaluate(compute, watched(batches), self._experiment.tasks, self._experiment.mesh)
        return scores, time.monotonic() - start


def evaluate(
    compute: Callable[[dict[str, jax.Array]], Statistics],
    batches: Iterable[Mapping[str, np.ndarray]],
    tasks: Mapping[str, Task],
    mesh: Mesh,
) -> dict[str, float]:
    """Compute the scores over all batches.

    Args:
      compute: device batch -> statistics.
      batches: each with a "mask" of the images that count.
      tasks: of the batches.
      mesh: of the devices.

    Returns:
      {"TASK/SCORE": value}.
    """
    totals: Totals = {}
    pending: Statistics = {}  # fetched one batch late: the host prepares a batch while the device works on another
    for batch in batches:
        ahead = compute(sharding.shard_batch(batch, mesh))
        add(totals, pending)
        pending = ahead
    add(totals, pending)
    return {
        f"{name}/{score}": float(value)
        for name, task in tasks.items()
        for score, value in task.compute_metrics(totals[name]).items()
    }
