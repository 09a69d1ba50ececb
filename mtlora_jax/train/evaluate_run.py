"""Evaluation of a run, or of a model folder, without training."""

import functools
import pathlib

import jax

from mtlora_jax import config_checks
from mtlora_jax import experiment as experiments
from mtlora_jax.console import console, print_columns
from mtlora_jax.data import survey
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.errors import UserError
from mtlora_jax.eval.aggregate import add_ranking_score, delta_m_baseline
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.eval.native_resolution import NativeResolutionEvaluator
from mtlora_jax.io.files import check_writable, write_json
from mtlora_jax.metric_writers import finite_or_none
from mtlora_jax.model_io import initial_weights
from mtlora_jax.train import run_config
from mtlora_jax.train.checkpoints import Checkpoints
from mtlora_jax.train.fault_tolerance import UnreadableExamples


def evaluate_only(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Evaluate the newest checkpoint of `workdir`, or the model folder `config.init_from` if there is no run.

    Prints the scores and writes WORKDIR/evaluation.json: {"model": str, "split": str, "images": int, "scores":
    {"TASK/SCORE": value}}. "original_size" has the scores at the size of each image file, if `config.evaluation` asks
    for them. Returns the "scores".
    """
    agreement.run_together(lambda: config_checks.check(config))
    agreement.require_same(agreement.describe_start(config, mode="evaluate"))
    agreement.run_together(lambda: check_writable(workdir))
    (data,) = experiments.open_datasets(config, config.data.eval_split)
    for line in survey.describe_label_encodings(data):
        console.print(line)
    started = sharding.assert_equal_across_processes((workdir / "initial").exists(), experiments.not_shared(workdir))
    if not started and not config.init_from:
        raise UserError(f"nothing to evaluate: {workdir} holds no run and config.init_from names no model folder")
    other = started and config.init_from and config.init_from != run_config.read_value(workdir, "init_from")
    if other and not initial_weights.holds(config.init_from, workdir / "initial"):
        raise UserError(
            f"{workdir} holds a run, which would be evaluated instead of init_from = {config.init_from}; "
            "leave out --config.init_from, or choose another --workdir to evaluate that model"
        )
    experiment = experiments.build_experiment(config, data.tasks, workdir, complete=True)
    baseline = delta_m_baseline(config, experiment.tasks)
    trainable, batch_stats, what = experiment.trainable, experiment.batch_stats, config.init_from
    if started:
        checkpoints = Checkpoints(workdir, config.keep_checkpoints)
        step = 0
        if checkpoints.latest() is not None:
            step, trainable, batch_stats = checkpoints.restore_weights(trainable, batch_stats)
        what = f"{workdir}, step {step}"

    height, width = config.image_size
    evaluators: dict[str, Evaluator | NativeResolutionEvaluator] = {
        f"at {height}x{width}": Evaluator(config, experiment, data)
    }
    if config.evaluation.original_size or config.evaluation.boundaries:
        evaluators["at original size"] = NativeResolutionEvaluator(config, experiment, data)
    unreadable = UnreadableExamples(
        config.fault_tolerance.max_unreadable_examples,
        share=config.fault_tolerance.max_unreadable_share,
        sizes={"evaluation": len(data)},
    )
    columns, seconds = {}, 0.0
    for heading, evaluator in evaluators.items():
        scores, own_seconds = evaluator(trainable, batch_stats, functools.partial(unreadable.wrap, 0))
        columns[heading] = add_ranking_score(scores, experiment.tasks, baseline)
        seconds += own_seconds
    unreadable.report()
    notes = {
        f"{name}/{score}": note for name, task in experiment.tasks.items() for score, note in task.metric_notes.items()
    }
    split, images = config.data.eval_split, len(data) - len(unreadable.known)
    print_columns(columns, f"Scores of {what} on {split}", notes)
    console.print(f"{images} images in {seconds:.0f} s, {len(unreadable.known)} left out")
    named = dict(zip(("scores", "original_size"), map(finite_or_none, columns.values()), strict=False))
    report = {"model": what, "split": split, "images": images, **named}
    if jax.process_index() == 0:
        write_json(workdir / "evaluation.json", report)
    return next(iter(columns.values()))
