"""Exports a trained model to files that run without this package.

    python -m mtlora_jax.export --model=runs/r64/best --output=exported/r64 --merge
    python exported/r64/load.py images.npy logits.npz

writes OUTPUT/

    model.jax_export      StableHLO (jax.export) for any batch, and for images of any size if the model allows it
    weights.safetensors   the weights, the first argument of the program
    load.py               runs it in a few lines; needs only jax, numpy and flatbuffers
    metadata.json         tasks, classes, inputs and outputs, versions
    model.onnx            with --format=onnx or stablehlo,onnx: any batch, images of one size, weights included;
                          checked with onnxruntime

ONNX needs more libraries: see docs/export.md.
"""

import importlib.resources
import pathlib
import re
import time
from collections.abc import Sequence

import jax

import mtlora_jax
from mtlora_jax import cli, export
from mtlora_jax.console import console
from mtlora_jax.errors import UserError
from mtlora_jax.export import onnx
from mtlora_jax.io import files, locks, weights
from mtlora_jax.io.files import user_path
from mtlora_jax.model_io.model_folder import Model
from mtlora_jax.models import parameters

FORMATS = ("stablehlo", "onnx")
SIDES = (32, 8192)  # smallest and largest image side, in pixels
EXPORTED_FILES = {export.PROGRAM, export.WEIGHTS, export.METADATA, export.LOADER, onnx.FILE, "__pycache__"}


def parse_words(flag: str, text: str, allowed: Sequence[str]) -> list[str]:
    """Parses the comma-separated words of a flag, without repetitions. Raises UserError for other words."""
    words = list(dict.fromkeys(text.split(",")))
    for word in words:
        if word not in allowed:
            raise UserError(f"{flag}={text}: {word!r} is not one of {', '.join(allowed)}")
    return words


def parse_size(text: str) -> export.Size | None:
    """Parses "HxW" to (height, width), and "" to None. Raises UserError for other text, and sides outside `SIDES`."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or not all(SIDES[0] <= int(side) <= SIDES[1] for side in match.groups()):
        raise UserError(f"--size={text} is not HEIGHTxWIDTH of {SIDES[0]} to {SIDES[1]} pixels each, like 448x448")
    return int(match[1]), int(match[2])


def check_output(folder: pathlib.Path) -> None:
    """Raises UserError if writing `folder` would destroy anything but an earlier export."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output={folder} is a file; expected the name of a folder")
    present = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    foreign = [name for name in present if name not in EXPORTED_FILES]
    if foreign:
        what = f"--output={folder} holds {parameters.list_keys(foreign)}"
        raise UserError(f"{what}, which were not exported: choose another folder")


def write_stablehlo(
    model: Model, platforms: Sequence[str], size: export.Size | None, inputs: str, folder: pathlib.Path
) -> dict:
    """Writes program, weights and loader; returns the metadata.

    A model that needs to know the size of its images is exported for its own size, and the report says so.
    """
    start = time.monotonic()
    try:
        exported = export.export_stablehlo(model, platforms, size, inputs)
    except jax.errors.InconclusiveDimensionOperation as error:
        size = model.image_size
        reason = str(error).splitlines()[0]
        only = f"exported for {size[0]}x{size[1]} alone ({reason})"
        console.print(f"this model has to know the size of its images: {only}", markup=False)
        exported = export.export_stablehlo(model, platforms, size, inputs)
    program = exported.serialize()
    arrays = {path: array.astype("<f4") for path, array in parameters.host_arrays(model.module).items()}
    loader = importlib.resources.files(export).joinpath(export.LOADER).read_text(encoding="utf-8")
    files.write_bytes(folder / export.PROGRAM, program)
    weights.write(folder / export.WEIGHTS, arrays)
    files.write_text(folder / export.LOADER, loader)
    sides = "of any size" if size is None else f"of {size[0]}x{size[1]}"
    console.print(f"{export.PROGRAM}: {len(program) / 1e6:.2f} MB for {', '.join(platforms)}, {inputs} images {sides}")
    megabytes = (folder / export.WEIGHTS).stat().st_size / 1e6
    console.print(f"{export.WEIGHTS}: {megabytes:.1f} MB, {time.monotonic() - start:.0f} s")
    return export.make_metadata(model, size, inputs) | {"stablehlo": export.describe_program(exported)}


def write_onnx(model: Model, size: export.Size, inputs: str, folder: pathlib.Path) -> dict:
    """Writes the ONNX model; returns the metadata."""
    start = time.monotonic()
    about = onnx.convert(model, size, inputs, folder / onnx.FILE)
    megabytes = (folder / onnx.FILE).stat().st_size / 1e6
    console.print(
        f"{onnx.FILE}: {megabytes:.1f} MB, {inputs} images of {size[0]}x{size[1]}, "
        f"logits of onnxruntime within {about['difference']:.1e} of the largest, {time.monotonic() - start:.0f} s"
    )
    return export.make_metadata(model, size, inputs) | {"onnx": about}


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the flags, exports, and writes the folder atomically."""
    parser = cli.Parser("mtlora_jax.export", __doc__)
    parser.add_argument(
        "--model", required=True, type=user_path, help="model folder, merged or not; or an adapter folder, with --base"
    )
    parser.add_argument("--base", type=user_path, help="the model folder with the frozen weights of an adapter")
    parser.add_argument(
        "--output", required=True, type=user_path, help="folder to write; an earlier export in it is replaced"
    )
    parser.add_argument(
        "--format", default="stablehlo", help=f"of {', '.join(FORMATS)}, separated by commas (default: stablehlo)"
    )
    parser.add_argument(
        "--platforms",
        default="cpu,cuda,tpu",
        help=f"StableHLO: of {', '.join(export.PLATFORMS)} (default: cpu,cuda,tpu)",
    )
    parser.add_argument(
        "--size", default="", metavar="HxW", help="size of the images (default: any; ONNX: the model's)"
    )
    parser.add_argument(
        "--inputs",
        default="uint8",
        choices=[*export.INPUTS],
        help="uint8 RGB, normalised inside (default), or float32, normalised already",
    )
    parser.add_argument("--merge", action="store_true", help="fold the low-rank branches into the weights first")
    args = parser.parse(argv)
    formats = parse_words("--format", args.format, FORMATS)
    platforms = parse_words("--platforms", args.platforms, export.PLATFORMS)
    size = parse_size(args.size)
    check_output(args.output)
    files.check_writable(args.output)
    if "onnx" in formats:
        onnx.import_libraries()
    with locks.hold_lock_beside(args.output):
        model = mtlora_jax.load(args.model, args.base)
        export.make_forward(model)  # raises if it cannot be exported
        if args.merge:
            model = mtlora_jax.merge(model)
        with files.atomic_folder(args.output) as folder:
            about = {}
            if "onnx" in formats:
                about |= write_onnx(model, size or model.image_size, args.inputs, folder)
            if "stablehlo" in formats:
                about |= write_stablehlo(model, platforms, size, args.inputs, folder)
            files.write_text(folder / export.METADATA, export.format_json(about))
    console.print(f"written {args.output}")


if __name__ == "__main__":
    cli.run(main)
