"""The evaluations of a run, as recorded in its log.jsonl."""

import math
import pathlib
from collections.abc import Mapping

import jax

from mtlora_jax.distributed import sharding
from mtlora_jax.eval.aggregate import add_ranking_score, primary_scores
from mtlora_jax.io.jsonl import read_lines
from mtlora_jax.tasks.task import Task

PREFIX = "eval/"  # of scores in the log


class EvalHistory:
    """Evaluations made, the scores of the newest, and the best ranking score so far.

    An evaluation counts as done once its line is in the log: a resumed run reads the log, and repeats an evaluation
    without a line.

    Args:
      tasks: the trained tasks.
      baseline: {task: score of its single-task model}. With it, models are ranked by Delta_m, without it by the mean
        score over the tasks; see `mtlora_jax.eval.aggregate.add_ranking_score`.

    Attributes:
      last_step: step of the newest evaluation, or None.
      scores: of that evaluation, {"TASK/SCORE": value} and the ranking score.
      best: the best ranking score so far; None before any evaluation.
    """

    def __init__(self, tasks: Mapping[str, Task], baseline: Mapping[str, float]):
        self.last_step: int | None = None
        self.scores: dict[str, float] = {}
        self.best: float | None = None
        self._tasks = tasks
        self._baseline = dict(baseline)

    @property
    def delta_m(self) -> float | None:
        """Delta_m of the newest evaluation, in percent; None without a baseline."""
        return self.scores.get("delta_m")

    def add(self, step: int, scores: Mapping[str, float]) -> bool:
        """Add an evaluation, {"TASK/SCORE": value}, and return whether it is the best so far."""
        self.last_step, self.scores = step, add_ranking_score(scores, self._tasks, self._baseline)
        ranking = self.scores.get("delta_m", self.scores.get("mean_score", math.nan))
        # Until a ranking score is finite, the newest model is as good as any.
        is_best = self.best is None or not math.isfinite(self.best) or ranking > self.best
        if is_best:
            self.best = ranking
        return is_best

    def describe_non_finite(self) -> list[str]:
        """Describe in a few words each task whose newest primary score is not finite."""
        primary = primary_scores(self.scores, self._tasks)
        return [f"{name} has the score {score}" for name, score in primary.items() if not math.isfinite(score)]

    def to_log(self) -> dict[str, float]:
        """Return the newest evaluation as scalars for the log."""
        return {f"{PREFIX}{name}": value for name, value in self.scores.items()}

    def restore(self, log: pathlib.Path, until_step: int) -> None:
        """Add the evaluations in a log up to a step, as process 0 sees it: others may see an older file.

        Ranking scores are computed anew, since older versions ranked by other scores.
        """
        needed = {f"{PREFIX}{name}/{task.primary_metric}" for name, task in self._tasks.items()}
        lines = read_lines(log) if jax.process_index() == 0 else []
        evaluations = [line for line in lines if line["step"] <= until_step and needed <= line.keys()]
        for line in sharding.allgather_json(evaluations)[0]:
            named = {name.removeprefix(PREFIX): value for name, value in line.items() if name.startswith(PREFIX)}
            scores = {name: math.nan if value is None else value for name, value in named.items() if "/" in name}
            self.add(line["step"], scores)
