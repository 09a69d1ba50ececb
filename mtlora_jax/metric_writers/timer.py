"""Rate and remaining time of a run, and the share of time spent waiting for data."""

import collections
import statistics
import time
from collections.abc import Callable
from typing import Self

REMEMBERED = 9  # number of last stretches, and of last evaluations, that count


class StepTimer:
    """Estimates rate and remaining time from the seconds per training step and per evaluation.

    Both are (lower) medians of the last few measurements. A pause of the machine, or the compilation inside the first
    evaluation, thus spoils one measurement but not the estimate.

    Args:
      evaluation_steps: assumed cost of an evaluation in training steps until one has been timed, so that the remaining
        time does not jump then. A forward pass costs about a third of a training step.
      clock: returns seconds since some moment.
    """

    def __init__(self, evaluation_steps: float = 0.0, clock: Callable[[], float] = time.monotonic):
        self._evaluation_steps = evaluation_steps
        self._clock = clock
        self._step_seconds: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._eval_seconds: collections.deque[float] = collections.deque(maxlen=REMEMBERED)
        self._since = clock()
        self._steps = 0

    def start(self) -> None:
        """Starts a stretch of training; time before it (compilation, evaluation, checkpoints) does not count."""
        self._since, self._steps = self._clock(), 0

    def elapsed(self) -> float:
        """Seconds since this stretch began."""
        return self._clock() - self._since

    def count_step(self) -> None:
        """Counts one more started step of this stretch."""
        self._steps += 1

    def steps_per_second(self) -> float | None:
        """Rate over the last stretches; None before any was timed.

        Ends the current stretch, so call it when the counted steps are done.
        """
        if self._steps:
            self._step_seconds.append(self.elapsed() / self._steps)
            self.start()
        typical = _typical(self._step_seconds)
        return 1 / typical if typical else None

    def add_evaluation(self, seconds: float) -> None:
        """Adds the time an evaluation took."""
        self._eval_seconds.append(seconds)

    def format_remaining(self, steps: int, evaluations: int) -> str:
        """The time left, as h:mm:ss; "?" before any stretch was timed."""
        step_seconds = _typical(self._step_seconds)
        if step_seconds is None:
            return "?"
        eval_seconds = _typical(self._eval_seconds)
        if eval_seconds is None:
            eval_seconds = self._evaluation_steps * step_seconds
        seconds = round(steps * step_seconds + evaluations * eval_seconds)
        return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


class DataWaitTimer:
    """Adds up the time spent inside `with`, around `next(batches)`, in which the host waits for data."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._waited = 0.0

    def __enter__(self) -> Self:
        self._entered = self._clock()
        return self

    def __exit__(self, *error: object) -> None:
        self._waited += self._clock() - self._entered

    def take_share(self, seconds: float) -> float:
        """Share, 0 to 1, of the last `seconds` that was spent waiting since the previous call; resets the sum."""
        waited, self._waited = self._waited, 0.0
        return min(waited / seconds, 1.0) if seconds > 0 else 0.0


def _typical(measured: collections.deque[float]) -> float | None:
    return statistics.median_low(measured) if measured else None
