"""Converts checkpoints of Swin Transformers and of MTLoRA to model folders, and model folders to other forms.

    python -m mtlora_jax.convert swin_tiny_patch4_window7_224.pth weights/swin_tiny
    python -m mtlora_jax.convert mtlora_tiny_448_r64.pth weights/mtlora_tiny --tasks=semseg,normals
    python -m mtlora_jax.convert runs/r64/best shipped/merged --merge
    python -m mtlora_jax.convert runs/r64/best shipped/adapter --adapter --base=weights/swin_tiny
    python -m mtlora_jax.convert shipped/adapter weights/whole --base=weights/swin_tiny
    python -m mtlora_jax.convert runs/r64/best mtlora.pth --to=mtlora

Checkpoints of the official Swin, Hugging Face, timm, torchvision, OpenMMLab and the MTLoRA reference are recognised by
the names of their tensors, whatever container they are in (docs/convert.md). Every tensor of the Swin must match a
parameter and every parameter a tensor; what is left out is reported. Nothing in a pickle is ever run.
"""

import argparse
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mtlora_jax import cli
from mtlora_jax.convert import FORMATS, convert, to_mtlora
from mtlora_jax.errors import UserError
from mtlora_jax.io import files, locks, weights
from mtlora_jax.io.files import user_path
from mtlora_jax.model_factory import build
from mtlora_jax.model_io import adapters, model_folder
from mtlora_jax.model_io.tasks import keep_tasks
from mtlora_jax.models import parameters

CHECKPOINT_FLAGS = ("scale", "image_size", "window_size", "ema")  # a model folder stores these itself
MAX_WINDOW = 256  # tokens on a side; Swin's windows have 7 to 24


class Source(NamedTuple):
    config: dict[str, Any]  # as config.json
    arrays: dict[str, np.ndarray]
    report: list[str]  # lines to print


def main(argv: Sequence[str] | None = None) -> None:
    """Converts, writes, and prints a report."""
    parser = cli.Parser("mtlora_jax.convert", __doc__)
    parser.add_argument(
        "source", type=user_path, help="a file of weights, or a directory with one (docs/convert.md); or a model folder"
    )
    parser.add_argument("out", type=user_path, help="the model folder to write; with --to=mtlora a .pth file")
    parser.add_argument(
        "--from",
        dest="format",
        default="auto",
        choices=["auto", *FORMATS],
        help="format of the source (default: by its names)",
    )
    parser.add_argument(
        "--to",
        default="jax",
        choices=["jax", "mtlora"],
        help="a model folder (default), or a checkpoint of the reference",
    )
    parser.add_argument(
        "--scale", type=float, help="scale of the low-rank branches (default: the checkpoint's, else 4.0)"
    )
    parser.add_argument(
        "--image_size", type=int, help="side of the images in pixels (default: the checkpoint's, else 448)"
    )
    parser.add_argument(
        "--window_size", type=int, help="resize the position tables to this window (default: the checkpoint's)"
    )
    parser.add_argument(
        "--ema", action="store_true", default=None, help="take the EMA weights, averaged during training"
    )
    parser.add_argument("--tasks", help="keep these tasks, in this order, separated by commas (default: all)")
    parser.add_argument(
        "--merge", action="store_true", help="fold the low-rank branches into the weights: faster, no longer trainable"
    )
    parser.add_argument("--adapter", action="store_true", help="write only the trained part; --base has the rest")
    parser.add_argument("--base", type=user_path, help="the model folder with the frozen weights of an adapter")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    args = parser.parse(argv)
    check_flags(args)
    config, arrays, report = read_source(args)
    if args.merge:
        from mtlora_jax.model_io.merging import merged_arrays

        with np.errstate(all="ignore"):
            config["architecture"], arrays = merged_arrays(config["architecture"], arrays)
        arrays = weights.check(arrays, f"{args.source}, merged")  # products can exceed the range of float32
        report = [*report, f"merged     {len(arrays)} tensors with {sum(a.size for a in arrays.values()):,} values"]
    with locks.hold_lock_beside(args.out):
        check_flags(args)  # again, since another program may have written OUT meanwhile
        if args.to == "mtlora":
            to_mtlora.save(args.out, config["architecture"], arrays)
        elif args.adapter:
            adapters.write_adapter(args.out, config, arrays, args.base)
        else:
            model_folder.write(args.out, config, arrays, model_folder.WEIGHTS)
    print("\n".join([*report, f"written    {args.out}"]))


def check_flags(args: argparse.Namespace) -> None:
    """Raises UserError for contradicting flags, or if writing OUT would destroy something."""
    out, source = args.out, args.source
    if args.scale is not None and not 0 < args.scale < math.inf:
        raise UserError(f"--scale={args.scale} must be above 0 and finite")
    if args.window_size is not None and not 1 <= args.window_size <= MAX_WINDOW:
        raise UserError(f"--window_size={args.window_size} must be at least 1 and at most {MAX_WINDOW}")
    if args.adapter and (args.merge or args.to == "mtlora" or args.base is None):
        what = (
            "needs --base=FOLDER, the model folder with the frozen weights"
            if args.base is None
            else "goes with neither --merge nor --to=mtlora"
        )
        raise UserError(f"--adapter {what}")
    if args.to == "mtlora":
        if out.suffix not in (".pth", ".pt"):
            raise UserError(f"{out}: --to=mtlora writes a PyTorch file, whose name ends in .pth or .pt")
        if out.exists() and (out.is_dir() or not args.overwrite):
            raise UserError(f"{out} exists: choose another name" + ("" if out.is_dir() else ", or say --overwrite"))
        files.check_writable(out.parent if out.exists() else out)
        return
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected the name of a folder")
    for name, there in (("source", source), ("base", args.base)):
        if there is not None and there.resolve().is_relative_to(out.resolve()):
            raise UserError(f"{out} holds the {name} {there}: choose another folder")
    if out.is_dir() and any(out.iterdir()) and not args.overwrite:
        raise UserError(f"{out} is not empty: choose another folder, or say --overwrite")
    files.check_writable(out)


def read_source(args: argparse.Namespace) -> Source:
    """Reads the source as a complete model with the tasks to keep."""
    tasks = None if args.tasks is None else args.tasks.split(",")
    if model_folder.is_model_folder(args.source):
        return read_model_folder(args, tasks)
    if args.base is not None and not args.adapter:
        raise UserError(f"--base: {args.source} is not an adapter folder")
    architecture, arrays, report, format = convert(
        args.source,
        args.format,
        scale=args.scale,
        image_size=args.image_size,
        window_size=args.window_size,
        tasks=tasks,
        ema=bool(args.ema),
    )
    config = {"converted_from": {"file": args.source.name, "format": format}, "architecture": architecture}
    return Source(config, arrays, report)


def read_model_folder(args: argparse.Namespace, tasks: Sequence[str] | None) -> Source:
    """Reads a model folder, or an adapter folder with its base."""
    given = [name for name in CHECKPOINT_FLAGS if getattr(args, name) is not None] + ["from"] * (args.format != "auto")
    if given:
        raise UserError(f"--{given[0]}: {args.source} is a model folder already; its config.json has that setting")
    if args.base is None or args.adapter:
        config, arrays = model_folder.read(args.source)
    else:
        config, arrays = adapters.read_adapter(args.source, args.base)
    if tasks is not None:
        config, arrays = keep_tasks(config, arrays, tasks)
    parameters.assign(build(config["architecture"]), arrays, str(args.source))
    kept = ", ".join(config["architecture"]["tasks"]) or "none"
    report = [
        f"model      {config['architecture']['method']['name']}, tasks {kept}",
        f"tensors    {len(arrays)} with {sum(a.size for a in arrays.values()):,} values",
    ]
    return Source(config, arrays, report)


if __name__ == "__main__":
    cli.run(main)
