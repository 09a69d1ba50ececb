"""Scores of a model on a whole split."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mtlora_jax import agreement, config_checks, initial_weights, saved_config, sharding
from mtlora_jax import experiment as experiments
from mtlora_jax.checkpoint import Checkpoints
from mtlora_jax.data import survey
from mtlora_jax.data.pipeline import Batches, Dataset
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import Experiment
from mtlora_jax.files import check_writable, read_json, write_json
from mtlora_jax.guards import BadExamples
from mtlora_jax.metrics import Totals, add, delta_m
from mtlora_jax.original_size import OriginalSizeEvaluator
from mtlora_jax.parameters import Flat
from mtlora_jax.predictions import Pictures
from mtlora_jax.records import console, finite_or_none, print_columns
from mtlora_jax.step import eval_step
from mtlora_jax.tasks.task import Task

Statistics = Mapping[str, Mapping[str, jax.Array]]  # {task: {name: sum}}


class Evaluator:
    """Evaluates weights on one split, again and again, with one compiled step.

    Attributes:
      pictures: called with (trainable, batch_stats), shows what is predicted of a few images; see `Pictures`.
    """

    def __init__(self, config: Config, experiment: Experiment, data: Dataset):
        self.pictures = Pictures(config, experiment, data)
        self._experiment = experiment
        everywhere, split = sharding.replicated(experiment.mesh), sharding.by_batch(experiment.mesh)
        self._step = jax.jit(
            functools.partial(eval_step, graph=experiment.graph, tasks=experiment.tasks),
            in_shardings=(everywhere, everywhere, everywhere, split),
            out_shardings=everywhere,
        )
        self._compiled: Callable[..., Statistics] | None = None
        self._batches = functools.partial(experiments.batches_to_evaluate, config, data)

    def __call__(
        self, trainable: Flat, batch_stats: Flat, watched: Callable[[Batches], Iterable[Mapping[str, np.ndarray]]] = iter
    ) -> tuple[dict[str, float], float]:
        """({"TASK/SCORE": value}, seconds, those of the compilation left out).

        `watched` passes the batches on, and may look at them or raise.
        """
        start = time.monotonic()

        def compute(batch: dict[str, jax.Array]) -> Statistics:
            nonlocal start
            arguments = (trainable, batch_stats, self._experiment.frozen, batch)
            if self._compiled is None:
                began = time.monotonic()
                self._compiled = self._step.lower(*arguments).compile()
                start += time.monotonic() - began
            return self._compiled(*arguments)

        with contextlib.closing(self._batches()) as batches:
            scores = evaluate(compute, watched(batches), self._experiment.tasks, self._experiment.mesh)
        return scores, time.monotonic() - start


def evaluate(
    compute: Callable[[dict[str, jax.Array]], Statistics],
    batches: Iterable[Mapping[str, np.ndarray]],
    tasks: Mapping[str, Task],
    mesh: Mesh,
) -> dict[str, float]:
    """Runs over all batches once.

    Args:
      compute: device batch -> statistics.
      batches: each with a "mask" of the images that count.

    Returns:
      {"TASK/SCORE": value}.
    """
    totals: Totals = {}
    pending: Statistics = {}  # statistics are fetched one batch late, so that the host prepares a batch while the device works on another
    for batch in batches:
        ahead = compute(sharding.put(batch, mesh))
        add(totals, pending)
        pending = ahead
    add(totals, pending)
    return {f"{name}/{score}": float(value) for name, task in tasks.items() for score, value in task.scores(totals[name]).items()}


def primary_scores(scores: Mapping[str, float], tasks: Mapping[str, Task]) -> dict[str, float]:
    """{task: its score of the papers' tables}."""
    return {name: scores[f"{name}/{task.primary}"] for name, task in tasks.items()}


def with_gain(
    scores: Mapping[str, float], tasks: Mapping[str, Task], reference: Mapping[str, float], name: str = "delta_m"
) -> dict[str, float]:
    """Adds the mean relative gain (percent) over the tasks that `reference` has a finite score other than 0 for; nothing if there is none.

    With the scores of single-task models as reference this is Delta_m.
    """
    compared = {task: tasks[task] for task in tasks if reference.get(task) and math.isfinite(reference[task])}
    if not compared:
        return dict(scores)
    return {**scores, name: delta_m(primary_scores(scores, compared), reference, compared)}


def single_task_scores(config: Config, tasks: Mapping[str, Task]) -> dict[str, float]:
    """{task: primary score of its single-task model}, what Delta_m compares with; tasks without one are not in it.

    From the files of `config.single_task_files` if there are any: each a metrics.json or the workdir that holds one, as a run of the
    single_task method leaves it, and each tells of at least one of the tasks. Else `config.single_task`.

    Raises:
      UserError: for a file that cannot be read or tells of none of the tasks, and for a task that two files tell of.
    """
    if not config.single_task_files:
        return {name: score for name, score in config.single_task.items() if name in tasks}
    found: dict[str, float] = {}
    for name in config.single_task_files:
        path = pathlib.Path(name)
        path = path / "metrics.json" if path.is_dir() else path
        try:
            values = read_json(path)
        except UserError as error:
            raise UserError(f"single_task_files: {error}; expected the workdir of a finished run") from error
        values = values if isinstance(values, dict) else {}
        scores = {task: values[f"{task}/{tasks[task].primary}"] for task in tasks if f"{task}/{tasks[task].primary}" in values}
        wanted = ", ".join(f"{task}/{tasks[task].primary}" for task in tasks)
        if not scores or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores.values()):
            raise UserError(f"single_task_files: {path} has no score of these tasks; expected a number for one of {wanted}")
        if found.keys() & scores:
            raise UserError(f"single_task_files: {path} tells of {', '.join(found.keys() & scores)} again; give each task once")
        found |= scores
    return found


def evaluate_only(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Scores of the newest checkpoint of `workdir`, or of the model folder `config.init` if there is no run.

    Prints them and writes WORKDIR/evaluation.json: {"model": str, "split": str, "images": int, "scores": {"TASK/SCORE": value}}, and under
    "original_size" those at the size of each image's file, if `config.evaluation` asks for them. Returns the "scores".
    """
    agreement.together(lambda: config_checks.check(config))
    agreement.require_same(agreement.of_start(config, mode="evaluate"))
    agreement.together(lambda: check_writable(workdir))
    (data,) = experiments.open_datasets(config, config.data.eval_split)
    for line in survey.readings(data):
        console.print(line)
    started = sharding.agreed((workdir / "initial").exists(), experiments.not_shared(workdir))
    if not started and not config.init:
        raise UserError(f"nothing to evaluate: {workdir} holds no run and config.init names no model folder")
    other = started and config.init and config.init != saved_config.started_with(workdir, "init")
    if other and not initial_weights.holds(config.init, workdir / "initial"):
        raise UserError(
            f"{workdir} holds a run, which is what would be evaluated, and not init = {config.init}; leave out --config.init, or choose "
            "another --workdir to evaluate that model"
        )
    experiment = experiments.set_up(config, data.tasks, workdir, complete=True)
    reference = single_task_scores(config, experiment.tasks)
    trainable, batch_stats, what = experiment.trainable, experiment.batch_stats, config.init
    if started:
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        step = 0
        if checkpoints.latest() is not None:
            step, trainable, batch_stats = checkpoints.restore_weights(trainable, batch_stats)
        what = f"{workdir}, step {step}"

    height, width = config.image_size
    evaluators: dict[str, Evaluator | OriginalSizeEvaluator] = {f"at {height}x{width}": Evaluator(config, experiment, data)}
    if config.evaluation.original_size or config.evaluation.boundaries:
        evaluators["at original size"] = OriginalSizeEvaluator(config, experiment, data)
    bad = BadExamples(config.guards.max_bad_examples, share=config.guards.max_bad_share, sizes={"evaluation": len(data)})
    columns, seconds = {}, 0.0
    for heading, evaluator in evaluators.items():
        scores, own_seconds = evaluator(trainable, batch_stats, functools.partial(bad.watch, 0))
        columns[heading] = with_gain(scores, experiment.tasks, reference)
        seconds += own_seconds
    for message in bad.settle():
        console.print(f"left out: {message}")
    notes = {f"{name}/{score}": note for name, task in experiment.tasks.items() for score, note in task.notes.items()}
    split, images = config.data.eval_split, len(data) - len(bad.known)
    print_columns(columns, f"Scores of {what} on {split}", notes)
    console.print(f"{images} images in {seconds:.0f} s, {len(bad.known)} left out")
    named = dict(zip(("scores", "original_size"), map(finite_or_none, columns.values()), strict=False))
    report = {"model": what, "split": split, "images": images, **named}
    if jax.process_index() == 0:
        write_json(workdir / "evaluation.json", report)
    return next(iter(columns.values()))
