"""Evaluations during a training run."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from mtlora_jax.console import console
from mtlora_jax.data.pipeline import Batches
from mtlora_jax.eval.aggregate import primary_scores
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.experiment import Experiment
from mtlora_jax.metric_writers import MetricWriter, StepTimer
from mtlora_jax.train.fault_tolerance import UnreadableExamples
from mtlora_jax.train.history import EvalHistory
from mtlora_jax.train.step import TrainState


@dataclasses.dataclass
class Validation:
    """Scores and pictures of a step; keeps the best model.

    Attributes:
      best: the model folder of the best model.
      check_stop: raises Stopped if the run is asked to stop; called between batches.
    """

    experiment: Experiment
    best: pathlib.Path
    evaluator: Evaluator
    history: EvalHistory
    writer: MetricWriter
    timer: StepTimer
    unreadable: UnreadableExamples
    check_stop: Callable[[], None]

    def is_done(self, step: int) -> bool:
        return self.history.last_step == step

    def __call__(self, step: int, state: TrainState) -> None:
        """Evaluate the weights of a step. The line of the log is written last and marks the evaluation as done."""
        history, tasks = self.history, self.experiment.tasks
        scores, seconds = self.evaluator(
            state.trainable, state.batch_stats, lambda batches: self._interruptible(step, batches)
        )
        self.timer.add_evaluation(seconds)
        self.unreadable.report()
        is_best = history.add(step, scores)
        for what in history.describe_non_finite():
            console.print(f"step {step}: {what}, so this model cannot be the best one")
        if is_best:
            self.experiment.save(
                self.best, state.trainable, state.batch_stats, {"step": step, "scores": history.scores}
            )
        self.writer.images(step, self.evaluator.pictures(state.trainable, state.batch_stats))
        self.writer.write(step, history.to_log())
        told = ", ".join(
            f"{name} {tasks[name].primary_metric} {value:.2f}" for name, value in primary_scores(scores, tasks).items()
        )
        delta = "" if history.delta_m is None else f", Delta_m {history.delta_m:+.2f} %"
        console.print(f"step {step}: {told}{delta} ({seconds:.0f} s)")
        self.timer.start()

    def _interruptible(self, step: int, batches: Batches) -> Iterator[Mapping[str, np.ndarray]]:
        with contextlib.closing(batches):
            for batch in self.unreadable.wrap(step, batches):
                self.check_stop()
                yield batch
