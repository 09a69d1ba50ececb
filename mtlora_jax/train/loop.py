"""The loop of a training run: steps, with lines of the log, checkpoints and evaluations in between."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from mtlora_jax.console import console
from mtlora_jax.data.pipeline import Batches
from mtlora_jax.distributed.preemption import Stopped
from mtlora_jax.errors import UserError
from mtlora_jax.train.checkpoints import Checkpoints
from mtlora_jax.train.fault_tolerance import UnreadableExamples
from mtlora_jax.train.intervals import Intervals
from mtlora_jax.train.loop_state import LoopState
from mtlora_jax.train.step import TrainState
from mtlora_jax.train.step_log import StepLog
from mtlora_jax.train.validation import Validation

Step = Callable[[TrainState, Mapping[str, np.ndarray]], tuple[TrainState, dict[str, jax.Array]]]


@dataclasses.dataclass
class Loop:
    """A run between two of its steps.

    Attributes:
      state: after `step` updates; its arrays are donated to `train_step`.
      train_step: (state, batch of this process) -> (state, metrics), compiled.
      before_step: called with the step before each update; may raise Stopped.
    """

    intervals: Intervals
    state: TrainState
    train_step: Step
    batches: Batches
    checkpoints: Checkpoints
    step_log: StepLog
    validation: Validation
    unreadable: UnreadableExamples
    before_step: Sequence[Callable[[int], None]]

    def __post_init__(self) -> None:
        self.step = int(self.state.step)

    def run(self) -> None:
        """Train to the last step and its evaluation.

        Raises:
          Stopped: the run was asked to stop; everything is saved.
          UserError: no step trained anything.
        """
        first, began = self.step, time.monotonic()
        try:
            self._save_and_evaluate(saved=first)
            while self.step < self.intervals.steps:
                self._update()
                if self.intervals.is_log_due(self.step):
                    self._log()
                self._save_and_evaluate(saved=first)
        except Stopped:
            if self.step > first:
                self._save()
            raise
        if self.step == int(self.state.skipped):
            raise UserError(
                f"the loss or a gradient was not finite in all {self.step} steps, so nothing was trained; a lower "
                "--config.optimizer.learning_rate, or compute_dtype=float32, may help"
            )
        if self.step > first:
            share = self.checkpoints.seconds / (time.monotonic() - began)
            console.print(f"saving held up training for {self.checkpoints.seconds:.2f} s, {share:.2%} of its time")

    def _update(self) -> None:
        for hook in self.before_step:
            hook(self.step)
        with self.step_log.data_wait:
            batch = next(self.batches)
        self.state, metrics = self.train_step(self.state, batch)
        self.step += 1
        self.unreadable.record(self.step, batch)
        self.step_log.add(self.step, metrics, batch["image_id"].tolist())

    def _save_and_evaluate(self, saved: int) -> None:
        """Save and evaluate if this is due and not done yet; the checkpoint of step `saved` exists."""
        if self.step > saved and self.intervals.is_checkpoint_due(self.step):
            self._save()
        if self.intervals.is_evaluation_due(self.step) and not self.validation.is_done(self.step):
            self.validation(self.step, self.state)

    def _save(self) -> None:
        """Write a checkpoint of this step, in the background."""
        pending = self.step_log.fetch_pending()
        self.unreadable.report()
        loop_state = LoopState(
            self.batches.get_state(), pending, self.step_log.consecutive_skips, self.unreadable.known
        )
        self.checkpoints.save(self.step, self.state, loop_state.data, loop_state.to_json())

    def _log(self) -> None:
        self.step_log.fetch_pending()
        self.checkpoints.check()
        self.unreadable.report()
        self.step_log.write(self.step)
