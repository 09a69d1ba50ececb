"""The evaluations of a run, as its log.jsonl has them."""

import math
import pathlib
from collections.abc import Mapping

import jax

from mtlora_jax.distributed import sharding
from mtlora_jax.eval.aggregate import primary_scores, with_gain
from mtlora_jax.io.jsonl import lines_of
from mtlora_jax.tasks.task import Task

EVALUATION = "eval/"  # so begin the names of scores in the log


class Progress:
    """Which evaluations were made, what the last one gave, and what the best gain is.

    The line in the log is what makes an evaluation done: a resumed run reads it, and repeats an evaluation that has none.

    Args:
      tasks: that are trained.
      reference: {task: score of its single-task model}. If it is empty, the first evaluation is what others are compared with.

    Attributes:
      last: step of the newest evaluation, or None.
      scores: of that evaluation, {"TASK/SCORE": value} and the gain.
      best: the best gain so far, percent; None before any evaluation.
      gain_name: "delta_m", or "gain_over_first" where there is no `reference`.
    """

    def __init__(self, tasks: Mapping[str, Task], reference: Mapping[str, float]):
        self.last: int | None = None
        self.scores: dict[str, float] = {}
        self.best: float | None = None
        self.gain_name = "delta_m" if reference else "gain_over_first"
        self._tasks = tasks
        self._reference = dict(reference)

    @property
    def gain(self) -> float:
        """Of the last evaluation, percent; NaN where no task has a reference."""
        return self.scores.get(self.gain_name, math.nan)

    def add(self, step: int, scores: Mapping[str, float]) -> bool:
        """Takes note of an evaluation and tells whether it is the best so far."""
        self._reference = self._reference or primary_scores(scores, self._tasks)
        self.last, self.scores = step, with_gain(scores, self._tasks, self._reference, self.gain_name)
        # Until there is a finite gain, the newest model is as good as any.
        is_best = self.best is None or not math.isfinite(self.best) or self.gain > self.best
        if is_best:
            self.best = self.gain
        return is_best

    def odd(self) -> list[str]:
        """Tasks whose score or reference is not finite, each with the reason."""
        primary = primary_scores(self.scores, self._tasks)
        found = [f"{name} has the score {score}" for name, score in primary.items() if not math.isfinite(score)]
        return found + [f"{name} has nothing to be compared with" for name, score in self._reference.items() if not math.isfinite(score)]

    def line(self) -> dict[str, float]:
        """The last evaluation as scalars for the log."""
        return {f"{EVALUATION}{name}": value for name, value in self.scores.items()}

    def read(self, log: pathlib.Path, until: int) -> None:
        """Takes note of the evaluations that a log has up to step `until`, as process 0 sees it: others may see an older one."""
        lines = lines_of(log) if jax.process_index() == 0 else []
        found = [
            (entry["step"], {name.removeprefix(EVALUATION): value for name, value in entry.items() if name.startswith(EVALUATION)})
            for entry in lines
        ]
        needed = {f"{name}/{task.primary}" for name, task in self._tasks.items()}
        evaluations = [(step, scores) for step, scores in found if step <= until and needed <= scores.keys()]
        for step, scores in sharding.of_all_processes(evaluations)[0]:
            self.add(step, {name: math.nan if value is None else value for name, value in scores.items()})
