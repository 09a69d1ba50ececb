"""Scores of a model on a whole split."""

from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mtlora_jax import sharding
from mtlora_jax.metrics import delta_m
from mtlora_jax.tasks.task import Task


def evaluate(
    compute: Callable[[dict[str, jax.Array]], dict[str, dict[str, jax.Array]]],
    batches: Iterable[Mapping[str, np.ndarray]],
    tasks: Mapping[str, Task],
    mesh: Mesh,
    report: Callable[[int], None] = lambda images: None,
) -> dict[str, float]:
    """Runs over all batches once and returns {"TASK/SCORE": value}.

    Args:
      compute: device batch -> statistics (a compiled `eval_step` with its parameters bound).
      batches: with a "mask" of the images that count.
      report: called with the number of images done, for progress.
    """
    totals: dict[str, dict[str, np.ndarray]] = {}
    done = 0
    pending = None  # statistics are fetched one batch late, so that the host prepares a batch while the device works on another
    for batch in batches:
        ahead = compute(sharding.put(batch, mesh))
        add(totals, pending)
        pending = ahead
        done += int(batch["mask"].sum()) * jax.process_count()
        report(done)
    add(totals, pending)
    return {f"{name}/{score}": float(value) for name, task in tasks.items() for score, value in task.scores(totals[name]).items()}


def add(totals: dict[str, dict[str, np.ndarray]], statistics: dict[str, dict[str, jax.Array]] | None) -> None:
    """Adds the statistics of a batch to the totals, in float64."""
    if statistics is None:
        return
    for name, sums in jax.device_get(statistics).items():
        mine = totals.setdefault(name, {})
        for key, value in sums.items():
            mine[key] = mine.get(key, 0.0) + np.asarray(value, np.float64)


def with_delta_m(scores: Mapping[str, float], tasks: Mapping[str, Task], single_task: Mapping[str, float]) -> dict[str, float]:
    """Adds "delta_m" (percent), the mean over the tasks that `single_task` has a score for; none is added if it has none."""
    compared = {name: task for name, task in tasks.items() if name in single_task}
    if not compared:
        return dict(scores)
    mine = {name: scores[f"{name}/{task.primary}"] for name, task in compared.items()}
    return {**scores, "delta_m": delta_m(mine, single_task, compared)}
