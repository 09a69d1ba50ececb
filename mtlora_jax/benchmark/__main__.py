"""Measures the speed and memory of one part of a config on this machine, and how far that is from the machine's limits.

    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=train --config.compute_dtype=bfloat16
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=infer --merged --config.batch_size=8
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=data --config.data.num_workers=1
    python -m mtlora_jax.benchmark --config=configs/mtlora_tiny_448.py:64 --what=end_to_end --json

--what=train: the training step, with random weights, on random images and labels that are on the device already;
neither the data set nor `init_from` is needed. --steps=0 only compiles, which also gives operations and planned memory.

--what=infer: the forward pass of a batch of `batch_size` images with random weights, from uint8 on the device to the
logits of all tasks; with --merged, of the model that `mtlora_jax.merge` makes of it.

--what=data: the input pipeline alone. It reads, decodes and augments training batches of the config's size with the
config's number of workers. Each worker is a process that keeps one core busy (0 workers: one thread of this process).
After the start-up, which is not measured, come rounds of some seconds each.

--what=end_to_end: the training step alone, then fed by the pipeline as in a run, to show how much time training loses
waiting for input. On a CPU, workers and step compete for the cores, and that counts as waiting.

Keys of --json for train and infer. After two warm-up steps, steps are timed one by one until their results are there.

    images_per_second, slowest, fastest  of the median, the slowest and the fastest step
    seconds, spread           median step; distance of the quartiles as a share of the median
    steps, warm_up            how many were measured, and how many preceded them
    tracing_seconds, lowering_seconds, compile_seconds
    compile_cached            whether jax's cache on disk spared the compiler the work
    gmacs_forward             10^9 multiply-accumulates of the forward pass of one image
    gmacs_step                of the whole step and batch as the program has them, backward pass included; products
                              alone, without interpolation
    argument_bytes, temporary_bytes, output_bytes  per device as the compiler plans them: weights, optimizer and batch;
                              temporaries; outputs without those that reuse the memory of arguments
    peak_bytes                as the device has counted them since the process began
    peak_resident_bytes       on a CPU instead: the most memory resident in the process while steps ran (outside Linux:
                              since it began), Python and libraries included
    accessed_bytes            the compiler's sum over operations of what each reads and writes, even in a cache; bodies
                              of loops count once
    least_bytes               on one device: weights, optimizer, batch and logits read or written once, activations kept
                              for the backward pass both read and written
    peak_flops, peak_bandwidth, peak_precision  FLOP/s and bytes/s of one device, and the precision of the former
    peak_from                 its data sheet, or a large product and a large copy measured in this process
    mfu                       share of peak_flops, with two FLOPs per multiply-accumulate of the step
    floor_products, floor_bytes, floor_accessed  seconds: gmacs_step at peak_flops, least_bytes and accessed_bytes at
                              peak_bandwidth
    times_floor               the median step in multiples of the larger of floor_products and floor_bytes
    batch_size, image_size, tasks, method, compute, frozen  as in the config
    device, devices, jax      kind of device, number of devices, version of jax
    encoder_microbatches, remat  train: as in the config
    merged                    infer: whether the model was merged

Keys for data:

    images_per_second, slowest, fastest, spread  of rounds, as above
    per_worker                the median divided by the number of workers
    per_core                  images per second of processor time, summed over all processes
    workers, cores            number of workers, cores of the machine
    batch_size, image_size, tasks, images (in a round), rounds

Keys for end_to_end:

    images_per_second         fed by the pipeline
    seconds, step_seconds     mean of a fed step, mean of a step alone
    device_wait               1 - step_seconds / seconds
    host_wait                 share of the time that the loop waited for the next batch, with the device busy or not
    steps, warm_up, workers, cores, batch_size, image_size, tasks, device, devices

Unknown values are null.
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
    """Measures and prints the results."""
    parser = cli.Parser("mtlora_jax.benchmark", __doc__, config=True)
    parser.add_argument("--what", required=True, help=f"one of {', '.join(BENCHMARKS)}")
    parser.add_argument(
        "--steps", type=int, default=20, help="steps to measure with train, infer and end_to_end (default 20)"
    )
    parser.add_argument(
        "--merged", action="store_true", help="infer: with the low-rank branches folded into the weights"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse(argv)
    if args.what == "feed":
        raise UserError("there is no --what=feed; it is called --what=end_to_end now")
    if args.what not in BENCHMARKS:
        raise UserError(f"--what={args.what} is not one of {', '.join(BENCHMARKS)}")
    if args.steps < 0:
        raise UserError(f"--steps={args.steps} must be at least 0")
    if args.merged and args.what != "infer":
        raise UserError(f"--merged needs --what=infer, not --what={args.what}: merged models only run inference")
    measure, tell = BENCHMARKS[args.what]
    measured = {"what": args.what, **measure(args)}
    if args.json:
        print(json.dumps(measured))
    else:
        tell(measured)


if __name__ == "__main__":
    cli.run(main)
