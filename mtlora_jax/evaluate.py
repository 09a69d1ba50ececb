"""Scores of a model on a whole split."""

import functools
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mtlora_jax import experiment as experiments
from mtlora_jax import sharding
from mtlora_jax.checkpoint import Checkpoints
from mtlora_jax.data.pipeline import Dataset, eval_batches
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import Experiment
from mtlora_jax.metrics import delta_m
from mtlora_jax.parameters import Flat
from mtlora_jax.records import console, print_scores
from mtlora_jax.step import eval_step
from mtlora_jax.tasks.task import Task

Statistics = dict[str, dict[str, jax.Array]]  # {task: {name: sum}}


class Evaluator:
    """Evaluates weights on one split, again and again, with one compiled step."""

    def __init__(self, config: Config, experiment: Experiment, data: Dataset):
        self._experiment = experiment
        everywhere, split = sharding.replicated(experiment.mesh), sharding.by_batch(experiment.mesh)
        self._step = jax.jit(
            functools.partial(eval_step, graph=experiment.graph, tasks=experiment.tasks),
            in_shardings=(everywhere, everywhere, everywhere, split),
            out_shardings=everywhere,
        )
        self._batches = functools.partial(
            eval_batches,
            data,
            image_size=tuple(config.image_size),
            batch_size=config.eval_batch_size,
            workers=config.data.workers,
            parity=config.data.parity,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def __call__(self, trainable: Flat, batch_stats: Flat) -> tuple[dict[str, float], float]:
        """({"TASK/SCORE": value}, seconds)."""
        start = time.monotonic()
        compute = functools.partial(self._step, trainable, batch_stats, self._experiment.frozen)
        scores = evaluate(compute, self._batches(), self._experiment.tasks, self._experiment.mesh)
        return scores, time.monotonic() - start


def evaluate(
    compute: Callable[[dict[str, jax.Array]], Statistics],
    batches: Iterable[Mapping[str, np.ndarray]],
    tasks: Mapping[str, Task],
    mesh: Mesh,
) -> dict[str, float]:
    """Runs over all batches once.

    Args:
      compute: device batch -> statistics.
      batches: each with a "mask" of the images that count.

    Returns:
      {"TASK/SCORE": value}.
    """
    totals: dict[str, dict[str, np.ndarray]] = {}
    pending = None  # statistics are fetched one batch late, so that the host prepares a batch while the device works on another
    for batch in batches:
        ahead = compute(sharding.put(batch, mesh))
        add(totals, pending)
        pending = ahead
    add(totals, pending)
    return {f"{name}/{score}": float(value) for name, task in tasks.items() for score, value in task.scores(totals[name]).items()}


def add(totals: dict[str, dict[str, np.ndarray]], statistics: Statistics | None) -> None:
    """Adds the statistics of a batch to the totals, in float64."""
    for name, sums in jax.device_get(statistics or {}).items():
        mine = totals.setdefault(name, {})
        for key, value in sums.items():
            mine[key] = mine.get(key, 0.0) + np.asarray(value, np.float64)


def primary_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """{task: its score of the papers' tables}."""
    return {name: scores[f"{name}/{task.primary}"] for name, task in tasks.items()}


def with_gain(
    scores: Mapping[str, float], tasks: Mapping[str, Task], reference: Mapping[str, float], name: str = "delta_m"
) -> dict[str, float]:
    """Adds the mean relative gain (percent) over the tasks that `reference` has a score other than 0 for; nothing if there is none.

    With the scores of single-task models as reference this is Delta_m.
    """
    compared = {task: tasks[task] for task in tasks if reference.get(task)}
    if not compared:
        return dict(scores)
    return {**scores, name: delta_m(primary_scores(scores, compared), reference, compared)}


def evaluate_only(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Prints and returns the scores of the newest checkpoint of `workdir`, or of the model folder `config.init` if there is no run."""
    data = experiments.open_dataset(config, config.data.eval_split)
    started = (workdir / "initial").exists()
    if not started and not config.init:
        raise UserError(f"nothing to evaluate: {workdir} holds no run and config.init names no model folder")
    experiment = experiments.set_up(config, data.tasks, workdir, complete=True)
    trainable, batch_stats, what = experiment.trainable, experiment.batch_stats, config.init
    if started:
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        step = checkpoints.latest()
        what = f"{workdir}, step {step or 0}"
        if step is not None:
            trainable, batch_stats = checkpoints.restore_weights(trainable, batch_stats)
    scores, seconds = Evaluator(config, experiment, data)(trainable, batch_stats)
    scores = with_gain(scores, experiment.tasks, config.single_task)
    print_scores(scores, f"Scores of {what} on {config.data.eval_split}")
    console.print(f"{len(data)} images in {seconds:.0f} s")
    return scores
