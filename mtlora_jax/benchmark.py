"""Measures how fast a part of a config runs on this machine.

    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data --config.data.workers=1 --json

--what=data: the input pipeline alone, reading, decoding and augmenting training batches of the config's size with its number of workers.
Each worker is a process that fills one core (0 workers: one thread of this process). What starts up is not measured; then come rounds of
some seconds each, of which the median, the slowest and the fastest are told.

Keys of --json: what, images_per_second (median of the rounds), slowest, fastest, per_worker (the median divided by the workers), workers,
cores (of the machine), batch_size, image_size, tasks, images (that a round measures), rounds.
"""

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.defaults import Config
from mtlora_jax.errors import UserError

ROUNDS = 5
BATCHES = 4  # of each worker in a round


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = cli.Parser("mtlora_jax.benchmark", __doc__, config=True)
    parser.add_argument("--what", required=True, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a line for people")
    args = parser.parse(argv)
    if args.what not in BENCHMARKS:
        raise UserError(f"--what={args.what} is nothing that can be measured; there is {', '.join(BENCHMARKS)}")
    measured = {"what": args.what, **BENCHMARKS[args.what](args.config)}
    print(json.dumps(measured) if args.json else told(measured))


def data(config: Config) -> dict[str, Any]:
    """Images per second of the input pipeline. Raises UserError for a data set that cannot be read."""
    from mtlora_jax.data.pipeline import train_batches
    from mtlora_jax.data.transforms import Augmentation
    from mtlora_jax.experiment import open_dataset

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
    rates = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(count):
            next(batches)
        rates.append(count * config.batch_size / (time.perf_counter() - start))
    batches.close()
    return {
        "images_per_second": statistics.median(rates),
        "slowest": min(rates),
        "fastest": max(rates),
        "per_worker": statistics.median(rates) / max(workers, 1),
        "workers": workers,
        "cores": os.cpu_count(),
        "batch_size": config.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "images": count * config.batch_size,
        "rounds": ROUNDS,
    }


BENCHMARKS: dict[str, Callable[[Config], dict[str, Any]]] = {"data": data}


def told(measured: dict[str, Any]) -> str:
    """The measurement in a line."""
    size = "x".join(map(str, measured["image_size"]))
    return (
        f"{measured['what']}: {measured['images_per_second']:.1f} images/s ({measured['slowest']:.1f} to {measured['fastest']:.1f}), "
        f"{measured['per_worker']:.1f} per worker; {measured['workers']} workers on {measured['cores']} cores, {size}, "
        f"{', '.join(measured['tasks'])}"
    )


if __name__ == "__main__":
    cli.run(main)
