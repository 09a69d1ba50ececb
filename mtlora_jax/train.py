"""The training run, top to bottom."""

import contextlib
import functools
import json
import pathlib
from typing import Any

import jax

from mtlora_jax import architecture as architectures
from mtlora_jax import experiment as experiments
from mtlora_jax import saved_config, sharding
from mtlora_jax.accounting import group_of_each, summarise
from mtlora_jax.checkpoint import Checkpoints, clear_when_full
from mtlora_jax.data import survey
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.evaluate import Evaluator, single_task_scores
from mtlora_jax.files import write_text
from mtlora_jax.guards import BadExamples, Skips
from mtlora_jax.loop import Loop
from mtlora_jax.optim import make_optimizer, make_schedule
from mtlora_jax.progress import Progress
from mtlora_jax.records import Records, Speed, Trace, console, finite_or_none, print_parameters, print_scores
from mtlora_jax.shutdown import Shutdown
from mtlora_jax.step import create_state, train_step

POSITIVE = ("epochs", "eval_every", "checkpoint_every", "log_every", "keep_checkpoints")
PROFILED = (3, 5)  # a trace begins so many steps after the first, and is so many steps long


def train(config: Config, workdir: pathlib.Path, profile: bool = False, override: bool = False) -> dict[str, float]:
    """Trains to the end, from the newest whole checkpoint of `workdir` if there is one. Returns the scores of the last evaluation.

    Wherever it is interrupted, by a kill too, the same call goes on as if nothing had happened, bit by bit.

    Args:
      config: see `mtlora_jax.defaults`.
      workdir: of the run, on a file system that all processes share.
      profile: write a trace of some steps to WORKDIR/trace.
      override: go on although the run was started with another config.

    Raises:
      UserError: for a config, data set or weights that cannot be used, before anything is written; for a fault that ends the run.
      Stopped: SIGTERM or SIGINT came. The run is saved.
    """
    check_numbers(config)
    with Shutdown(config.guards.grace_seconds) as shutdown, clear_when_full(workdir), contextlib.ExitStack() as closing:
        train_data = experiments.open_dataset(config, config.data.train_split)
        eval_data = experiments.open_dataset(config, config.data.eval_split)
        started = (workdir / "initial").exists()  # what labels lack was told then
        for line in survey.readings(train_data) + ([] if started else survey.lacks(train_data)):
            console.print(line)
        experiment = experiments.set_up(config, train_data.tasks, workdir)
        if not override:
            saved_config.refuse_other(workdir, config)
        mesh, tasks, everywhere = experiment.mesh, experiment.tasks, sharding.replicated(experiment.mesh)
        steps_per_epoch = max(len(train_data) // config.batch_size, 1)
        steps = config.epochs * steps_per_epoch
        schedule = make_schedule(config.optimizer, config.batch_size, steps_per_epoch, steps)
        optimizer = make_optimizer(config.optimizer, schedule, frozenset(experiment.trainable))
        batches = experiments.batches_to_train(config, train_data)
        closing.callback(batches.close)
        model = architectures.build(experiment.architecture)

        if not sharding.agreed((workdir / "initial").exists(), experiments.not_shared(workdir)):
            experiment.save(workdir / "initial", experiment.trainable, experiment.batch_stats, {})
        if jax.process_index() == 0 and (override or not (workdir / "config.json").exists()):
            saved_config.save(workdir, config)
        checkpoints = Checkpoints(workdir, config.keep_checkpoints, writing=True)
        closing.callback(checkpoints.close)
        shutdown.before_exit = checkpoints.wait
        state = sharding.replicate(create_state(experiment.trainable, experiment.batch_stats, optimizer), mesh)
        # The best model has the best Delta_m; where the config has no single-task scores, the best gain over this run's first evaluation.
        progress = Progress(tasks, single_task_scores(config, tasks))
        remembered: dict[str, Any] = {"waiting": [], "skipped_in_row": 0, "bad_examples": {}}
        restored = checkpoints.restore(state)
        if restored is not None:
            state, position, remembered = restored
            batches.set_state(position)
            progress.read(workdir / "log.jsonl", until=int(state.step))
        batches.start_prefetch()  # the workers take seconds to start, so all that can wait comes after this
        print_parameters(summarise(model, experiment.method, tuple(config.image_size)))

        update = jax.jit(
            functools.partial(
                train_step,
                graph=experiment.graph,
                tasks=tasks,
                weights={name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()},
                optimizer=optimizer,
                accumulation=config.accumulation,
                groups=group_of_each(model),
                schedule=schedule,
            ),
            in_shardings=(everywhere, everywhere, sharding.by_batch(mesh), everywhere),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        step = int(state.step)
        records = Records(workdir, step, jax.process_index() == 0, config.wandb)
        closing.callback(records.close)
        trace = Trace(workdir, step + PROFILED[0], PROFILED[1] if profile else 0)
        closing.callback(trace.close)
        console.print(f"step {step} to {steps}, {steps_per_epoch} an epoch, on {mesh.size} x {jax.devices()[0].device_kind}")
        Loop(
            config=config,
            workdir=workdir,
            experiment=experiment,
            steps_per_epoch=steps_per_epoch,
            state=state,
            update=update,
            batches=batches,
            evaluator=Evaluator(config, experiment, eval_data),
            checkpoints=checkpoints,
            progress=progress,
            records=records,
            trace=trace,
            speed=Speed(evaluation_steps=len(eval_data) / config.batch_size / 3),
            shutdown=shutdown,
            skips=Skips(config.guards.max_skipped_in_row, workdir, remembered["skipped_in_row"]),
            bad=BadExamples(
                config.guards.max_bad_examples,
                workdir / "bad_examples.jsonl",
                remembered["bad_examples"],
                config.guards.max_bad_share,
                {"training": len(train_data), "evaluation": len(eval_data)},
            ),
            waiting=remembered["waiting"],
        ).run()
    print_scores(progress.scores, f"Scores after {steps} steps")
    if jax.process_index() == 0:
        write_text(workdir / "metrics.json", json.dumps({"step": steps, **finite_or_none(progress.scores)}, indent=2) + "\n")
    console.print(f"best model: {workdir / 'best'}")
    return progress.scores


def check_numbers(config: Config) -> None:
    """Raises UserError unless counts are at least 1 and loss weights belong to tasks that are trained."""
    for key in POSITIVE:
        if config[key] < 1:
            raise UserError(f"{key} = {config[key]} must be at least 1")
    for key, least in {"max_skipped_in_row": 1, "max_bad_examples": 0, "grace_seconds": 0}.items():
        if config.guards[key] < least:
            raise UserError(f"guards.{key} = {config.guards[key]} must be at least {least}")
    if not 0 <= config.guards.max_bad_share <= 1:
        raise UserError(f"guards.max_bad_share = {config.guards.max_bad_share} must be between 0 and 1")
    for name in config.loss_weights:
        if name not in config.tasks:
            raise UserError(f"loss_weights.{name}: the config trains {', '.join(config.tasks)}")
