"""When a run logs, saves and evaluates."""

import dataclasses
import math

from mtlora_jax.defaults import Config


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Decides by the number of updates so far; the last step always logs, saves and evaluates.

    Args:
      config: its epochs, `eval_*`, `checkpoint_every_*` and `log_every_steps`.
      steps_per_epoch: updates in an epoch.
    """

    config: Config
    steps_per_epoch: int

    @property
    def steps(self) -> int:
        """Updates of the whole run."""
        return self.config.epochs * self.steps_per_epoch

    def is_log_due(self, step: int) -> bool:
        return step % self.config.log_every_steps == 0 or step == self.steps

    def is_evaluation_due(self, step: int) -> bool:
        if step == 0:
            return self.config.eval_first
        return step == self.steps or self._ends_epoch(step, self.config.eval_every_epochs)

    def is_checkpoint_due(self, step: int) -> bool:
        """Return whether to save. Evaluations are preceded by one: a run stopped during them then repeats no step."""
        every = self.config.checkpoint_every_steps
        due = self._ends_epoch(step, self.config.checkpoint_every_epochs) or (every > 0 and step % every == 0)
        return due or self.is_evaluation_due(step)

    def evaluations_left(self, step: int) -> int:
        every = self.config.eval_every_epochs
        return math.ceil(self.config.epochs / every) - step // self.steps_per_epoch // every

    def _ends_epoch(self, step: int, every: int) -> bool:
        """Return whether `step` is the last of an epoch whose number is a multiple of `every`."""
        return step % (every * self.steps_per_epoch) == 0
