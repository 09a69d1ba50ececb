"""The loop of a training run: steps, and now and then a line of the log, a checkpoint, an evaluation."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtlora_jax.console import console
from mtlora_jax.data.pipeline import Batches
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import sharding
from mtlora_jax.distributed.preemption import Shutdown, Stopped
from mtlora_jax.errors import UserError
from mtlora_jax.eval.aggregate import primary_scores
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.experiment import Experiment
from mtlora_jax.metric_writers import InputWait, Records, Speed, Trace, memory
from mtlora_jax.train.checkpoints import Checkpoints
from mtlora_jax.train.fault_tolerance import BadExamples, Skips
from mtlora_jax.train.history import EvalHistory
from mtlora_jax.train.step import TrainState


@dataclasses.dataclass
class Loop:
    """A run between two of its steps.

    Attributes:
      state: after `step` updates.
      update: (state, frozen, batch, key) -> (state, metrics), compiled; see `mtlora_jax.train.step.train_step`.
      waiting: steps since the last line of the log: {"step", "metrics", "image_ids"}; their metrics are still on the device.
    """

    config: Config
    workdir: pathlib.Path
    experiment: Experiment
    steps_per_epoch: int
    state: TrainState
    update: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    batches: Batches
    evaluator: Evaluator
    checkpoints: Checkpoints
    history: EvalHistory
    records: Records
    trace: Trace
    speed: Speed
    shutdown: Shutdown
    skips: Skips
    bad: BadExamples
    waiting: list[dict[str, Any]]

    def __post_init__(self) -> None:
        self.step = int(self.state.step)
        self.steps = self.config.epochs * self.steps_per_epoch
        self.input_wait = InputWait()

    def run(self) -> None:
        """To the last step and its evaluation. Raises Stopped, with everything saved, when the run is asked to stop."""
        first, began = self.step, time.monotonic()
        mesh, frozen, key = self.experiment.mesh, self.experiment.frozen, jax.random.key(self.config.seed)
        self.speed.start()
        try:
            while True:
                self.save_and_evaluate(saved=first)
                if self.step >= self.steps:
                    break
                self.shutdown.check(mesh)
                self.trace.step(self.step)
                with self.input_wait:
                    batch = next(self.batches)
                self.state, metrics = self.update(self.state, frozen, sharding.put(batch, mesh), key)
                self.step += 1
                self.bad.look(self.step, batch)
                self.waiting.append({"step": self.step, "metrics": metrics, "image_ids": batch["image_id"].tolist()})
                if self.step == first + 1:  # this one compiles: its time says nothing about the others
                    jax.block_until_ready(metrics)
                    console.print(f"first step after {self.speed.elapsed():.1f} s, compilation included")
                    self.input_wait.share(self.speed.elapsed())
                    self.records.open()
                    self.speed.start()
                else:
                    self.speed.step()
                if self.step % self.config.log_every_steps == 0 or self.step == self.steps:
                    self.log()
        except Stopped:
            if self.step > first:
                self.save()
            raise
        if self.step == int(self.state.skipped):
            raise UserError(
                f"the loss or a gradient was not finite in all {self.step} steps, so nothing was trained; a lower "
                "--config.optimizer.learning_rate, or compute_dtype=float32, may help"
            )
        if self.step > first:
            share = self.checkpoints.seconds / (time.monotonic() - began)
            console.print(f"saving held up training for {self.checkpoints.seconds:.2f} s, {share:.2%} of its time")

    def save_and_evaluate(self, saved: int) -> None:
        """What this step calls for, unless it was done: step `saved` has its checkpoint.

        A checkpoint comes before the evaluation of its step, so that a run that is ended in there repeats nothing else.
        """
        config, (epoch, rest) = self.config, divmod(self.step, self.steps_per_epoch)
        evaluates = (
            config.eval_first if self.step == 0 else self.step == self.steps or (rest == 0 and epoch % config.eval_every_epochs == 0)
        )
        saves = evaluates or (rest == 0 and epoch % config.checkpoint_every_epochs == 0)
        if self.step > saved and (saves or (config.checkpoint_every_steps and self.step % config.checkpoint_every_steps == 0)):
            self.save()
        if evaluates and self.history.last_step != self.step:
            self.evaluate()

    def save(self) -> None:
        """Writes a checkpoint of this step, in the background."""
        self.waiting = fetched(self.waiting)
        self.tell_bad()
        remembered = {"waiting": self.waiting, "skipped_in_row": self.skips.in_row, "bad_examples": self.bad.known}
        self.checkpoints.save(self.step, self.state, self.batches.get_state(), remembered)

    def evaluate(self) -> None:
        """Scores, pictures and, if it is the best so far, the model of this step."""
        state, tasks, history = self.state, self.experiment.tasks, self.history
        scores, seconds = self.evaluator(state.trainable, state.batch_stats, self.watched)
        self.speed.evaluated(seconds)
        self.tell_bad()
        is_best = history.add(self.step, scores)
        for what in history.describe_non_finite():
            console.print(f"step {self.step}: {what}, so this model cannot be the best one")
        if is_best:
            best = {"step": self.step, "scores": history.scores}
            self.experiment.save(self.workdir / "best", state.trainable, state.batch_stats, best)
        self.records.images(self.step, self.evaluator.pictures(state.trainable, state.batch_stats))
        self.records.write(self.step, history.to_log())  # comes last: with this line the evaluation is done
        told = ", ".join(f"{name} {tasks[name].primary_metric} {value:.2f}" for name, value in primary_scores(scores, tasks).items())
        delta = "" if history.delta_m is None else f", Delta_m {history.delta_m:+.2f} %"
        console.print(f"step {self.step}: {told}{delta} ({seconds:.0f} s)")
        self.speed.start()

    def log(self) -> None:
        """One line for the steps that wait for it."""
        self.waiting = fetched(self.waiting)
        self.checkpoints.check()
        self.tell_bad()
        for past in self.waiting:
            self.skips.count(**past)
        scalars = summary([past["metrics"] for past in self.waiting])
        scalars |= {"learning_rate": self.waiting[-1]["metrics"]["learning_rate"]}
        self.waiting = []
        share = self.input_wait.share(self.speed.elapsed())
        rate = self.config.batch_size * (self.speed.steps_per_second() or 0.0)
        if rate:
            scalars |= {"images_per_second": rate, "input_wait": share}
        self.records.write(self.step, scalars | memory())
        losses = " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss"))
        evaluations = (
            math.ceil(self.config.epochs / self.config.eval_every_epochs)
            - self.step // self.steps_per_epoch // self.config.eval_every_epochs
        )
        console.print(
            f"epoch {self.step / self.steps_per_epoch:.2f}/{self.config.epochs} step {self.step}/{self.steps} {losses} "
            f"{f'{rate:.1f}' if rate else '?'} images/s ETA {self.speed.remaining(self.steps - self.step, evaluations)}"
            f"{' skipped {skipped:.0f}'.format_map(scalars) if scalars['skipped'] else ''}"
        )

    def watched(self, batches: Batches) -> Iterator[Mapping[str, np.ndarray]]:
        """The batches of an evaluation, between which it can be stopped."""
        with contextlib.closing(batches):
            for batch in self.bad.watch(self.step, batches):
                self.shutdown.check(self.experiment.mesh)
                yield batch

    def tell_bad(self) -> None:
        """Shows what could not be read since the last time."""
        for message in self.bad.settle():
            console.print(f"left out: {message}")


def fetched(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of some steps with their metrics on the host, as floats that survive JSON."""
    metrics = jax.device_get([step["metrics"] for step in steps])
    return [step | {"metrics": {name: float(value) for name, value in own.items()}} for step, own in zip(steps, metrics, strict=True)]


def summary(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over steps of each scalar, without values that are not finite; "skipped" is the number of steps that were."""
    finite = {name: [own[name] for own in metrics if math.isfinite(own[name])] for name in metrics[0]}
    return {name: sum(values) / len(values) for name, values in finite.items() if values} | {"skipped": sum(finite["skipped"])}
