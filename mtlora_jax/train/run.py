"""The training run, top to bottom."""

import contextlib
import functools
import pathlib
from typing import Any

import jax

from mtlora_jax import config_checks, model_factory
from mtlora_jax import experiment as experiments
from mtlora_jax.analysis.param_counts import group_of_each, summarise
from mtlora_jax.console import console, print_parameters, print_scores
from mtlora_jax.data import survey
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.distributed.preemption import Shutdown
from mtlora_jax.errors import UserError
from mtlora_jax.eval.aggregate import delta_m_baseline
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.io import locks
from mtlora_jax.io.files import check_writable, write_json
from mtlora_jax.metric_writers import Records, Speed, Trace, finite_or_none
from mtlora_jax.model_io import initial_weights
from mtlora_jax.train import run_config
from mtlora_jax.train.checkpoints import Checkpoints, clear_when_full
from mtlora_jax.train.fault_tolerance import BadExamples, Skips
from mtlora_jax.train.history import EvalHistory
from mtlora_jax.train.loop import Loop
from mtlora_jax.train.optimizer import make_optimizer, make_schedule
from mtlora_jax.train.step import create_state, train_step

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
    agreement.together(lambda: config_checks.check(config))
    with Shutdown(config.fault_tolerance.grace_seconds) as shutdown, clear_when_full(workdir), contextlib.ExitStack() as closing:
        agreement.require_same(agreement.of_start(config, mode="train", override_config=override, profile=profile))
        agreement.together(lambda: claim(workdir, closing))
        splits = config.data.train_split, config.data.eval_split
        train_data, eval_data = experiments.open_datasets(config, *splits)
        described = agreement.of_data(train_data, splits[0]) | agreement.of_data(eval_data, splits[1])
        experiment = experiments.set_up(config, train_data.tasks, workdir)
        started = (workdir / "initial").exists()  # what labels lack was told then
        for line in agreement.together(
            lambda: survey.describe_label_encodings(train_data) + ([] if started else survey.describe_missing_values(train_data))
        ):
            console.print(line)
        if not override:
            agreement.together(lambda: refuse_other_config(workdir, config))
            agreement.together(lambda: run_config.refuse_other_data(workdir, described))
        mesh, tasks, everywhere = experiment.mesh, experiment.tasks, sharding.replicated(experiment.mesh)
        steps_per_epoch = max(len(train_data) // config.batch_size, 1)
        steps = config.epochs * steps_per_epoch
        schedule = make_schedule(config.optimizer, config.batch_size, steps_per_epoch, steps)
        optimizer = make_optimizer(config.optimizer, schedule, frozenset(experiment.trainable))
        batches = experiments.batches_to_train(config, train_data)
        closing.callback(batches.close)
        model = model_factory.build(experiment.architecture)

        if not sharding.agreed((workdir / "initial").exists(), experiments.not_shared(workdir)):
            experiment.save(workdir / "initial", experiment.trainable, experiment.batch_stats, {})
        checkpoints = Checkpoints(workdir, config.keep_checkpoints, writing=True)
        closing.callback(checkpoints.close)
        shutdown.before_exit = checkpoints.wait
        state = sharding.replicate(create_state(experiment.trainable, experiment.batch_stats, optimizer), mesh)
        history = EvalHistory(tasks, delta_m_baseline(config, tasks))
        remembered: dict[str, Any] = {"waiting": [], "skipped_in_row": 0, "bad_examples": {}}
        restored = checkpoints.restore(state)
        if restored is not None:
            state, position, remembered = restored
            if int(state.step) > steps:
                raise UserError(
                    f"{workdir} holds a run of {int(state.step)} steps already, more than the {steps} of epochs = {config.epochs}; give "
                    "more --config.epochs, or choose another --workdir"
                )
            batches.set_state(position)
            history.restore(workdir / "log.jsonl", until_step=int(state.step))
        if jax.process_index() == 0 and (override or not (workdir / run_config.CONFIG).exists()):
            run_config.save(workdir, config, described)
        batches.start_prefetch()  # the workers take seconds to start, so all that can wait comes after this
        print_parameters(summarise(model, experiment.method, tuple(config.image_size)))

        update = jax.jit(
            functools.partial(
                train_step,
                graph=experiment.graph,
                tasks=tasks,
                weights={name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()},
                optimizer=optimizer,
                encoder_microbatches=config.encoder_microbatches,
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
            history=history,
            records=records,
            trace=trace,
            speed=Speed(evaluation_steps=len(eval_data) / config.batch_size / 3),
            shutdown=shutdown,
            skips=Skips(config.fault_tolerance.max_consecutive_nonfinite_steps, workdir, remembered["skipped_in_row"]),
            bad=BadExamples(
                config.fault_tolerance.max_unreadable_examples,
                workdir / "bad_examples.jsonl",
                remembered["bad_examples"],
                config.fault_tolerance.max_unreadable_share,
                {"training": len(train_data), "evaluation": len(eval_data)},
            ),
            waiting=remembered["waiting"],
        ).run()
        if jax.process_index() == 0:
            write_json(workdir / "metrics.json", {"step": history.last_step, **finite_or_none(history.scores)})
    print_scores(history.scores, f"Scores after {history.last_step} steps")
    console.print(f"best model: {workdir / 'best'}")
    return history.scores


def refuse_other_config(workdir: pathlib.Path, config: Config) -> None:
    """Raises UserError for a config that contradicts that of the run. The model folder that it started from may have been moved."""
    moved = config.init_from and config.init_from != run_config.started_with(workdir, "init_from")
    run_config.refuse_other(
        workdir, config, ["init_from"] if moved and initial_weights.holds(config.init_from, workdir / "initial") else []
    )


def claim(workdir: pathlib.Path, closing: contextlib.ExitStack) -> None:
    """Locks `workdir` until `closing` is closed; process 0 does it for all processes.

    Raises UserError if the folder cannot be written or another program holds it; nothing is changed then.
    """
    check_writable(workdir)
    if jax.process_index() == 0:
        closing.enter_context(locks.hold_lock(workdir, "wait for its end, stop it, or choose another --workdir"))
