"""Converts a checkpoint of a Swin Transformer or of MTLoRA to a model folder, which mtlora_jax.load opens.

    python -m mtlora_jax.convert swin_tiny_patch4_window7_224.pth weights/swin_tiny
    python -m mtlora_jax.convert mtlora_tiny_448_r64.pth weights/mtlora_tiny --tasks=semseg,normals

Official Swin, Hugging Face, timm and reference MTLoRA checkpoints are told apart by the names of their tensors. Every tensor must find its
place, and every parameter a tensor; nothing in a pickle is ever run.
"""

import pathlib
from collections.abc import Sequence

from mtlora_jax import cli, folder
from mtlora_jax.convert import FORMATS, convert
from mtlora_jax.errors import UserError


def check_out(out: pathlib.Path, source: pathlib.Path, overwrite: bool) -> None:
    """Raises UserError if writing `out` would destroy something."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected the name of a folder")
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} holds the source {source}: choose another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} is not empty: choose another folder, or say --overwrite")


def main(argv: Sequence[str] | None = None) -> None:
    """Converts, writes and says what was found."""
    parser = cli.Parser("mtlora_jax.convert", __doc__)
    parser.add_argument("source", type=pathlib.Path, help="a .safetensors, .pth, .pt or .bin file, or a directory with one")
    parser.add_argument("out", type=pathlib.Path, help="the model folder to write")
    parser.add_argument(
        "--from", dest="format", default="auto", choices=["auto", *FORMATS], help="format of the source (default: by its names)"
    )
    parser.add_argument("--scale", type=float, help="scale of the low-rank branches (default: the checkpoint's, else 4.0)")
    parser.add_argument("--image_size", type=int, help="side of the images in pixels (default: the checkpoint's, else 448)")
    parser.add_argument("--window_size", type=int, help="resize the position tables to this window (default: the checkpoint's)")
    parser.add_argument("--tasks", help="keep these tasks, in this order, separated by commas (default: all)")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    args = parser.parse(argv)
    check_out(args.out, args.source, args.overwrite)
    try:
        architecture, arrays, report, format = convert(
            args.source,
            args.format,
            scale=args.scale,
            image_size=args.image_size,
            window_size=args.window_size,
            tasks=None if args.tasks is None else args.tasks.split(","),
        )
        folder.save(args.out, architecture, arrays, {"converted_from": {"file": args.source.name, "format": format}})
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from error
    print("\n".join([*report, f"written    {args.out}"]))


if __name__ == "__main__":
    cli.run(main)
