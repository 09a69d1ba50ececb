"""Lines of the log about training steps."""

import math
from collections.abc import Mapping, Sequence

import jax

from mtlora_jax.console import console
from mtlora_jax.metric_writers import DataWaitTimer, MetricWriter, StepTimer, memory
from mtlora_jax.train.fault_tolerance import NonFiniteGuard
from mtlora_jax.train.intervals import Intervals
from mtlora_jax.train.loop_state import PendingStep, fetch


class StepLog:
    """Collects steps and writes one line for several: mean losses, gradient norms, speed, memory.

    Args:
      intervals: of the run.
      writer: takes the lines.
      timer: shared with evaluations, whose time is not training time.
      guard: gets the metrics of every step and ends a run that no longer trains.
      pending: steps that an interrupted run had not logged yet.

    Attributes:
      data_wait: context manager to enter around `next(batches)`.
    """

    def __init__(
        self,
        intervals: Intervals,
        writer: MetricWriter,
        timer: StepTimer,
        guard: NonFiniteGuard,
        pending: Sequence[PendingStep],
    ):
        self.data_wait = DataWaitTimer()
        self._intervals = intervals
        self._writer = writer
        self._timer = timer
        self._guard = guard
        self._pending = list(pending)
        self._compiled = False

    @property
    def consecutive_skips(self) -> int:
        """Number of the newest logged steps that were skipped."""
        return self._guard.consecutive

    def add(self, step: int, metrics: Mapping[str, jax.Array], image_ids: list[str]) -> None:
        """Add a step that was started.

        Waits for the first one: it compiles, so its time says nothing about the others.
        """
        self._pending.append(PendingStep(step, metrics, image_ids))
        if self._compiled:
            self._timer.count_step()
            return
        self._compiled = True
        jax.block_until_ready(metrics)
        console.print(f"first step after {self._timer.elapsed():.1f} s, compilation included")
        self.data_wait.take_share(self._timer.elapsed())
        self._writer.open()
        self._timer.start()

    def fetch_pending(self) -> list[PendingStep]:
        """Wait for the steps since the last line and return them with their metrics on the host."""
        self._pending = fetch(self._pending)
        return self._pending

    def write(self, step: int) -> None:
        """Write one line for the steps since the last one. Raises UserError if the guard ends the run."""
        pending, self._pending = self.fetch_pending(), []
        for past in pending:
            self._guard.record(past.step, past.metrics, past.image_ids)
        scalars = summarise([past.metrics for past in pending])
        scalars["learning_rate"] = pending[-1].metrics["learning_rate"]
        data_wait = self.data_wait.take_share(self._timer.elapsed())
        rate = self._intervals.config.batch_size * (self._timer.steps_per_second() or 0.0)
        if rate:
            scalars |= {"images_per_second": rate, "input_wait": data_wait}
        self._writer.write(step, scalars | memory())
        self._print(step, scalars, rate)

    def _print(self, step: int, scalars: Mapping[str, float], rate: float) -> None:
        intervals = self._intervals
        losses = " ".join(
            f"{name.removeprefix('loss/')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss")
        )
        remaining = self._timer.format_remaining(intervals.steps - step, intervals.evaluations_left(step))
        epoch = f"{step / intervals.steps_per_epoch:.2f}/{intervals.config.epochs}"
        speed = f"{rate:.1f}" if rate else "?"
        skipped = f" skipped {scalars['skipped']:.0f}" if scalars["skipped"] else ""
        console.print(f"epoch {epoch} step {step}/{intervals.steps} {losses} {speed} images/s ETA {remaining}{skipped}")


def summarise(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Compute the mean over steps of each scalar, without values that are not finite.

    "skipped" is the number of skipped steps.
    """
    finite = {name: [own[name] for own in metrics if math.isfinite(own[name])] for name in metrics[0]}
    return {name: sum(values) / len(values) for name, values in finite.items() if values} | {
        "skipped": sum(finite["skipped"])
    }
