"""Measures how fast a part of a config runs on this machine, and what memory it takes.

    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data --config.data.workers=1 --json
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=train --config.remat=block
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=train --steps=0 --json

--what=data: the input pipeline alone, reading, decoding and augmenting training batches of the config's size with its number of workers.
Each worker is a process that fills one core (0 workers: one thread of this process). What starts up is not measured; then come rounds of
some seconds each, of which the median, the slowest and the fastest are told.

--what=train: the training step alone, on random images and labels that lie on the device already, with random weights: neither the data
set nor `init` need be at hand. The first step after compilation is not measured. --steps=0 only compiles, which tells the memory too.

Keys of --json for both: what, images_per_second (median), slowest, fastest, batch_size, image_size, tasks.
data: per_worker (the median divided by the workers), workers, cores (of the machine), images (that a round measures), rounds.
train: steps (measured), compile_seconds (tracing included), accumulation, remat, compute, frozen (as in the config), device, devices, and
bytes on each device: argument_bytes (weights, optimizer, batch), temporary_bytes, output_bytes (without what takes the place of
arguments), as the compiler plans them; peak_bytes, as the device has counted them. What is not known is null.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from rich.table import Table

from mtlora_jax import architecture as architectures
from mtlora_jax import cli, sharding
from mtlora_jax.accounting import group_of_each
from mtlora_jax.errors import UserError
from mtlora_jax.optim import make_optimizer
from mtlora_jax.records import console
from mtlora_jax.step import create_state, train_step
from mtlora_jax.tasks.task import Task

ROUNDS = 5
BATCHES = 4  # of each worker in a round


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = cli.Parser("mtlora_jax.benchmark", __doc__, config=True)
    parser.add_argument("--what", required=True, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--steps", type=int, default=10, help="of training, to be measured (default 10)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of something for people")
    args = parser.parse(argv)
    if args.what not in BENCHMARKS:
        raise UserError(f"--what={args.what} is nothing that can be measured; there is {', '.join(BENCHMARKS)}")
    if args.steps < 0:
        raise UserError(f"--steps={args.steps} must be at least 0")
    measure, tell = BENCHMARKS[args.what]
    measured = {"what": args.what, **measure(args)}
    if args.json:
        print(json.dumps(measured))
    else:
        tell(measured)


def data(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second of the input pipeline. Raises UserError for a data set that cannot be read."""
    from mtlora_jax.data.pipeline import train_batches
    from mtlora_jax.data.transforms import Augmentation
    from mtlora_jax.experiment import open_dataset

    config = args.config
    workers = config.data.workers
    batches = train_batches(
        open_dataset(config, config.data.train_split),
        image_size=tuple(config.image_size),
        batch_size=config.batch_size,
        seed=config.seed,
        workers=workers,
        augmentation=Augmentation(**config.data.augmentation),
        parity=config.data.parity,
    )
    count = BATCHES * max(workers, 1)
    for _ in range(count):  # also empties what workers have made ahead while the first of them started
        next(batches)
    seconds = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        seconds.append(time.perf_counter() - start)
    batches.close()
    rates = rates_of(count * config.batch_size, seconds)
    return {
        **rates,
        "per_worker": rates["images_per_second"] / max(workers, 1),
        "workers": workers,
        "cores": os.cpu_count(),
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "images": count * config.batch_size,
        "rounds": ROUNDS,
    }


def tell_data(measured: dict[str, Any]) -> None:
    """Prints the measurement in a line."""
    size = "x".join(map(str, measured["image_size"]))
    print(
        f"{measured['what']}: {measured['images_per_second']:.1f} images/s ({measured['slowest']:.1f} to {measured['fastest']:.1f}), "
        f"{measured['per_worker']:.1f} per worker; {measured['workers']} workers on {measured['cores']} cores, {size}, "
        f"{', '.join(measured['tasks'])}"
    )


def train(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second and memory of the training step. Raises UserError for a config that describes no model."""
    from mtlora_jax.experiment import set_up, tasks_of

    config = args.config
    config.init = ""
    tasks = tasks_of(config)
    with tempfile.TemporaryDirectory() as nothing:
        experiment = set_up(config, tasks, pathlib.Path(nothing))
    mesh = experiment.mesh
    everywhere, split = sharding.replicated(mesh), sharding.by_batch(mesh)
    optimizer = make_optimizer(config.optimizer, optax.constant_schedule(1e-4), frozenset(experiment.trainable))
    update = jax.jit(
        functools.partial(
            train_step,
            graph=experiment.graph,
            tasks=tasks,
            weights={name: task.weight for name, task in tasks.items()},
            optimizer=optimizer,
            accumulation=config.accumulation,
            groups=group_of_each(architectures.build(experiment.architecture)),
        ),
        in_shardings=(everywhere, everywhere, split, everywhere),
        out_shardings=everywhere,
        donate_argnums=0,
    )
    state = jax.device_put(create_state(experiment.trainable, experiment.batch_stats, optimizer), everywhere)
    batch = sharding.put(random_batch(tasks, config.batch_size // jax.process_count(), tuple(config.image_size)), mesh)
    key = jax.random.key(config.seed)
    start = time.perf_counter()
    compiled = update.lower(state, experiment.frozen, batch, key).compile()
    compile_seconds = time.perf_counter() - start

    seconds = []
    for _ in range(args.steps + 1 if args.steps else 0):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(compiled(state, experiment.frozen, batch, key))
        seconds.append(time.perf_counter() - start)
    device = mesh.devices.flat[0]
    plan = compiled.memory_analysis()
    return {
        **rates_of(config.batch_size, seconds[1:]),
        "steps": args.steps,
        "compile_seconds": compile_seconds,
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "accumulation": config.accumulation,
        "remat": config.remat,
        "compute": config.precision.compute,
        "frozen": config.precision.frozen,
        "device": device.device_kind,
        "devices": mesh.size,
        "argument_bytes": plan and plan.argument_size_in_bytes,
        "temporary_bytes": plan and plan.temp_size_in_bytes,
        "output_bytes": plan and plan.output_size_in_bytes - plan.alias_size_in_bytes,
        "peak_bytes": (device.memory_stats() or {}).get("peak_bytes_in_use") if seconds else None,
    }


def tell_train(measured: dict[str, Any]) -> None:
    """Prints the measurement as a table."""
    rate, size = measured["images_per_second"], "x".join(map(str, measured["image_size"]))
    rows = {
        "images/s": f"{rate:.2f} ({measured['slowest']:.2f} to {measured['fastest']:.2f})" if rate else "not measured",
        "compilation": f"{measured['compile_seconds']:.1f} s",
        **{what: gigabytes(measured[f"{what.split()[0]}_bytes"]) for what in ("argument memory", "temporary memory", "output memory")},
        "peak of the device": gigabytes(measured["peak_bytes"]),
        "device": f"{measured['devices']} x {measured['device']}",
        "batch": f"{measured['batch_size']} x {size}, {', '.join(measured['tasks'])}",
        "settings": f"accumulation {measured['accumulation']}, remat {measured['remat']}, {measured['compute']}",
        "frozen weights": measured["frozen"],
    }
    table = Table(title="Training step; memory on each device", show_header=False)
    for row in rows.items():
        table.add_row(*row)
    console.print(table)


BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "data": (data, tell_data),
    "train": (train, tell_train),
}


def rates_of(images: int, seconds: Sequence[float]) -> dict[str, float | None]:
    """Images per second of the median, slowest and fastest round of so many images each; None without rounds."""
    rates = [images / s for s in seconds]
    pick = {"images_per_second": statistics.median, "slowest": min, "fastest": max}
    return {name: fn(rates) if rates else None for name, fn in pick.items()}


def random_batch(tasks: dict[str, Task], count: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Noise in the shape and dtype in which the data pipeline hands images and labels over."""
    rng = np.random.default_rng(0)
    labels = {name: np.stack([task.noise(rng, size) for _ in range(count)]) for name, task in tasks.items()}
    return {"image": rng.integers(0, 256, (count, *size, 3), np.uint8), **labels}


def gigabytes(count: int | None) -> str:
    """Bytes for people."""
    return "not told" if count is None else f"{count / 1e9:.3f} GB"


if __name__ == "__main__":
    cli.run(main)
