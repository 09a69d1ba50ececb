"""A training run from start to end."""

import contextlib
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import optax

from mtlora_jax import config_checks, model_factory
from mtlora_jax import experiment as experiments
from mtlora_jax.analysis.param_counts import group_of_each, summarise
from mtlora_jax.console import console, print_parameters, print_scores
from mtlora_jax.data import survey
from mtlora_jax.data.pipeline import Dataset
from mtlora_jax.defaults import Config
from mtlora_jax.distributed import agreement, sharding
from mtlora_jax.distributed.preemption import Shutdown
from mtlora_jax.errors import UserError
from mtlora_jax.eval.aggregate import delta_m_baseline
from mtlora_jax.eval.evaluator import Evaluator
from mtlora_jax.experiment import Experiment
from mtlora_jax.io import locks
from mtlora_jax.io.files import check_writable, write_json
from mtlora_jax.metric_writers import MetricWriter, Profiler, StepTimer, finite_or_none
from mtlora_jax.model_io import initial_weights
from mtlora_jax.tasks.task import Task
from mtlora_jax.train import run_config
from mtlora_jax.train.checkpoints import Checkpoints, clear_when_full
from mtlora_jax.train.fault_tolerance import NonFiniteGuard, UnreadableExamples
from mtlora_jax.train.history import EvalHistory
from mtlora_jax.train.intervals import Intervals
from mtlora_jax.train.loop import Loop, Step
from mtlora_jax.train.loop_state import LoopState
from mtlora_jax.train.optimizer import make_optimizer, make_schedule
from mtlora_jax.train.step import TrainState, create_state, train_step
from mtlora_jax.train.step_log import StepLog
from mtlora_jax.train.validation import Validation

PROFILED = (3, 5)  # steps before a profile begins, and its length in steps


def train(config: Config, workdir: pathlib.Path, profile: bool = False, override: bool = False) -> dict[str, float]:
    """Train to the end, from the newest whole checkpoint of `workdir` if there is one.

    After any interruption, even a kill, the same call continues as if nothing had happened, bit by bit. Returns the
    scores of the last evaluation.

    Args:
      config: see `mtlora_jax.defaults`.
      workdir: of the run, on a file system that all processes share.
      profile: whether to write a trace of some steps to WORKDIR/trace.
      override: whether to continue although the run was started with another config.

    Raises:
      UserError: for a config, data set or weights that cannot be used, before anything is written; for a fault that
        ends the run.
      Stopped: SIGTERM or SIGINT came. The run is saved.
    """
    agreement.run_together(lambda: config_checks.check(config))
    limits = config.fault_tolerance
    with Shutdown(limits.grace_seconds) as shutdown, clear_when_full(workdir), contextlib.ExitStack() as closing:
        # Refuse everything that can be refused before anything is written.
        agreement.require_same(
            agreement.describe_start(config, mode="train", override_config=override, profile=profile)
        )
        agreement.run_together(lambda: claim(workdir, closing))
        splits = config.data.train_split, config.data.eval_split
        train_data, eval_data = experiments.open_datasets(config, *splits)
        described = agreement.describe_data(train_data, splits[0]) | agreement.describe_data(eval_data, splits[1])
        experiment = experiments.build_experiment(config, train_data.tasks, workdir)
        print_label_survey(train_data, workdir)
        if not override:
            agreement.run_together(lambda: check_same_config(workdir, config))
            agreement.run_together(lambda: run_config.check_same_data(workdir, described))

        # Make the first state, or restore that of the newest checkpoint.
        intervals = Intervals(config, max(len(train_data) // config.batch_size, 1))
        schedule = make_schedule(config.optimizer, config.batch_size, intervals.steps_per_epoch, intervals.steps)
        optimizer = make_optimizer(config.optimizer, schedule, frozenset(experiment.trainable))
        batches = experiments.make_train_batches(config, train_data)
        closing.callback(batches.close)
        if not sharding.assert_equal_across_processes((workdir / "initial").exists(), experiments.not_shared(workdir)):
            experiment.save(workdir / "initial", experiment.trainable, experiment.batch_stats, {})
        checkpoints = Checkpoints(workdir, config.keep_checkpoints, writing=True)
        closing.callback(checkpoints.close)
        shutdown.before_exit = checkpoints.wait
        state = sharding.replicate(
            create_state(experiment.trainable, experiment.batch_stats, optimizer), experiment.mesh
        )
        state, loop_state = restore(checkpoints, state, workdir, intervals)
        batches.set_state(loop_state.data)
        step = int(state.step)
        history = EvalHistory(experiment.tasks, delta_m_baseline(config, experiment.tasks))
        if step:
            history.restore(workdir / "log.jsonl", until_step=step)
        if jax.process_index() == 0 and (override or not (workdir / run_config.CONFIG).exists()):
            run_config.save(workdir, config, described)

        # Make what the loop needs.
        batches.start_prefetch()  # the workers take seconds to start; everything that can wait comes after this
        model = model_factory.build(experiment.architecture)
        print_parameters(summarise(model, experiment.method, tuple(config.image_size)))
        writer = MetricWriter(workdir, step, jax.process_index() == 0, config.wandb)
        closing.callback(writer.close)
        profiler = Profiler(workdir, step + PROFILED[0], PROFILED[1] if profile else 0)
        closing.callback(profiler.close)
        devices = f"{experiment.mesh.size} x {jax.devices()[0].device_kind}"
        console.print(f"step {step} to {intervals.steps}, {intervals.steps_per_epoch} an epoch, on {devices}")
        timer = StepTimer(evaluation_steps=len(eval_data) / config.batch_size / 3)
        guard = NonFiniteGuard(limits.max_consecutive_nonfinite_steps, workdir, loop_state.consecutive_skips)
        unreadable = UnreadableExamples(
            limits.max_unreadable_examples,
            workdir / "bad_examples.jsonl",
            loop_state.unreadable,
            limits.max_unreadable_share,
            {"training": len(train_data), "evaluation": len(eval_data)},
        )
        check_stop = functools.partial(shutdown.check, experiment.mesh)
        evaluator = Evaluator(config, experiment, eval_data)
        loop = Loop(
            intervals=intervals,
            state=state,
            train_step=compile_train_step(config, experiment, optimizer, schedule, group_of_each(model)),
            batches=batches,
            checkpoints=checkpoints,
            step_log=StepLog(intervals, writer, timer, guard, loop_state.pending),
            validation=Validation(
                experiment, workdir / "best", evaluator, history, writer, timer, unreadable, check_stop
            ),
            unreadable=unreadable,
            before_step=(lambda step: check_stop(), profiler.step),
        )
        timer.start()
        loop.run()
        if jax.process_index() == 0:
            write_json(workdir / "metrics.json", {"step": history.last_step, **finite_or_none(history.scores)})
    print_scores(history.scores, f"Scores after {history.last_step} steps")
    console.print(f"best model: {workdir / 'best'}")
    return history.scores


def claim(workdir: pathlib.Path, closing: contextlib.ExitStack) -> None:
    """Lock `workdir` until `closing` is closed; process 0 does it for all processes.

    Raises UserError if the folder cannot be written or another program holds it; nothing is changed then.
    """
    check_writable(workdir)
    if jax.process_index() == 0:
        closing.enter_context(locks.hold_lock(workdir, "wait for its end, stop it, or choose another --workdir"))


def print_label_survey(data: Dataset, workdir: pathlib.Path) -> None:
    """Print how label files are read and, when a run begins, which values no label has."""
    begun = (workdir / "initial").exists()
    for line in agreement.run_together(
        lambda: survey.describe_label_encodings(data) + ([] if begun else survey.describe_missing_values(data))
    ):
        console.print(line)


def check_same_config(workdir: pathlib.Path, config: Config) -> None:
    """Check that a config does not contradict that of the run. Raises UserError if it does.

    The model folder that the run started from may have been moved.
    """
    moved = config.init_from and config.init_from != run_config.read_value(workdir, "init_from")
    same = moved and initial_weights.holds(config.init_from, workdir / "initial")
    run_config.check_same_config(workdir, config, ["init_from"] if same else [])


def restore(
    checkpoints: Checkpoints, state: TrainState, workdir: pathlib.Path, intervals: Intervals
) -> tuple[TrainState, LoopState]:
    """Restore the state of the newest whole checkpoint; return the given one if there is none.

    Raises UserError if the run is longer than the config asks for.
    """
    restored = checkpoints.restore(state)
    if restored is None:
        return state, LoopState()
    step = int(restored.state.step)
    if step > intervals.steps:
        raise UserError(
            f"{workdir} holds a run of {step} steps already, more than the {intervals.steps} "
            f"of epochs = {intervals.config.epochs}; give more --config.epochs, or choose another --workdir"
        )
    return restored.state, LoopState.from_json(restored.data, restored.loop)


def loss_weights(config: Config, tasks: Mapping[str, Task]) -> dict[str, float]:
    """{task: weight of its loss}: that of the config, else the task's own."""
    return {name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()}


def compile_train_step(
    config: Config,
    experiment: Experiment,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    groups: Mapping[str, str],
) -> Step:
    """Compile (state, this process's part of a batch) -> (state, metrics).

    The state is donated. Compilation happens at the first call.
    """
    mesh, tasks = experiment.mesh, experiment.tasks
    everywhere, key = sharding.replicated_sharding(mesh), jax.random.key(config.seed)
    compiled = jax.jit(
        functools.partial(
            train_step,
            graph=experiment.graph,
            tasks=tasks,
            weights=loss_weights(config, tasks),
            optimizer=optimizer,
            encoder_microbatches=config.encoder_microbatches,
            groups=groups,
            schedule=schedule,
        ),
        in_shardings=(everywhere, everywhere, sharding.batch_sharding(mesh), everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )

    def step(state: TrainState, batch: Mapping[str, np.ndarray]) -> tuple[TrainState, dict[str, Any]]:
        return compiled(state, experiment.frozen, sharding.shard_batch(batch, mesh), key)

    return step
