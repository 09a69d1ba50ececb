"""Command line of the converter."""

import argparse
import pathlib
import sys

from mtlora_jax import folder
from mtlora_jax.convert import FORMATS, convert
from mtlora_jax.errors import UserError

EXAMPLE = """examples:
  python -m mtlora_jax.convert swin_tiny_patch4_window7_224.pth weights/swin_tiny
  python -m mtlora_jax.convert mtlora_tiny_448_r64.pth weights/mtlora_tiny --tasks=semseg,normals
"""


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise UserError(f"{message} (--help shows examples)")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UserError for wrong flags."""
    parser = Parser(
        prog="python -m mtlora_jax.convert",
        description="Converts a checkpoint of a Swin Transformer or of MTLoRA to a model folder, which mtlora_jax.load opens.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
    return parser.parse_args(arguments)


def check_out(out: pathlib.Path, source: pathlib.Path, overwrite: bool) -> None:
    """Raises UserError if writing `out` would destroy something."""
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file, expected the name of a folder")
    if source.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{out} holds the source {source}: choose another folder")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UserError(f"{out} is not empty: choose another folder, or say --overwrite")


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; the exit code is 0, or 2 after an error, which is one line on stderr."""
    try:
        options = parse(arguments)
        check_out(options.out, options.source, options.overwrite)
        architecture, arrays, report, format = convert(
            options.source,
            options.format,
            scale=options.scale,
            image_size=options.image_size,
            window_size=options.window_size,
            tasks=None if options.tasks is None else options.tasks.split(","),
        )
        folder.save(options.out, architecture, arrays, {"converted_from": {"file": options.source.name, "format": format}})
    except UserError as error:
        print(f"convert: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"convert: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    print("\n".join([*report, f"written    {options.out}"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
