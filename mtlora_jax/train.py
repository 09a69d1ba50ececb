"""The training run, top to bottom."""

import functools
import json
import math
import pathlib
from typing import Any

import jax
import numpy as np

from mtlora_jax import architecture as architectures
from mtlora_jax import experiment as experiments
from mtlora_jax import sharding
from mtlora_jax.accounting import summarise
from mtlora_jax.checkpoint import Checkpoints
from mtlora_jax.data.pipeline import train_batches
from mtlora_jax.data.transforms import Augmentation
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError
from mtlora_jax.evaluate import Evaluator, primary_scores, with_gain
from mtlora_jax.optim import make_optimizer, make_schedule
from mtlora_jax.records import Records, Speed, console, print_parameters, print_scores
from mtlora_jax.step import create_state, train_step

POSITIVE = ("epochs", "eval_every", "checkpoint_every", "log_every", "keep_checkpoints")


def train(config: Config, workdir: pathlib.Path) -> dict[str, float]:
    """Trains to the end, from the newest checkpoint of `workdir` if there is one. Returns the scores of the last evaluation.

    Raises UserError for a config, data set or weights that cannot be used, before anything is written.
    """
    check_numbers(config)
    train_data = experiments.open_dataset(config, config.data.train_split)
    eval_data = experiments.open_dataset(config, config.data.eval_split)
    experiment = experiments.set_up(config, train_data.tasks, workdir)
    mesh, tasks = experiment.mesh, experiment.tasks
    everywhere, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    weights = {name: float(config.loss_weights.get(name, task.weight)) for name, task in tasks.items()}
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
    print_parameters(summarise(architectures.build(experiment.architecture), experiment.method, tuple(config.image_size)))

    if not (workdir / "initial").exists():
        experiment.save(workdir / "initial", experiment.trainable, experiment.batch_stats, {})
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")
    checkpoints = Checkpoints(workdir, config.keep_checkpoints)
    state = jax.device_put(create_state(experiment.trainable, experiment.batch_stats, optimizer), everywhere)
    # The best model has the best Delta_m; where the config has no single-task scores, the best gain over this run's first evaluation.
    reference = {name: score for name, score in config.single_task.items() if name in tasks}
    gain_name = "delta_m" if reference else "gain_over_first"
    progress: dict[str, Any] = {"reference": reference, "best": None, "scores": {}}
    if checkpoints.latest() is not None:
        state, position, progress = checkpoints.restore(state)
        batches.set_state(position)
    step = first = int(state.step)
    batches.start_prefetch()

    key = jax.random.key(config.seed)
    update = jax.jit(
        functools.partial(train_step, graph=experiment.graph, tasks=tasks, weights=weights, optimizer=optimizer),
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    evaluator = Evaluator(config, experiment, eval_data)
    records = Records(workdir, step, jax.process_index() == 0)
    speed = Speed()

    def evaluate() -> None:
        scores, seconds = evaluator(state.trainable, state.batch_stats)
        speed.evaluated(seconds)
        primary = primary_scores(scores, tasks)
        progress["reference"] = progress["reference"] or primary
        progress["scores"] = scores = with_gain(scores, tasks, progress["reference"], gain_name)
        records.write(step, {f"eval/{name}": value for name, value in scores.items()})
        told = ", ".join(f"{name} {tasks[name].primary} {value:.2f}" for name, value in primary.items())
        gain = scores.get(gain_name, math.nan)
        console.print(f"step {step}: {told}{f', Delta_m {gain:+.2f} %' if reference else ''} ({seconds:.0f} s)")
        if progress["best"] is None or not gain <= progress["best"]:
            progress["best"] = gain
            experiment.save(workdir / "best", state.trainable, state.batch_stats, {"step": step, "scores": scores})

    if step == 0 and config.eval_first:
        evaluate()
    console.print(f"step {step} to {steps}, {steps_per_epoch} an epoch, on {mesh.size} x {jax.devices()[0].device_kind}")
    waiting: list[dict[str, jax.Array]] = []  # metrics that are still on the device
    speed.start()
    while step < steps:
        state, metrics = update(state, experiment.frozen, sharding.put(next(batches), mesh), key)
        step += 1
        waiting.append(metrics)
        epoch = step // steps_per_epoch
        epoch_ends = step % steps_per_epoch == 0
        if step == first + 1:  # this one compiles: its time says nothing about the others
            jax.block_until_ready(metrics)
            console.print(f"first step after {speed.elapsed():.1f} s, compilation included")
            speed.start()
        else:
            speed.step()
        if step % config.log_every == 0 or step == steps:
            scalars = mean_of(jax.device_get(waiting))
            waiting = []
            scalars["learning_rate"] = float(np.asarray(schedule(step - 1)))
            rate = config.batch_size * (speed.steps_per_second() or 0.0)
            if rate:
                scalars["images_per_second"] = rate
            records.write(step, scalars)
            losses = " ".join(f"{name.removeprefix('loss/')} {value:.3f}" for name, value in scalars.items() if name.startswith("loss"))
            evaluations = math.ceil(config.epochs / config.eval_every) - epoch // config.eval_every
            console.print(
                f"epoch {step / steps_per_epoch:.2f}/{config.epochs} step {step}/{steps} {losses} "
                f"{f'{rate:.1f}' if rate else '?'} images/s ETA {speed.remaining(steps - step, evaluations)}"
            )
        if step == steps or (epoch_ends and epoch % config.eval_every == 0):
            evaluate()
            speed.start()
        wanted = epoch_ends and epoch % config.checkpoint_every == 0
        wanted |= config.checkpoint_steps > 0 and step % config.checkpoint_steps == 0
        if step == steps or wanted:
            checkpoints.save(step, state, batches.get_state(), progress)
            speed.start()

    checkpoints.close()
    records.close()
    batches.close()
    scores = progress["scores"]
    print_scores(scores, f"Scores after {steps} steps")
    if jax.process_index() == 0:
        (workdir / "metrics.json").write_text(json.dumps({"step": steps, **scores}, indent=2) + "\n")
    console.print(f"best model: {workdir / 'best'}")
    return scores


def mean_of(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """Mean of each scalar over steps."""
    return {name: float(sum(m[name] for m in metrics) / len(metrics)) for name in metrics[0]}


def check_numbers(config: Config) -> None:
    """Raises UserError unless counts are at least 1 and loss weights belong to tasks that are trained."""
    for key in POSITIVE:
        if config[key] < 1:
            raise UserError(f"{key} = {config[key]} must be at least 1")
    for name in config.loss_weights:
        if name not in config.tasks:
            raise UserError(f"loss_weights.{name}: the config trains {', '.join(config.tasks)}")
