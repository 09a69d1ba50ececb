"""The training run, top to bottom."""

import contextlib
import functools
import json
import math
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mtlora_jax import architecture as architectures
from mtlora_jax import experiment as experiments
from mtlora_jax import saved_config, sharding
from mtlora_jax.accounting import group_of_each, summarise
from mtlora_jax.checkpoint import Checkpoints, clear_when_full
from mtlora_jax.data.pipeline import Batches, train_batches
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.evaluate import Evaluator, primary_scores, single_task_scores
from mtlora_jax.folder import write_text
from mtlora_jax.guards import BadExamples, Skips
from mtlora_jax.optim import make_optimizer, make_schedule
from mtlora_jax.progress import Progress
from mtlora_jax.records import InputWait, Records, Speed, Trace, console, finite_or_none, memory, print_parameters, print_scores
from mtlora_jax.shutdown import Shutdown, Stopped
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
        experiment = experiments.set_up(config, train_data.tasks, workdir)
        if not override:
            saved_config.refuse_other(workdir, config)
        mesh, tasks, everywhere = experiment.mesh, experiment.tasks, sharding.replicated(experiment.mesh)
        steps_per_epoch = max(len(train_data) // config.batch_size, 1)
        steps = config.epochs * steps_per_epoch
        schedule = make_schedule(config.optimizer, config.batch_size, steps_per_epoch, steps)
        optimizer = make_optimizer(config.optimizer, schedule, frozenset(experiment.trainable))
        batches = train_batches(
            train_data,
            image_size=tuple(config.image_size),
            batch_size=config.batch_size,
            seed=config.seed,
            workers=config.data.workers,
            augmentation=Augmentation(**config.data.augmentation),
            parity=config.data.parity,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        closing.callback(batches.close)
        model = architectures.build(experiment.architecture)
        print_parameters(summarise(model, experiment.method, tuple(config.image_size)))

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
        loop: dict[str, Any] = {"waiting": [], "skipped_in_row": 0, "bad_examples": {}}
        restored = checkpoints.restore(state)
        if restored is not None:
            state, position, loop = restored
            batches.set_state(position)
            progress.read(workdir / "log.jsonl", until=int(state.step))
        batches.start_prefetch()

        update = jax.jit(
            functools.partial(
                train_step,
                graph=experiment.graph,
                tasks=tasks,
                weights={name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()},
                optimizer=optimizer,
                accumulation=config.accumulation,
                groups=group_of_each(model),
            ),
            in_shardings=(everywhere, everywhere, sharding.by_batch(mesh), everywhere),
            out_shardings=everywhere,
            donate_argnums=0,
        )
        evaluator = Evaluator(config, experiment, eval_data)
        step, key = int(state.step), jax.random.key(config.seed)
        first = step
        waiting: list[dict[str, Any]] = loop["waiting"]  # steps since the last line of the log; their metrics are still on the device
        skips = Skips(config.guards.max_skipped_in_row, workdir, loop["skipped_in_row"])
        bad = BadExamples(config.guards.max_bad_examples, workdir / "bad_examples.jsonl", loop["bad_examples"])
        records = Records(workdir, step, jax.process_index() == 0, config.wandb)
        closing.callback(records.close)
        trace = Trace(workdir, first + PROFILED[0], PROFILED[1] if profile else 0)
        closing.callback(trace.close)
        speed = Speed(evaluation_steps=len(eval_data) / config.batch_size / 3)
        input_wait = InputWait()

        def watched(batches: Batches) -> Iterator[Mapping[str, np.ndarray]]:
            """The batches of an evaluation, between which it can be stopped."""
            with contextlib.closing(batches):
                for batch in bad.watch(step, batches):
                    shutdown.check(mesh)
                    yield batch

        def evaluate() -> None:
            scores, seconds = evaluator(state.trainable, state.batch_stats, watched)
            speed.evaluated(seconds)
            tell_bad(bad.settle())
            if progress.add(step, scores):
                experiment.save(workdir / "best", state.trainable, state.batch_stats, {"step": step, "scores": progress.scores})
            records.images(step, evaluator.pictures(state.trainable, state.batch_stats))
            records.write(step, progress.line())  # comes last: with this line the evaluation is done
            told = ", ".join(f"{name} {tasks[name].primary} {value:.2f}" for name, value in primary_scores(scores, tasks).items())
            delta = f", Delta_m {progress.gain:+.2f} %" if progress.gain_name == "delta_m" else ""
            console.print(f"step {step}: {told}{delta} ({seconds:.0f} s)")
            speed.start()

        def log() -> None:
            nonlocal waiting
            waiting = fetched(waiting)
            checkpoints.check()
            tell_bad(bad.settle())
            for past in waiting:
                skips.count(**past)
            scalars = summary([past["metrics"] for past in waiting]) | {"learning_rate": float(np.asarray(schedule(step - 1)))}
            waiting = []
            share = input_wait.share(speed.elapsed())
            rate = config.batch_size * (speed.steps_per_second() or 0.0)
            if rate:
                scalars |= {"images_per_second": rate, "input_wait": share}
            records.write(step, scalars | memory())
            losses = " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss"))
            evaluations = math.ceil(config.epochs / config.eval_every) - step // steps_per_epoch // config.eval_every
            console.print(
                f"epoch {step / steps_per_epoch:.2f}/{config.epochs} step {step}/{steps} {losses} "
                f"{f'{rate:.1f}' if rate else '?'} images/s ETA {speed.remaining(steps - step, evaluations)}"
                f"{' skipped {skipped:.0f}'.format_map(scalars) if scalars['skipped'] else ''}"
            )

        def save() -> None:
            nonlocal waiting
            waiting = fetched(waiting)
            tell_bad(bad.settle())
            remembered = {"waiting": waiting, "skipped_in_row": skips.in_row, "bad_examples": bad.known}
            checkpoints.save(step, state, batches.get_state(), remembered)

        console.print(f"step {step} to {steps}, {steps_per_epoch} an epoch, on {mesh.size} x {jax.devices()[0].device_kind}")
        began = time.monotonic()
        speed.start()
        try:
            while True:
                # A checkpoint comes before the evaluation of its step, so that a run that is ended in there repeats nothing else.
                epoch, rest = divmod(step, steps_per_epoch)
                evaluates = config.eval_first if step == 0 else step == steps or (rest == 0 and epoch % config.eval_every == 0)
                saves = evaluates or (rest == 0 and epoch % config.checkpoint_every == 0)
                if step > first and (saves or (config.checkpoint_steps and step % config.checkpoint_steps == 0)):
                    save()
                if evaluates and progress.last != step:
                    evaluate()
                if step >= steps:
                    break
                shutdown.check(mesh)
                trace.step(step)
                with input_wait:
                    batch = next(batches)
                state, metrics = update(state, experiment.frozen, sharding.put(batch, mesh), key)
                step += 1
                bad.look(step, batch)
                waiting.append({"step": step, "metrics": metrics, "image_ids": batch["image_id"].tolist()})
                if step == first + 1:  # this one compiles: its time says nothing about the others
                    jax.block_until_ready(metrics)
                    console.print(f"first step after {speed.elapsed():.1f} s, compilation included")
                    input_wait.share(speed.elapsed())
                    speed.start()
                else:
                    speed.step()
                if step % config.log_every == 0 or step == steps:
                    log()
        except Stopped:
            if step > first:
                save()
            raise

        if step > first:
            share = checkpoints.seconds / (time.monotonic() - began)
            console.print(f"saving held up training for {checkpoints.seconds:.2f} s, {share:.2%} of its time")
    print_scores(progress.scores, f"Scores after {steps} steps")
    if jax.process_index() == 0:
        write_text(workdir / "metrics.json", json.dumps({"step": steps, **finite_or_none(progress.scores)}, indent=2) + "\n")
    console.print(f"best model: {workdir / 'best'}")
    return progress.scores


def fetched(steps: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The entries of some steps with their metrics on the host, as floats that survive JSON."""
    metrics = jax.device_get([step["metrics"] for step in steps])
    return [step | {"metrics": {name: float(value) for name, value in own.items()}} for step, own in zip(steps, metrics, strict=True)]


def summary(metrics: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean over steps of each scalar, without values that are not finite; "skipped" is the number of steps that were."""
    finite = {name: [own[name] for own in metrics if math.isfinite(own[name])] for name in metrics[0]}
    return {name: sum(values) / len(values) for name, values in finite.items() if values} | {"skipped": sum(finite["skipped"])}


def tell_bad(messages: Sequence[str]) -> None:
    """Shows what cannot be read."""
    for message in messages:
        console.print(f"left out: {message}")


def check_numbers(config: Config) -> None:
    """Raises UserError unless counts are at least 1 and loss weights belong to tasks that are trained."""
    for key in POSITIVE:
        if config[key] < 1:
            raise UserError(f"{key} = {config[key]} must be at least 1")
    for key, least in {"max_skipped_in_row": 1, "max_bad_examples": 0, "grace_seconds": 0}.items():
        if config.guards[key] < least:
            raise UserError(f"guards.{key} = {config.guards[key]} must be at least {least}")
    for name in config.loss_weights:
        if name not in config.tasks:
            raise UserError(f"loss_weights.{name}: the config trains {', '.join(config.tasks)}")
