"""Measures ours against a plain PyTorch implementation of the same model, one after the other in one process on the same machine.

    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=train --batch_size=2
    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=infer --batch_size=2 --merged
    python benchmarks/peer.py --config=configs/mtlora_tiny_448.py:64 --what=train --batch_size=32 --precision=bfloat16 --steps=20 --compiled

Both get the same random weights, ours by way of the converter to checkpoints of the reference, and before anything is timed they are
compared in float32: logits in evaluation (--what=infer: of the model that is timed, merged or not), and for --what=train also the loss and
the gradient of every parameter, without dropout and stochastic depth. A difference above its bound ends the program.

--what=train: the whole step (forward, losses, backward, clipping, AdamW) on noise that lies on the device; frozen weights get no gradient.
--what=infer: from normalised float32 images on the device to the logits of all tasks at the size of the images.
--precision=bfloat16: `compute_dtype` of the config for ours, autocast for the peer. --compiled: the peer through torch.compile.
--merged: ours with the low-rank branches folded into the weights. The peer runs on a CUDA device if PyTorch has one, ours on what jax has.

Rounds of --steps steps of ours and as many of the peer alternate. Each step is waited for. Steps before the first round, compilation
included, do not count. Needs PyTorch: pip install 'mtlora_jax[convert]'

Keys of --json: ratio (median step of the peer / median step of ours: how many times as fast ours is), ratio_lowest and ratio_highest (of
the medians of each round), memory_ratio (peak of ours / peak of the peer), differences (logits, loss, gradients; as shares, see
benchmarks/torch_peer/check.py);
ours and peer, each with seconds (median step), images_per_second, slowest, fastest, spread (distance of the quartiles of the seconds as a
share of their median), first_seconds (the first step, and compilation before it or in it), peak_bytes (of the device: for the peer in the
rounds, for ours since the program began), device, version;
what, batch_size, image_size, tasks, method, precision, frozen (as ours stores frozen weights), float32_products (highest or tf32, of both),
merged, compiled, rounds, steps, cores. What is not known is null.
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
    # Read when jax first looks for devices: with it there is room for PyTorch on the same GPU.
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
    """The command line, checked; what it says about batch and precision is in `.config`."""
    parser = cli.Parser("peer", __doc__, config=True)
    parser.prog = "python benchmarks/peer.py"
    parser.add_argument("--what", required=True, help=f"one of {', '.join(WORK)}")
    parser.add_argument("--batch_size", type=int, help="images in a batch (default: the config's)")
    parser.add_argument("--steps", type=int, default=6, help="of each side in a round (default 6)")
    parser.add_argument("--rounds", type=int, default=3, help="default 3")
    parser.add_argument(
        "--precision", default="float32", help=f"of products, one of {', '.join(PRECISIONS)} (default float32)"
    )
    parser.add_argument(
        "--tf32",
        action="store_true",
        help="float32 products of both may use TF32 (with bfloat16 what is left of them does)",
    )
    parser.add_argument("--compiled", action="store_true", help="the peer through torch.compile")
    parser.add_argument(
        "--merged", action="store_true", help="infer: ours with the low-rank branches folded into the weights"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object instead of something for people")
    args = parser.parse(argv)
    for name, value, allowed in (("what", args.what, WORK), ("precision", args.precision, PRECISIONS)):
        if value not in allowed:
            raise UserError(f"--{name}={value} is not one of {', '.join(allowed)}")
    args.batch_size = args.config.batch_size if args.batch_size is None else args.batch_size
    for name in ("batch_size", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name}={getattr(args, name)} must be at least 1")
    if args.merged and args.what != "infer":
        raise UserError("--merged goes with --what=infer alone: a merged model cannot be trained")
    args.tf32 |= args.precision == "bfloat16"
    args.config.batch_size = args.batch_size
    args.config.compute_dtype = args.precision
    return args


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """What is measured, and how."""
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
    table = Table(
        "",
        "ours",
        "PyTorch",
        title=f"{measured['what']}, {measured['rounds']} rounds of {measured['steps']} steps each",
    )
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
    how = f"{measured['precision']}, float32 products {measured['float32_products']}, merged {measured['merged']}"
    console.print(
        f"batch {measured['batch_size']} x {size}, {', '.join(measured['tasks'])}; {how}, peer compiled {measured['compiled']}"
    )
    console.print(
        f"ours is {measured['ratio']:.2f} times as fast ({measured['ratio_lowest']:.2f} to {measured['ratio_highest']:.2f} by rounds)"
        + (f" with {measured['memory_ratio']:.2f} of the memory" if measured["memory_ratio"] else "")
    )


if __name__ == "__main__":
    cli.run(main)
