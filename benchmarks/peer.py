"""Compares the speed of our model with a plain PyTorch implementation of it, in one process on the same machine.

    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=train --batch_size=2
    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=infer --batch_size=2 --merged
    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=train --batch_size=32 --steps=20 \\
        --precision=bfloat16 --compiled

Both sides get the same random weights, which the converter to checkpoints of the reference hands to the peer. Before
anything is timed, they are compared in float32: the logits in evaluation (with --what=infer: of the model to be timed,
merged or not), and with --what=train also the loss and the gradient of every parameter, without dropout and stochastic
depth. A difference above its bound ends the program.

--what=train: the whole step (forward, losses, backward, clipping, AdamW) on noise that is on the device already; frozen
weights get no gradient.
--what=infer: from normalised float32 images on the device to the logits of all tasks at the size of the images.
--precision=bfloat16: our side by `compute_dtype` of the config, the peer by autocast.
--compiled: the peer through torch.compile.
--merged: our model with the low-rank branches folded into the weights.

The peer runs on a CUDA device if PyTorch has one, our side on the device of jax. Rounds of --steps steps of one and of
the other alternate, and each step is timed until its results are there. Steps before the first round, compilation
included, do not count. Needs PyTorch: pip install 'mtlora_jax[convert]'

Keys of --json:

    ratio                        median step of the peer / median step of ours: how many times as fast ours is
    ratio_lowest, ratio_highest  the same of the medians of each round
    memory_ratio                 peak of ours / peak of the peer
    differences                  logits, loss, gradients, as shares (see benchmarks/torch_peer/check.py)
    ours, peer                   each with
      seconds                    median step
      images_per_second, slowest, fastest
      spread                     distance of the quartiles of the seconds as a share of their median
      first_seconds              the first step, and compilation before it or in it
      peak_bytes                 of the device: for the peer in the rounds, for ours since the program began
      device, version
    frozen                       dtype in which our side stores frozen weights
    float32_products             highest or tf32, on both sides
    what, batch_size, image_size, tasks, method, precision, merged, compiled, rounds, steps, cores

Unknown values are null.
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from typing import Any

from rich.table import Table
from torch_peer.timing import alternated

from mtlora_jax import cli
from mtlora_jax.benchmark.report import duration, gigabytes, percent
from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.models.parameters import PRECISIONS

WORK = ("train", "infer")


def main(argv: Sequence[str] | None = None) -> None:
    """Compares, measures and prints."""
    args = flags(argv)
    # Read when jax first looks for devices; leaves room for PyTorch on the same GPU.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    try:
        import torch  # noqa: F401
    except ImportError:
        raise UserError(
            "benchmarks/peer.py needs PyTorch, install it with: pip install 'mtlora_jax[convert]'"
        ) from None
    from torch_peer.sides import compared_sides

    differences, ours, peer = compared_sides(args)
    if not args.json:
        console.print("differences: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()))
    measured = (
        settings(args) | {"differences": differences} | alternated(ours, peer, args.rounds, args.steps, args.batch_size)
    )
    if args.json:
        print(json.dumps(measured))
    else:
        tell(measured)


def flags(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parses and checks the command line; batch size and precision are also set in `.config`."""
    parser = cli.Parser("peer", __doc__, config=True)
    parser.prog = "python benchmarks/peer.py"
    parser.add_argument("--what", required=True, help=f"one of {', '.join(WORK)}")
    parser.add_argument("--batch_size", type=int, help="images in a batch (default: the config's)")
    parser.add_argument("--steps", type=int, default=6, help="steps of each side in a round (default 6)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default 3)")
    parser.add_argument(
        "--precision", default="float32", help=f"of products, one of {', '.join(PRECISIONS)} (default float32)"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="let float32 products of both use TF32 (with bfloat16, the remaining ones always do)",
    )
    parser.add_argument("--compiled", action="store_true", help="the peer through torch.compile")
    parser.add_argument(
        "--merged", action="store_true", help="infer: ours with the low-rank branches folded into the weights"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    args = parser.parse(argv)
    for name, value, allowed in (("what", args.what, WORK), ("precision", args.precision, PRECISIONS)):
        if value not in allowed:
            raise UserError(f"--{name}={value} is not one of {', '.join(allowed)}")
    args.batch_size = args.config.batch_size if args.batch_size is None else args.batch_size
    for name in ("batch_size", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    if args.merged and args.what != "infer":
        raise UserError(f"--merged needs --what=infer, not --what={args.what}: a merged model cannot be trained")
    args.tf32 |= args.precision == "bfloat16"
    args.config.batch_size = args.batch_size
    args.config.compute_dtype = args.precision
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """Settings of the comparison."""
    config = args.config
    return {
        "what": args.what,
        "batch_size": args.batch_size,
        "image_size": list(config.image_size),
        "tasks": list(config.tasks),
        "method": config.method.name,
        "precision": args.precision,
        "frozen": config.frozen_dtype,
        "float32_products": "tf32" if args.tf32 else "highest",
        "merged": args.merged,
        "compiled": args.compiled,
        "rounds": args.rounds,
        "steps": args.steps,
        "cores": os.cpu_count(),
    }


def tell(measured: dict[str, Any]) -> None:
    """Prints the measurement as a table and a line."""
    title = f"{measured['what']}, {measured['rounds']} rounds of {measured['steps']} steps each"
    table = Table("", "ours", "PyTorch", title=title)
    sides = [measured["ours"], measured["peer"]]
    rows: dict[str, Callable[[dict[str, Any]], str]] = {
        "step": lambda side: f"{duration(side['seconds'])}, spread {percent(side['spread'])}",
        "images/s": lambda side: f"{side['images_per_second']:.2f} ({side['slowest']:.2f} to {side['fastest']:.2f})",
        "first step": lambda side: duration(side["first_seconds"]),
        "peak memory": lambda side: gigabytes(side["peak_bytes"]),
        "device": lambda side: side["device"],
        "version": lambda side: side["version"],
    }
    for name, row in rows.items():
        table.add_row(name, *map(row, sides))
    console.print(table)
    size = "x".join(map(str, measured["image_size"]))
    batch = f"batch {measured['batch_size']} x {size}, {', '.join(measured['tasks'])}"
    how = f"{measured['precision']}, float32 products {measured['float32_products']}, merged {measured['merged']}"
    console.print(f"{batch}; {how}, peer compiled {measured['compiled']}")
    ratio, lowest, highest = (f"{measured[key]:.2f}" for key in ("ratio", "ratio_lowest", "ratio_highest"))
    memory = f" with {measured['memory_ratio']:.2f} of the memory" if measured["memory_ratio"] else ""
    console.print(f"ours is {ratio} times as fast ({lowest} to {highest} by rounds){memory}")


if __name__ == "__main__":
    cli.run(main)
