"""The input pipeline alone, and the training step fed by it."""

import argparse
import contextlib
import os
import time
from typing import Any

import jax
import psutil

from mtlora_jax.benchmark import train as training_step
from mtlora_jax.benchmark.timing import WARM_UP, compute_rates, time_steps
from mtlora_jax.data.pipeline import Batches
from mtlora_jax.distributed import sharding
from mtlora_jax.errors import UserError
from mtlora_jax.experiment import make_train_batches, open_dataset
from mtlora_jax.metric_writers import DataWaitTimer

ROUNDS = 5
BATCHES = 4  # per worker and round


def data(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the input pipeline. Raises UserError for a data set that cannot be read."""
    config = args.config
    workers = config.data.num_workers
    count = BATCHES * max(workers, 1)
    with contextlib.closing(make_train_batches(config, open_dataset(config, config.data.train_split))) as batches:
        take(batches, count)  # also uses up the batches that were prepared while workers started
        seconds, busy = [], processor_seconds()
        for _ in range(ROUNDS):
            start = time.perf_counter()
            take(batches, count)
            seconds.append(time.perf_counter() - start)
        busy = processor_seconds() - busy
    images = count * config.batch_size // jax.process_count()
    rates = compute_rates(images, seconds)
    return {
        **rates,
        "per_worker": (rates["images_per_second"] or 0.0) / max(workers, 1),
        "per_core": ROUNDS * images / busy,
        **described(config),
        "images": images,
        "rounds": ROUNDS,
    }


def end_to_end(args: argparse.Namespace) -> dict[str, Any]:
    """Time that training loses waiting for input.

    Raises UserError for a data set that cannot be read, and for --steps=0.
    """
    if not args.steps:
        raise UserError("--steps=0 must be at least 1 for --what=end_to_end")
    config = args.config
    dataset = open_dataset(config, config.data.train_split)
    training = training_step.start(config)
    alone = time_steps(training.step, args.steps, training.device).seconds
    wait, mesh = DataWaitTimer(), training.experiment.mesh
    with contextlib.closing(make_train_batches(config, dataset)) as batches:
        take(batches, BATCHES * max(config.data.num_workers, 1))
        before, start = None, time.perf_counter()
        for step in range(WARM_UP + args.steps):
            if step == WARM_UP:
                jax.block_until_ready(before)
                start = time.perf_counter()
                wait.take_share(1.0)
            with wait:
                batch = next(batches)
            used = {name: batch[name] for name in training.batch}  # training reads no "mask"
            _, metrics = training.step(sharding.shard_batch(used, mesh))
            jax.block_until_ready(before)  # one step runs while the next batch is fetched
            before = metrics
        jax.block_until_ready(before)
        fed = (time.perf_counter() - start) / args.steps
        host = wait.take_share(fed * args.steps)
    step = sum(alone) / len(alone)
    return {
        "images_per_second": config.batch_size / fed,
        "seconds": fed,
        "step_seconds": step,
        "device_wait": max(1 - step / fed, 0.0),
        "host_wait": host,
        "steps": args.steps,
        "warm_up": WARM_UP,
        **described(config),
        "device": mesh.devices.flat[0].device_kind,
        "devices": mesh.size,
    }


def take(batches: Batches, count: int) -> None:
    """Draws `count` batches and drops them."""
    for _ in range(count):
        next(batches)


def processor_seconds() -> float:
    """Processor time of this process and its workers so far, over all cores."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def described(config: Any) -> dict[str, Any]:
    """Settings of a measurement, for its report."""
    return {
        "workers": config.data.num_workers,
        "cores": os.cpu_count(),
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
    }
