"""Sums over a split, and scores of several tasks combined."""

import math
import pathlib
from collections.abc import Mapping

import jax
import numpy as np

from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.io.files import read_json
from mtlora_jax.tasks.task import Task

Totals = dict[str, dict[str, np.ndarray]]  # {task: {name: sum over the set so far}}


def add(totals: Totals, statistics: Mapping[str, Mapping[str, jax.Array | np.ndarray]]) -> None:
    """Add the statistics of a batch, {task: {name: sum}}, to the totals, in float64."""
    for name, sums in jax.device_get(statistics).items():
        mine = totals.setdefault(name, {})
        for key, value in sums.items():
            mine[key] = mine.get(key, 0.0) + np.asarray(value, np.float64)


def delta_m(scores: Mapping[str, float], baseline: Mapping[str, float], tasks: Mapping[str, Task]) -> float:
    """Compute the mean relative gain over single-task models, in percent (MTLoRA, eq. 5).

    This is the mean of +-(M - S) / S over `tasks`, + if higher is better. `scores` and `baseline` map task names to the
    primary score. Raises UserError if a task has no score, or none to compare with.
    """
    gains = []
    for name, task in tasks.items():
        for kind, values in {"score": scores, "single-task score": baseline}.items():
            if name not in values:
                raise UserError(f"Delta_m: no {kind} for task {name!r}; there are {', '.join(values) or 'none'}")
        if not baseline[name]:
            raise UserError(
                f"Delta_m: the single-task score of {name!r} is {baseline[name]}; expected a number other than 0"
            )
        gain = (scores[name] - baseline[name]) / baseline[name]
        gains.append(gain if task.higher_is_better else -gain)
    if not gains:
        raise UserError("Delta_m: no tasks; expected at least one")
    return 100 * sum(gains) / len(gains)


def primary_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return {task: the score that the papers' tables print}."""
    return {name: scores[f"{name}/{task.primary_metric}"] for name, task in tasks.items()}


def mean_score(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> float:
    """Compute the mean over the tasks of the primary score as a share of the best possible one, 0 to 1.

    If higher is better, the share is score / scale; otherwise scale / (scale + score), which is 1 for no error and 1/2
    for an error of `Task.score_scale`. The result is NaN if a score is not a number. It ranks the checkpoints of one
    run and cannot be compared between data sets.
    """
    shares = []
    for name, score in primary_scores(scores, tasks).items():
        scale = tasks[name].score_scale
        shares.append(score / scale if tasks[name].higher_is_better else scale / (scale + max(score, 0.0)))
    return sum(shares) / len(shares)


def add_ranking_score(
    scores: Mapping[str, float], tasks: Mapping[str, Task], baseline: Mapping[str, float]
) -> dict[str, float]:
    """Add the score by which models are ranked: "delta_m", in percent, over the tasks in `baseline`.

    If `baseline` has a score of none of them, "mean_score" is added instead, see `mean_score`.
    """
    compared = {name: task for name, task in tasks.items() if baseline.get(name)}
    if not compared:
        return {**scores, "mean_score": mean_score(scores, tasks)}
    return {**scores, "delta_m": delta_m(primary_scores(scores, compared), baseline, compared)}


def delta_m_baseline(config: Config, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Return {task: primary score of its single-task model}, for Delta_m; tasks without one are missing.

    The scores come from the files of `config.delta_m_baseline_runs` if there are any, else from
    `config.delta_m_baseline`. Each of these files is a metrics.json, or a workdir with one, of a run of the single_task
    method. Each has a score of at least one of the tasks.

    Raises:
      UserError: for a file that cannot be read or has no score of the tasks, and for a task with scores in two files.
    """
    if not config.delta_m_baseline_runs:
        return {name: score for name, score in config.delta_m_baseline.items() if name in tasks}
    found: dict[str, float] = {}
    for name in config.delta_m_baseline_runs:
        path = pathlib.Path(name)
        path = path / "metrics.json" if path.is_dir() else path
        try:
            values = read_json(path)
        except UserError as error:
            raise UserError(f"delta_m_baseline_runs: {error}; expected the workdir of a finished run") from error
        values = values if isinstance(values, dict) else {}
        primary = {task: f"{task}/{tasks[task].primary_metric}" for task in tasks}
        scores = {task: values[metric] for task, metric in primary.items() if metric in values}
        wanted = ", ".join(primary.values())
        if not scores or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores.values()):
            raise UserError(
                f"delta_m_baseline_runs: {path} has no score of these tasks; expected a number for one of {wanted}"
            )
        if found.keys() & scores:
            raise UserError(
                f"delta_m_baseline_runs: {path} has {', '.join(found.keys() & scores)} again; give each task once"
            )
        found |= scores
    return found
