"""Measures how fast a part of a config runs on this machine, what memory it takes, and how far that is from what the machine can do.

    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=train --config.compute_dtype=bfloat16
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=infer --merged --config.batch_size=8 --json
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data --config.data.num_workers=1
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=end_to_end

--what=train: the training step, on random images and labels that lie on the device already, with random weights: neither the data set
nor `init_from` need be at hand. --steps=0 only compiles, which tells operations and planned memory too.

--what=infer: the forward pass of a batch of `batch_size` images, from uint8 on the device to the logits of all tasks, with random weights;
--merged: of the model that `mtlora_jax.merge` makes of it.

--what=data: the input pipeline alone, reading, decoding and augmenting training batches of the config's size with its number of workers.
Each worker is a process that fills one core (0 workers: one thread of this process). What starts up is not measured; then come rounds of
some seconds each, of which the median, the slowest and the fastest are told.

--what=end_to_end: the training step alone, then fed by the pipeline as in a run: what training loses to waiting for input. Where the device
is a CPU, the workers take it from the step, and that counts as waiting.

Keys of --json for train and infer. Steps are timed one by one, until their results are there, after two that do not count.
images_per_second (median step), slowest, fastest; seconds (median step); spread (distance of the quartiles as a share of the median);
steps, warm_up (how many were measured, and went before);
tracing_seconds, lowering_seconds, compile_seconds, compile_cached (whether jax's cache on disk spared the compiler the work);
gmacs_forward (10^9 multiply-accumulates of the forward pass of one image), gmacs_step (of the whole step and batch as the program has them,
backward pass included; products alone, without interpolation);
argument_bytes (weights, optimizer, batch), temporary_bytes, output_bytes (without what takes the place of arguments), as the compiler
plans them for each device; peak_bytes, as the device has counted them since the process began; peak_resident_bytes, in its place on a CPU:
the most memory that the process had resident while steps ran (outside Linux: since it began), Python and libraries included;
accessed_bytes (the compiler's sum over operations of what each reads and writes, be it in a cache; bodies of loops count once),
least_bytes (weights, optimizer, batch and logits read or written once, and what is kept for the backward pass both, on one device);
peak_flops (FLOP/s), peak_bandwidth (bytes/s), peak_precision, peak_from (of one device: its data sheet, or measured in this process by a
large product and a large copy); mfu (share of peak_flops: two FLOPs for each multiply-accumulate of the step);
floor_products, floor_bytes, floor_accessed (seconds: gmacs_step at peak_flops, least_bytes and accessed_bytes at peak_bandwidth),
times_floor (the median step in multiples of the larger of the first two);
batch_size, image_size, tasks, method, compute, frozen (as in the config), device, devices, jax;
train: encoder_microbatches, remat; infer: merged.

Keys for data: images_per_second, slowest, fastest, spread, per_worker (the median divided by the workers), per_core (images in a second of
processor time, that of all processes added up), workers, cores (of the machine), batch_size, image_size, tasks, images (in a round),
rounds.

Keys for end_to_end: images_per_second (fed), seconds (mean of a fed step), step_seconds (mean of a step alone), device_wait
(1 - step_seconds / seconds), host_wait (share of the time that the loop spent in waiting for the next batch, while the device was busy or
not), steps, warm_up, workers, cores, batch_size, image_size, tasks, device, devices.

What is not known is null.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

from mtlora_jax import cli
from mtlora_jax.benchmark.data import data, end_to_end
from mtlora_jax.benchmark.infer import infer
from mtlora_jax.benchmark.report import print_data, print_end_to_end, print_program
from mtlora_jax.benchmark.train import train
from mtlora_jax.errors import UserError

BENCHMARKS: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "train": (train, print_program),
    "infer": (infer, print_program),
    "data": (data, print_data),
    "end_to_end": (end_to_end, print_end_to_end),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = cli.Parser("mtlora_jax.benchmark", __doc__, config=True)
    parser.add_argument("--what", required=True, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--steps", type=int, default=20, help="of train, infer and end_to_end, to be measured (default 20)"
    )
    parser.add_argument(
        "--merged", action="store_true", help="infer: with the low-rank branches folded into the weights"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of something for people")
    args = parser.parse(argv)
    if args.what == "feed":
        raise UserError("there is no --what=feed; it is called --what=end_to_end now")
    if args.what not in BENCHMARKS:
        raise UserError(f"--what={args.what} is nothing that can be measured; there is {', '.join(BENCHMARKS)}")
    if args.steps < 0:
        raise UserError(f"--steps={args.steps} must be at least 0")
    if args.merged and args.what != "infer":
        raise UserError(f"--merged goes with --what=infer alone: a merged model has no {args.what}")
    measure, tell = BENCHMARKS[args.what]
    measured = {"what": args.what, **measure(args)}
    if args.json:
        print(json.dumps(measured))
    else:
        tell(measured)


if __name__ == "__main__":
    cli.run(main)
